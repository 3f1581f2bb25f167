"""Deformable attention on the CPU as one `embedding_bag`, in plain PyTorch.

A sample is four weighted rows of the value table, so a query's result for one head is a bag of
4 * L * P weighted rows: what `F.embedding_bag` sums without ever storing the rows. README.md
in this folder derives the indices and the gradients.

Shapes: B batch, Q queries, S tokens over all levels, L levels, M heads, P points, D head dim;
N = B * Q * M bags, n of them in a chunk, K = L * P samples in each, R = rows of the padded table.
"""

import functools
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Bags handled at once: indices and weights of a chunk (4 MB at K = 16) stay in the L2/L3 cache.
CHUNK = 8192


def ms_deform_attn_embedding_bag(
    value: Tensor,
    spatial_shapes: list[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Arguments and result as `multi_scale_deformable_attn`, all float32 or all float64.

    Differentiable once: a second derivative raises and needs `backend="reference"`.
    """
    return _EmbeddingBagAttention.apply(
        value, spatial_shapes, sampling_locations, attention_weights
    )


class _EmbeddingBagAttention(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)  # turns autocast off
    def forward(ctx, value, spatial_shapes, locations, weights):
        ctx.save_for_backward(value, locations, weights)
        ctx.spatial_shapes = spatial_shapes
        batch, queries, heads = locations.shape[:3]
        table = _pad_levels(value, spatial_shapes)
        out = value.new_empty(batch * queries * heads, value.shape[-1])
        for chunk, bags in _chunks(spatial_shapes, locations, weights):
            corner_weights = bags.corner_weights.flatten(1)
            out[chunk] = F.embedding_bag(
                bags.index.flatten(1), table, mode="sum", per_sample_weights=corner_weights
            )
        return out.view(batch, queries, heads * value.shape[-1])

    @staticmethod
    @once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx, grad_out):
        value, locations, weights = ctx.saved_tensors
        num_bags = locations.shape[:3].numel()
        num_samples = locations.shape[3:5].numel()
        table = _pad_levels(value, ctx.spatial_shapes)
        # Contiguous: the gradient of `.sum()` is one number with stride 0, slow to read as rows.
        grad_out = grad_out.contiguous().view(num_bags, value.shape[-1])
        grad_table = torch.zeros_like(table)
        grad_locations = locations.new_empty(num_bags, num_samples, 2)
        grad_weights = weights.new_empty(num_bags, num_samples)
        for chunk, bags in _chunks(ctx.spatial_shapes, locations, weights):
            products = _dot_with_corners(bags.index, grad_out[chunk], table)
            grad_locations[chunk], grad_weights[chunk] = _sample_gradients(products, bags)
            _add_to_corners(grad_table, bags, grad_out[chunk])
        return (
            _crop_levels(grad_table, ctx.spatial_shapes, value),
            None,
            grad_locations.view(locations.shape),
            grad_weights.view(weights.shape),
        )


class _Bags(NamedTuple):
    """A chunk of bags. The corners are top left, top right, bottom left, bottom right."""

    index: Tensor  # (n, 4, K) int32, rows of the padded table
    corner_weights: Tensor  # (n, 4, K), attention weight times bilinear coefficient
    weights: Tensor  # (n, K), attention weights
    fraction: Tensor  # (n, K, 2), (x, y) from the top left corner, in [0, 1]
    position: Tensor  # (n, K, 2), (x, y) in cells, 0 the centre of the first; may lie outside
    size: Tensor  # (K, 2), (w, h) of each sample's map


def _chunks(
    spatial_shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Iterator[tuple[slice, _Bags]]:
    """The bags of every query and head, in the order of `locations`, CHUNK at a time."""
    batch, queries, heads, _, points, _ = locations.shape
    size, start, row_length = _sample_constants(spatial_shapes, points)
    size_float = size.to(locations.dtype)
    # Row of the table at which each bag's batch entry and head begin; heads lie innermost.
    table_length = sum(_padded_areas(spatial_shapes)) * heads
    origin = torch.arange(batch, dtype=torch.int32)[:, None, None] * table_length
    origin = (origin + torch.arange(heads, dtype=torch.int32)).expand(batch, queries, heads)
    origin = origin.reshape(-1, 1)
    num_bags, num_samples = len(origin), len(size)
    locations = locations.reshape(num_bags, num_samples, 2)
    weights = weights.reshape(num_bags, num_samples)

    for first in range(0, num_bags, CHUNK):
        chunk = slice(first, first + CHUNK)
        position = _pixel_position(locations[chunk], size_float)
        # Samples a cell or more outside read border cells only. NaN stays NaN in `fraction`, and
        # so in the result; the clamp of `cell` turns what int() makes of it into a valid index.
        clamped = position.clamp(min=-1).minimum(size_float)
        cell = clamped.floor().int().clamp_(min=-1).minimum(size - 1)
        top_left = cell[..., 1] * row_length + cell[..., 0] + start
        index = _corner_index(top_left * heads + origin[chunk], row_length * heads, heads)
        fraction = clamped.sub_(cell)
        corner_weights = _corner_weights(weights[chunk], fraction)
        yield chunk, _Bags(index, corner_weights, weights[chunk], fraction, position, size_float)


def _pixel_position(locations: Tensor, size: Tensor) -> Tensor:
    """(n, K, 2) locations in cells, 0 the centre of the first: `location * size - 0.5`.

    In the steps and so with the rounding of `grid_sample`: where a sample lies on a cell's
    centre the slope jumps, and another rounding would give the slope of the other side.
    """
    grid = (locations * 2).sub_(1)
    return torch.addcmul(size.new_tensor(-0.5), grid.add_(1), size / 2)


def _sample_constants(
    spatial_shapes: list[tuple[int, int]], points: int
) -> tuple[Tensor, Tensor, Tensor]:
    """For each of K samples: its map's (w, h), first cell and row length in the padded table."""
    rows, padded_start = [], 0
    for (h, w), area in zip(spatial_shapes, _padded_areas(spatial_shapes), strict=True):
        first_cell = padded_start + (w + 2) + 1  # behind the border's first row and one cell
        rows.append((w, h, first_cell, w + 2))
        padded_start += area
    constants = torch.tensor(rows, dtype=torch.int32).repeat_interleave(points, dim=0)
    return constants[:, :2].contiguous(), constants[:, 2], constants[:, 3]


def _corner_index(top_left: Tensor, row_step: Tensor, column_step: int) -> Tensor:
    """(n, 4, K) table rows of the corners, from the (n, K) of the first."""
    bottom_left = top_left + row_step
    corners = (top_left, top_left + column_step, bottom_left, bottom_left + column_step)
    return torch.stack(corners, dim=1)


def _corner_weights(weights: Tensor, fraction: Tensor) -> Tensor:
    """(n, 4, K): each weight shared among the corners by bilinear interpolation."""
    x, y = fraction.unbind(-1)
    bottom = weights * y
    top = weights - bottom
    top_right, bottom_right = top * x, bottom * x
    return torch.stack([top - top_right, top_right, bottom - bottom_right, bottom_right], dim=1)


def _dot_with_corners(index: Tensor, grad_out: Tensor, table: Tensor) -> Tensor:
    """(n, 4, K): dot product of each bag's output gradient with the rows it summed.

    These are the entries `index` of `grad_out @ table.T`, which `sampled_addmm` computes alone.
    """
    _silence_sparse_warning()
    bag_length = index.shape[1:].numel()
    entries = torch.sparse_csr_tensor(
        torch.arange(0, index.numel() + 1, bag_length, dtype=torch.int32),
        index.flatten(),
        table.new_zeros(index.numel()),
        size=(len(index), len(table)),
        check_invariants=False,  # columns of a row are unsorted and may repeat, which is fine here
    )
    products = torch.sparse.sampled_addmm(entries, grad_out, table.t(), beta=0.0)
    return products.values().view(index.shape)


def _sample_gradients(products: Tensor, bags: _Bags) -> tuple[Tensor, Tensor]:
    """Gradients of locations (n, K, 2) and attention weights (n, K)."""
    top_left, top_right, bottom_left, bottom_right = products.unbind(1)
    x, y = bags.fraction.unbind(-1)
    slope_top, slope_bottom = top_right - top_left, bottom_right - bottom_left
    top = torch.addcmul(top_left, slope_top, x)
    bottom = torch.addcmul(bottom_left, slope_bottom, x)
    slope_y = bottom - top
    grad_weights = torch.addcmul(top, slope_y, y)
    # Where clamping moved the sample, moving it further changes nothing.
    inside = (bags.position >= -1) & (bags.position < bags.size)
    slope = torch.stack([torch.lerp(slope_top, slope_bottom, y), slope_y], dim=-1)
    return slope.mul_(bags.weights[..., None]).mul_(bags.size * inside), grad_weights


def _add_to_corners(grad_table: Tensor, bags: _Bags, grad_out: Tensor) -> None:
    """Add each bag's output gradient, weighted, to the table rows that the bag summed.

    The forward pass transposed: with the samples sorted by table row, each row's samples are a
    bag over `grad_out`. The sort is stable, so sums have a fixed order.
    """
    rows, order = bags.index.flatten().sort(stable=True)
    rows, counts = rows.unique_consecutive(return_counts=True)
    sums = F.embedding_bag(
        order // bags.index.shape[1:].numel(),
        grad_out,
        counts.cumsum(0) - counts,
        mode="sum",
        per_sample_weights=bags.corner_weights.flatten().index_select(0, order),
    )
    grad_table.index_add_(0, rows, sums)


def _padded_areas(spatial_shapes: list[tuple[int, int]]) -> list[int]:
    return [(h + 2) * (w + 2) for h, w in spatial_shapes]


def _pad_levels(value: Tensor, spatial_shapes: list[tuple[int, int]]) -> Tensor:
    """(B, S, M, D) to the (R, D) table, every map with a border of one cell of zeros."""
    batch, _, heads, head_dim = value.shape
    table = value.new_zeros(batch, sum(_padded_areas(spatial_shapes)), heads, head_dim)
    for inner, level in _level_views(table, value, spatial_shapes):
        inner.copy_(level)
    return table.view(-1, head_dim)


def _crop_levels(table: Tensor, spatial_shapes: list[tuple[int, int]], value: Tensor) -> Tensor:
    """`_pad_levels` undone: the (B, S, M, D) of `value` from the table."""
    batch, _, heads, head_dim = value.shape
    table = table.view(batch, sum(_padded_areas(spatial_shapes)), heads, head_dim)
    cropped = value.new_empty(value.shape)
    for inner, level in _level_views(table, cropped, spatial_shapes):
        level.copy_(inner)
    return cropped


def _level_views(
    table: Tensor, tokens: Tensor, spatial_shapes: list[tuple[int, int]]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each level, (B, h, w, M, D) views into the padded table and into the tokens."""
    in_table = table.split(_padded_areas(spatial_shapes), dim=1)
    in_tokens = tokens.split([h * w for h, w in spatial_shapes], dim=1)
    for (h, w), padded, plain in zip(spatial_shapes, in_table, in_tokens, strict=True):
        yield padded.unflatten(1, (h + 2, w + 2))[:, 1:-1, 1:-1], plain.unflatten(1, (h, w))


@functools.cache
def _silence_sparse_warning() -> None:
    """torch warns once per process that CSR tensors are in beta: let that be now, unheard."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.eye(1).to_sparse_csr()
