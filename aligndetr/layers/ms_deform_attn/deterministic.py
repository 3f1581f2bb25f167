"""Deformable attention whose gradients are the same bits in every run, on any device.

The backward pass of `grid_sample` adds to the value gradient in whatever order a GPU's threads
arrive, and refuses to run under `torch.use_deterministic_algorithms`. Here each row of that
gradient is one bag of `F.embedding_bag` over the samples that read it, in sorted order: no
atomics, and no wait for the device either.

Shapes: B batch, Q queries, S tokens over all levels, L levels, M heads, P points, D head dim;
per batch entry n = Q * M bags of K = L * P samples, which read S * M rows of values.
"""

import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .reference import ms_deform_attn_reference

# Bags whose 4 * K rows are gathered at once: 64 MB at K = 16 and D = 32.
CHUNK = 8192


def ms_deform_attn_deterministic(
    value: Tensor,
    spatial_shapes: list[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Arguments and result as `multi_scale_deformable_attn`, all float32 or all float64.

    Differentiable once: a second derivative raises and needs `backend="reference"`.
    """
    return _DeterministicAttention.apply(
        value, spatial_shapes, sampling_locations, attention_weights
    )


class _DeterministicAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value, spatial_shapes, locations, weights):
        ctx.save_for_backward(value, locations, weights)
        ctx.spatial_shapes = spatial_shapes
        return ms_deform_attn_reference(value, spatial_shapes, locations, weights)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):
        # None of the operations below is one that autocast would run in half precision.
        value, locations, weights = ctx.saved_tensors
        grad_value = torch.empty_like(value, memory_format=torch.contiguous_format)
        grad_locations = locations.new_empty(locations.shape)
        grad_weights = weights.new_empty(weights.shape)
        for b in range(len(value)):
            samples = _place_samples(ctx.spatial_shapes, locations[b], weights[b])
            bags = grad_out[b].unflatten(-1, value.shape[2:]).flatten(0, 1)
            products = _dot_with_corners(samples, bags, value[b].flatten(0, 1))
            for_locations, for_weights = _sample_gradients(samples, products)
            grad_locations[b] = for_locations.view(locations.shape[1:])
            grad_weights[b] = for_weights.view(weights.shape[1:])
            grad_value[b] = _sum_by_row(samples, bags, value[b].shape)
        return grad_value, None, grad_locations, grad_weights


def deterministic_value_gradient(
    grad_out: Tensor,
    spatial_shapes: list[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Gradient of the values, summed in a fixed order.

    Args:
        grad_out: (B, Q, M * D), float32 or float64 as the two others.
        spatial_shapes, sampling_locations, attention_weights: see `multi_scale_deformable_attn`.

    Returns:
        (B, S, M, D).
    """
    batch, _, heads = sampling_locations.shape[:3]
    grad_out = grad_out.unflatten(-1, (heads, -1))
    shape = torch.Size([sum(h * w for h, w in spatial_shapes), *grad_out.shape[2:]])
    grad_value = grad_out.new_empty(batch, *shape)
    for b in range(batch):
        samples = _place_samples(spatial_shapes, sampling_locations[b], attention_weights[b])
        grad_value[b] = _sum_by_row(samples, grad_out[b].flatten(0, 1), shape)
    return grad_value


def level_table(spatial_shapes: list[tuple[int, int]], device: torch.device) -> Tensor:
    """(L, 3) int32 on `device`: height, width and first token of each level. Do not write to it.

    A list copied to a GPU makes the host wait; these numbers are written there by kernels
    instead, and kept for the next call with the same shapes.
    """
    return _cached_level_table(tuple(spatial_shapes), device)


@functools.lru_cache(maxsize=256)
def _cached_level_table(shapes: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    rows, first = [], 0
    for h, w in shapes:
        rows += (h, w, first)
        first += h * w
    with torch.inference_mode(False):  # autograd refuses tensors that were made in that mode
        numbers = [torch.full((), number, dtype=torch.int32, device=device) for number in rows]
        return torch.stack(numbers).view(-1, 3)


class _Samples(NamedTuple):
    """One batch entry. The corners are top left, top right, bottom left, bottom right."""

    row: Tensor  # (n, 4, K) int32, rows of the (S * M, D) values; any row where not `inside`
    inside: Tensor  # (n, 4, K) bool, the corner is a cell of the map
    weights: Tensor  # (n, K), attention weights
    fraction: Tensor  # (n, K, 2), (x, y) from the top left corner, in [0, 1)
    size: Tensor  # (K, 2), (w, h) of each sample's map


def _place_samples(
    spatial_shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor
) -> _Samples:
    """From the (Q, M, L, P, 2) locations and (Q, M, L, P) weights of one batch entry."""
    queries, heads, _, points, _ = locations.shape
    table = level_table(spatial_shapes, locations.device).repeat_interleave(points, dim=0)
    height, width, first = table.unbind(-1)
    size = torch.stack([width, height], dim=-1).to(locations.dtype)
    grid = locations.flatten(0, 1).flatten(1, 2) * 2 - 1
    position = (grid + 1) * (size / 2) - 0.5  # in the steps, so with the rounding, of grid_sample
    # Two cells outside or more, no corner is in the map. NaN passes, and shows in the gradients.
    position = position.clamp(min=-2).minimum(size + 1)
    floor = position.floor()
    x, y = floor.int().unbind(-1)
    x, y = torch.stack([x, x + 1, x, x + 1], 1), torch.stack([y, y, y + 1, y + 1], 1)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    # A row near by for corners outside: one row for all would be a bag of them all.
    cell = y.clamp(min=0).minimum(height - 1) * width + x.clamp(min=0).minimum(width - 1) + first
    head = torch.arange(heads, dtype=torch.int32, device=cell.device).repeat(queries)
    row = cell * heads + head[:, None, None]
    return _Samples(row, inside, weights.flatten(0, 1).flatten(1), position - floor, size)


def _dot_with_corners(samples: _Samples, bags: Tensor, table: Tensor) -> Tensor:
    """(n, 4, K): dot product of each bag's output gradient (n, D) with the rows it read."""
    products = bags.new_empty(samples.row.shape)
    for first in range(0, len(bags), CHUNK):
        chunk = slice(first, first + CHUNK)
        rows = table.index_select(0, samples.row[chunk].flatten())
        rows = rows.view(*samples.row[chunk].shape, -1)
        products[chunk] = rows.mul_(bags[chunk, None, None]).sum(-1)
    return products.masked_fill_(~samples.inside, 0)


def _sample_gradients(samples: _Samples, products: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of locations (n, K, 2) and attention weights (n, K)."""
    top_left, top_right, bottom_left, bottom_right = products.unbind(1)
    x, y = samples.fraction.unbind(-1)
    slope_top, slope_bottom = top_right - top_left, bottom_right - bottom_left
    top, bottom = top_left + slope_top * x, bottom_left + slope_bottom * x
    slope = torch.stack([slope_top + (slope_bottom - slope_top) * y, bottom - top], dim=-1)
    return slope * samples.weights[..., None] * samples.size, top + (bottom - top) * y


def _sum_by_row(samples: _Samples, bags: Tensor, shape: torch.Size) -> Tensor:
    """(S, M, D): for each row of the values, the weighted output gradients that read it."""
    if not samples.row.numel():
        return bags.new_zeros(shape)
    x, y = samples.fraction.unbind(-1)
    shares = torch.stack([(1 - x) * (1 - y), x * (1 - y), (1 - x) * y, x * y], dim=1)
    shares = (shares * samples.weights[:, None]).masked_fill_(~samples.inside, 0)
    # Stable: samples of one row are summed in the order of queries, corners, levels and points.
    rows, order = samples.row.flatten().sort(stable=True)
    num_rows = shape[:2].numel()
    starts = torch.searchsorted(rows, torch.arange(num_rows, dtype=rows.dtype, device=rows.device))
    sums = F.embedding_bag(
        order // samples.row.shape[1:].numel(),
        bags,
        starts,
        mode="sum",
        per_sample_weights=shares.flatten().index_select(0, order),
    )
    return sums.view(shape)
