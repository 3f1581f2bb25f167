"""The readable truth: what multi-scale deformable attention computes, by `grid_sample`.

Every other implementation is checked against this one, in value and in every gradient.
Shapes: B batch, Q queries, S tokens over all levels, L levels, M heads, P points, D head dim.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def ms_deform_attn_reference(
    value: Tensor,
    spatial_shapes: list[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Arguments and result as `multi_scale_deformable_attn`, all of one floating dtype."""
    heads = value.shape[2]
    grids = 2 * sampling_locations - 1  # grid_sample puts the map's edges at -1 and 1
    attended: Tensor | int = 0
    levels = value.split([h * w for h, w in spatial_shapes], dim=1)
    for index, ((h, w), level) in enumerate(zip(spatial_shapes, levels, strict=True)):
        # grid_sample wants images and points with heads in the batch: (B * M, D, h, w), ...
        # (Only flattened and unflattened: an exported graph then has no size of the example.)
        maps = level.permute(0, 2, 3, 1).flatten(0, 1).unflatten(-1, (h, w))
        grid = grids[:, :, :, index].transpose(1, 2).flatten(0, 1)
        samples = F.grid_sample(
            maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False
        )
        weights = attention_weights[:, :, :, index].transpose(1, 2).flatten(0, 1)[:, None]
        attended = attended + (samples * weights).sum(dim=-1)
    assert isinstance(attended, Tensor), "there is a level"
    attended = attended.unflatten(0, (-1, heads)).flatten(1, 2)
    return attended.transpose(1, 2).to(memory_format=torch.contiguous_format)
