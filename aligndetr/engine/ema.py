"""Exponential moving average of a model's weights."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class ModelEMA:
    """A copy of a model whose weights follow slowly: decay * average + (1 - decay) * weight.

    It starts with the model's weights as they are. Buffers are copied, not averaged.

    Args:
        model: not wrapped by DDP.
        decay: in [0, 1); about 1 / (1 - decay) steps are averaged.
        device: where the copy lives; "": where the model does.

    Raises:
        ValueError: `decay` is outside its range.
    """

    def __init__(self, model: nn.Module, decay: float = 0.999, device: str = ""):
        if not 0 <= decay < 1:
            raise ValueError(
                f"`decay` (={decay}) must be in [0, 1); set `train.model_ema.decay` in the config"
            )
        # `device` only now: torch would put its count of updates there and wait for it.
        self._average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self._average.eval().requires_grad_(False)
        if device:
            self._average.module.to(device)

    @property
    def model(self) -> nn.Module:
        """The averaged model, to be evaluated."""
        return self._average.module

    def start(self, model: nn.Module) -> None:
        """Take the weights as they are, unless averages were loaded or updated before."""
        if self._average.n_averaged == 0:
            self.update(model)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after an optimizer step; the first time, as they are."""
        self._average.update_parameters(model)

    def state_dict(self) -> dict[str, Tensor]:
        """Keys as of the model itself."""
        return dict(self.model.state_dict())

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Go on from the averages of `state_dict()`.

        Raises:
            ValueError: it is of another model.
        """
        try:
            self.model.load_state_dict(state_dict)
        except RuntimeError as error:
            raise ValueError(str(error)) from error
        self._average.n_averaged.fill_(1)  # the next update must not start anew
