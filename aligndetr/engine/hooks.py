"""Hooks that detectron2 lacks."""

from detectron2.engine import HookBase
from torch import nn

from .ema import ModelEMA


class EMAUpdater(HookBase):
    """Updates the averaged weights after each optimizer step."""

    def __init__(self, ema: ModelEMA, model: nn.Module):
        self._ema = ema
        self._model = model

    def before_train(self) -> None:
        # Here, once weights are loaded, and not with the first step: a run may be resumed before
        # it has taken one, as while float16's scaler looks for its scale.
        self._ema.start(self._model)

    def after_step(self) -> None:
        if self.trainer.step_taken:  # a step that was left out counts for nothing
            self._ema.update(self._model)
