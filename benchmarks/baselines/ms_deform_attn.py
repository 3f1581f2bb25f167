"""Multi-scale deformable attention as the reference formulates it for the CPU.

grid_sample on each level, all samples stacked in one [B * M, D, Q, L * P] buffer, multiplied by
the weights in another, summed. Shapes: B batch, Q queries, S tokens over all levels, L levels,
M heads, P points, C embed_dim, D = C / M.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from aligndetr.layers import MultiScaleDeformableAttention


def ms_deform_attn_baseline(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]] | Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Arguments and result as `aligndetr.layers.multi_scale_deformable_attn`, of one dtype.

    With `spatial_shapes` a tensor, as in the reference, reading the sizes makes a GPU wait.
    """
    batch, _, heads, head_dim = value.shape
    queries, levels, points = (sampling_locations.shape[i] for i in (1, 3, 4))
    grids = sampling_locations * 2 - 1
    shapes = [(int(h), int(w)) for h, w in spatial_shapes]
    samples = []
    for level, tokens in enumerate(value.split([h * w for h, w in shapes], dim=1)):
        maps = tokens.flatten(2).transpose(1, 2).reshape(batch * heads, head_dim, *shapes[level])
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
        samples.append(
            F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        )
    weights = attention_weights.transpose(1, 2)
    weights = weights.reshape(batch * heads, 1, queries, levels * points)
    attended = (torch.stack(samples, dim=-2).flatten(-2) * weights).sum(-1)
    return attended.view(batch, heads * head_dim, queries).transpose(1, 2).contiguous()


def deformable_attention(
    attn: MultiScaleDeformableAttention,
    query: Tensor,
    query_pos: Tensor,
    value: Tensor,
    padding_mask: Tensor,
    reference_points: Tensor,
    spatial_shapes: Tensor,
) -> Tensor:
    """What `attn.forward` computes, with its weights; spatial_shapes an (L, 2) tensor."""
    batch, tokens, _ = value.shape
    queries = query.shape[1]
    heads, levels, points = attn.num_heads, attn.num_levels, attn.num_points
    values = attn.value_proj(value).masked_fill(padding_mask[..., None], 0.0)
    values = values.view(batch, tokens, heads, -1)
    positioned = query + query_pos
    offsets = attn.sampling_offsets(positioned).view(batch, queries, heads, levels, points, 2)
    weights = attn.attention_weights(positioned).view(batch, queries, heads, levels * points)
    weights = weights.softmax(-1).view(batch, queries, heads, levels, points)
    if reference_points.shape[-1] == 2:
        sizes = torch.stack([spatial_shapes[:, 1], spatial_shapes[:, 0]], -1)
        locations = reference_points[:, :, None, :, None] + offsets / sizes[:, None]
    else:
        centre, size = reference_points[:, :, None, :, None].split(2, -1)
        locations = centre + offsets / points * size * 0.5
    attended = ms_deform_attn_baseline(values, spatial_shapes, locations, weights)
    return attn.dropout(attn.output_proj(attended)) + query
