"""The stages of a ResNet whose last map is as fine as the one before: DETR's "DC5"."""

from typing import Any

from detectron2.modeling.backbone.resnet import BottleneckBlock, ResNet
from torch import nn


def dilated_stages(depth: int, **kwargs: Any) -> list[list[nn.Module]]:
    """As `ResNet.make_default_stages`, but res5 has stride 16 and dilated 3x3 convolutions.

    Args:
        depth: 50, 101 or 152.
        **kwargs: of the blocks, such as `norm` and `stride_in_1x1`.
    """
    if depth not in (50, 101, 152):
        raise ValueError(f"`depth` (={depth}) must be 50, 101 or 152: only those are dilated")
    *stages, last = ResNet.make_default_stages(depth, **kwargs)
    count = len(last)
    dilated = ResNet.make_stage(
        BottleneckBlock,
        count,
        stride_per_block=[1] * count,
        in_channels=last[0].in_channels,
        bottleneck_channels=last[0].conv1.out_channels,
        out_channels=last[0].out_channels,
        dilation=2,
        **kwargs,
    )
    return [*stages, dilated]
