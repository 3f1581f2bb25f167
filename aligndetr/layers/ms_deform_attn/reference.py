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
    batch, _, heads, head_dim = value.shape
    queries, points = sampling_locations.shape[1], sampling_locations.shape[4]
    grids = 2 * sampling_locations - 1  # grid_sample puts the map's edges at -1 and 1
    attended = value.new_zeros(batch * heads, head_dim, queries)
    levels = value.split([h * w for h, w in spatial_shapes], dim=1)
    for index, ((h, w), level) in enumerate(zip(spatial_shapes, levels, strict=True)):
        # grid_sample wants images and points with heads in the batch: (B * M, D, h, w), ...
        maps = level.permute(0, 2, 3, 1).reshape(batch * heads, head_dim, h, w)
        grid = grids[:, :, :, index].transpose(1, 2).reshape(batch * heads, queries, points, 2)
        samples = F.grid_sample(
            maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False
        )
        weights = attention_weights[:, :, :, index].transpose(1, 2)
        weights = weights.reshape(batch * heads, 1, queries, points)
        attended = attended + (samples * weights).sum(dim=-1)
    attended = attended.view(batch, heads * head_dim, queries)
    return attended.transpose(1, 2).to(memory_format=torch.contiguous_format)
