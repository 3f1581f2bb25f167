"""One training step, and the numbers it leaves behind.

detectron2's SimpleTrainer with four differences: autocast, gradient clipping, losses that leave
the device once per log period, and losses or gradients that are not finite stop every rank
before the weights are touched.
"""

import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from aligndetr.utils.errors import NonFinitePredictionError

from .metrics import (
    LossLog,
    NonFiniteGradientError,
    NonFiniteLossError,
    NonFiniteStepError,
    finite_on_all_ranks,
)
from .optim import with_hyperparameters_of


class Trainer(SimpleTrainer):
    """Trains a model that maps a batch to a dict of named 0-d losses.

    Args:
        model: batch (list of detectron2 dicts) to {name: loss}; may be wrapped by DDP.
        data_loader: iterable of batches; its iterator is made at the first step.
        optimizer: holds the parameters to update and to clip.
        amp: autocast the forward pass: float16 with a gradient scaler on CUDA, bfloat16
            elsewhere.
        clip_grad: arguments of `torch.nn.utils.clip_grad_norm_` (`max_norm`, `norm_type`);
            None does not clip.
        log_period: iterations between two transfers of the losses to the host, and between two
            reductions over the ranks.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Any,
        optimizer: torch.optim.Optimizer,
        amp: bool = False,
        clip_grad: Mapping[str, float] | None = None,
        log_period: int = 20,
    ):
        super().__init__(model, data_loader, optimizer, gather_metric_period=log_period)
        self.device = next(model.parameters()).device
        self.amp = amp
        self.amp_dtype = torch.float16 if self.device.type == "cuda" else torch.bfloat16
        # float16 alone needs its gradients scaled: bfloat16 has the range of float32.
        scaled = amp and self.amp_dtype == torch.float16
        self.grad_scaler = torch.amp.GradScaler(self.device.type, enabled=scaled)
        self.clip_grad = dict(clip_grad) if clip_grad is not None else None
        self.loss_log = LossLog()

    def run_step(self) -> None:
        """Forward, backward, clip, step.

        Each error is raised with the weights as they were before the step.

        Raises:
            NonFiniteLossError: on every rank. (Also where another rank has a NonFiniteStepError.)
            NonFiniteGradientError: on every rank.
            NonFiniteStepError: the model found predictions that are not finite.
        """
        assert self.model.training, "the model was left in eval mode"
        batch, data_time = self._next_batch()
        losses, finite = self._forward(batch)
        total = sum(losses.values())
        self.optimizer.zero_grad(set_to_none=True)
        self.grad_scaler.scale(total).backward()
        self.after_backward()
        self._require_finite(losses, finite, batch)
        grad_norm = self._clip_gradients()
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()
        self._log({**losses, "total_loss": total, **grad_norm}, data_time)

    def _next_batch(self) -> tuple[list[dict], float]:
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        return batch, time.perf_counter() - start

    def _forward(self, batch: list[dict]) -> tuple[dict[str, Tensor], Tensor]:
        """The losses, and whether their sum is finite on all ranks, 0-d bool on the device."""
        losses, failure = {}, None
        try:
            with torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=self.amp):
                losses = self.model(batch)
        except NonFinitePredictionError as error:
            failure = NonFiniteStepError(error, self.iter, batch)
            failure.__cause__ = error
        alone = comm.get_world_size() == 1
        if alone and failure is not None:
            raise failure
        total = sum(losses.values()) if failure is None else torch.tensor(torch.nan)
        finite = finite_on_all_ranks(total.to(self.device))
        # Several ranks ask before backward: one without losses could not join its all-reduce, and
        # the others would wait there for ever. The matcher has waited for the device just before.
        if not alone and not finite:
            error = NonFiniteLossError.from_all_ranks(self.iter, losses, batch, failure)
            raise failure or error
        return losses, finite

    def _require_finite(
        self, losses: dict[str, Tensor], loss_is_finite: Tensor, batch: list[dict]
    ) -> None:
        """Raise on all ranks unless losses and gradients are finite; one wait for the device.

        DDP has left the same gradients on all ranks, so each finds the same without asking.
        """
        norms = torch.stack(torch._foreach_norm([p.grad for p in self._stepped_parameters()]))
        # float16 gradients overflow now and then: the scaler then leaves the step out.
        gradients_are_finite = norms.isfinite().all() | self.grad_scaler.is_enabled()
        if loss_is_finite & gradients_are_finite:
            return
        if not loss_is_finite:
            raise NonFiniteLossError.from_all_ranks(self.iter, losses, batch)
        name_of = {p: name.removeprefix("module.") for name, p in self.model.named_parameters()}
        names = [
            name_of.get(p, "a parameter outside the model")
            for p, norm in zip(self._stepped_parameters(), norms.tolist())
            if not math.isfinite(norm)
        ]
        raise NonFiniteGradientError.from_all_ranks(self.iter, losses, batch, names)

    def _stepped_parameters(self) -> list[nn.Parameter]:
        """Those that the optimizer is about to change."""
        groups = self.optimizer.param_groups
        return [p for group in groups for p in group["params"] if p.grad is not None]

    def _clip_gradients(self) -> dict[str, Tensor]:
        """Bring the gradients to at most `max_norm`; their norm before that, for the log."""
        if self.clip_grad is None:
            return {}
        self.grad_scaler.unscale_(self.optimizer)
        return {"grad_norm": clip_grad_norm_(self._stepped_parameters(), **self.clip_grad)}

    def _log(self, scalars: Mapping[str, Tensor], data_time: float) -> None:
        self.loss_log.add(self.iter, scalars, data_time)
        is_last = self.iter + 1 == self.max_iter
        if (self.iter + 1) % self.gather_metric_period == 0 or is_last:
            self.loss_log.flush(self.storage if comm.is_main_process() else None)

    def state_dict(self) -> dict:
        """Iteration, hooks, optimizer and gradient scaler, as tensors and plain values."""
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: Mapping) -> None:
        """Take up the state of `state_dict()`; switching `amp` on or off between is allowed.

        The optimizer keeps its own hyperparameters, see `with_hyperparameters_of`.
        """
        optimizer_state = with_hyperparameters_of(self.optimizer, state_dict["optimizer"])
        super().load_state_dict({**state_dict, "optimizer": optimizer_state})
        if scaler_state := state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(scaler_state)
