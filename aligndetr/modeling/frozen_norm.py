"""Convolutions that do their frozen batch norm along the way."""

import torch.nn.functional as F
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn


def fold_frozen_norms(module: nn.Module) -> None:
    """Make detectron2's convolutions in `module` apply their `FrozenBatchNorm2d` by their weights.

    A frozen norm is a scale and a shift per channel, and so is part of a linear map: (w * x) s + t
    is (w s) * x + t. Feature maps are then written once where they were written three times, two
    of them into memory of their own. Results are equal up to rounding, modules and state_dict the
    same: weights are folded anew in each forward pass, so they can be trained or loaded.
    """
    for conv in module.modules():
        # Of exactly this type: a subclass may do something else.
        if type(conv) is Conv2d and type(conv.norm) is FrozenBatchNorm2d:
            conv.__class__ = _FoldedConv2d


class _FoldedConv2d(Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        mean = norm.running_mean if self.bias is None else norm.running_mean - self.bias
        weight = self.weight * scale[:, None, None, None]
        x = F.conv2d(
            x,
            weight,
            norm.bias - mean * scale,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
        )
        return x if self.activation is None else self.activation(x)
