"""detectron2's ResNet, with activation checkpointing and its frozen norms folded."""

from typing import Any

from detectron2.modeling.backbone import ResNet as D2ResNet
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from aligndetr.layers import recompute

from .frozen_norm import fold_frozen_norms


class ResNet(D2ResNet):
    """As detectron2's, with the same weights' names. Frozen norms cost next to nothing, see
    `fold_frozen_norms`.

    Args:
        stem, stages, num_classes, out_features, freeze_at: as there.
        use_checkpoint: keep the input of each stage in training, not what lies within. (Of each
            block would save little: a bottleneck's input and output are most of what it holds.)

    Raises:
        ValueError: `use_checkpoint` with batch norms that take statistics: a second forward pass
            would count the batch twice.
    """

    def __init__(self, *args: Any, use_checkpoint: bool = False, **kwargs: Any):
        super().__init__(*args, **kwargs)
        fold_frozen_norms(self)
        self.use_checkpoint = use_checkpoint
        if not use_checkpoint:
            return
        if any(isinstance(module, _BatchNorm) for module in self.modules()):
            raise ValueError(
                "`model.backbone.use_checkpoint` needs norms without running statistics, such as "
                '"FrozenBN" or "GN": recomputing a stage would count its batch twice'
            )
        for index, name in enumerate(self.stage_names):
            stage = _RecomputedStage(*self.stages[index])
            setattr(self, name, stage)
            self.stages[index] = stage


class _RecomputedStage(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return recompute(super().forward, x)
