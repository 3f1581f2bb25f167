"""Deformable attention on the CPU as one `embedding_bag`: PyTorch, and scipy for the backward pass.

A sample is four weighted rows of the value table, so a query's result for one head is a bag of
4 * L * P weighted rows: what `F.embedding_bag` sums without ever storing the rows. README.md
in this folder derives the indices and the gradients.

Shapes: B batch, Q queries, S tokens over all levels, L levels, M heads, P points, D head dim;
K = L * P samples in a bag, n bags in a part, R cells in the table of one image.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .bordered_table import crop_levels, pad_levels, padded_area
from .sparse_products import add_to_rows, dot_with_rows

# Bags handled at once: indices and weights of a part (8 MB at K = 16) stay in the L3 cache.
PART = 16384


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
        table = pad_levels(value, spatial_shapes)
        rows = table.flatten(1, 2)  # a row for each cell and head, heads side by side
        maps = _Maps.of(spatial_shapes, locations, cell_stride=heads, head_stride=1)
        out = value.new_empty(batch, queries, heads, value.shape[-1])
        for part in _parts(batch, queries, heads, heads):
            bags = _make_bags(part, maps, locations, weights)
            part.write(
                out,
                F.embedding_bag(
                    bags.index.flatten(1),
                    rows[part.image],
                    mode="sum",
                    per_sample_weights=bags.corner_weights.flatten(1),
                ),
            )
        return out.flatten(2)

    @staticmethod
    @once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx, grad_out):
        value, locations, weights = ctx.saved_tensors
        batch, queries, heads = locations.shape[:3]
        # Heads outside: a few heads' rows and gradients are one small table.
        table = pad_levels(value, ctx.spatial_shapes).transpose(1, 2).contiguous()
        grad_table = torch.zeros_like(table)
        maps = _Maps.of(ctx.spatial_shapes, locations, cell_stride=1, head_stride=table.shape[2])
        grad_out = grad_out.view(batch, queries, heads, value.shape[-1])
        grad_locations = locations.new_empty(locations.shape)
        grad_weights = weights.new_empty(weights.shape)
        for part in _parts(batch, queries, heads, max(1, PART // max(queries, 1))):
            bags = _make_bags(part, maps, locations, weights)
            grad_bags = part.read(grad_out)
            rows = part.of_table(table)
            grad_x, grad_y, grad_weight = _sample_gradients(
                dot_with_rows(grad_bags, bags.index, rows), bags
            )
            part.write(grad_locations[..., 0], grad_x)
            part.write(grad_locations[..., 1], grad_y)
            part.write(grad_weights, grad_weight)
            add_to_rows(part.of_table(grad_table), bags.index, bags.corner_weights, grad_bags)
        return (
            crop_levels(grad_table.transpose(1, 2), ctx.spatial_shapes, value),
            None,
            grad_locations,
            grad_weights,
        )


class _Part(NamedTuple):
    """Some queries and heads of one image; its bags lie in the order (query, head)."""

    image: int
    heads: slice
    queries: slice

    def of(self, tensor: Tensor) -> Tensor:
        """(queries, heads, ...), a view of a (B, Q, M, ...) tensor."""
        return tensor[self.image, self.queries, self.heads]

    def read(self, tensor: Tensor) -> Tensor:
        """(n, ...), this part's bags of a (B, Q, M, ...) tensor, side by side.

        (`sampled_addmm` and `addmm` misread rows with strides of their own.)
        """
        return self.of(tensor).contiguous().flatten(0, 1)

    def write(self, tensor: Tensor, bags: Tensor) -> None:
        """Set this part of a (B, Q, M, ...) tensor from the (n, ...) `bags`."""
        target = self.of(tensor)
        target.copy_(bags.view(target.shape))

    def of_table(self, table: Tensor) -> Tensor:
        """The rows that this part's bags refer to, a view of (B, M, R, D)."""
        return table[self.image, self.heads].flatten(0, 1)


def _parts(batch: int, queries: int, heads: int, most_heads: int) -> Iterator[_Part]:
    """All bags, in parts of about equal size, of at most PART bags and `most_heads` heads."""
    heads_at_once = _share(heads, most_heads)
    queries_at_once = _share(queries, max(1, PART // heads_at_once))
    for image in range(batch):
        for head in range(0, heads, heads_at_once):
            for query in range(0, queries, queries_at_once):
                yield _Part(
                    image,
                    slice(head, min(head + heads_at_once, heads)),
                    slice(query, query + queries_at_once),
                )


def _share(number: int, most: int) -> int:
    """Size of equal shares of `number`, none larger than `most`; at least 1."""
    return max(1, math.ceil(number / max(1, math.ceil(number / most))))


class _Maps(NamedTuple):
    """Where the samples of a bag find their cells: numbers of their maps, for each of the K."""

    size: Tensor  # (2, 1, 1, K), w and h, in the dtype of the locations
    cell_stride: int  # rows of the table from a cell to the next
    first_row: Tensor  # (M, K) int32, of each head, row of the table that holds cell (0, 0)
    row_of_cells: Tensor  # (K,) int32, rows of the table from a cell to the one below
    corners: Tensor  # (4, K) int32, rows of the table from a cell to itself, right, below, both

    @classmethod
    def of(
        cls,
        spatial_shapes: list[tuple[int, int]],
        locations: Tensor,
        cell_stride: int,
        head_stride: int,
    ) -> "_Maps":
        """For (B, Q, M, L, P, 2) locations; strides: rows from a cell to the next, from a head."""
        maps, start = [], 0
        for h, w in spatial_shapes:
            first_cell = start + 2 * (w + 2) + 2  # behind two rows and two cells of border
            maps.append((w, h, first_cell * cell_stride, (w + 2) * cell_stride))
            start += padded_area(h, w)
        heads, points = locations.shape[2], locations.shape[4]
        width, height, first_row, below = (
            torch.tensor(maps, dtype=torch.int32).repeat_interleave(points, dim=0).t().contiguous()
        )
        of_head = torch.arange(heads, dtype=torch.int32)[:, None] * head_stride
        right = torch.full_like(below, cell_stride)
        return cls(
            torch.stack([width, height])[:, None, None].to(locations.dtype),
            cell_stride,
            first_row + of_head,
            below,
            torch.stack([torch.zeros_like(below), right, below, below + right]),
        )


class _Bags(NamedTuple):
    """Bags of a part. The corners are top left, top right, bottom left, bottom right."""

    index: Tensor  # (n, 4, K) int32, rows of the part's table
    corner_weights: Tensor  # (n, 4, K), attention weight times bilinear coefficient
    weights: Tensor  # (n, K), attention weights
    fraction: Tensor  # (2, n, K), x and y from the top left corner, in [0, 1)
    size: Tensor  # (2, 1, K), w and h of each sample's map


def _make_bags(part: _Part, maps: _Maps, locations: Tensor, weights: Tensor) -> _Bags:
    position = _pixel_position(part.of(locations).flatten(2, 3), maps.size)
    # A sample two cells outside reads border cells only, and moving it changes nothing.
    torch.clamp(position, position.new_tensor(-2.0), maps.size, out=position)
    cell = position.floor()
    fraction = position.sub_(cell)
    # NaN stays NaN in `fraction`, and so in the result; its cell is made a valid one.
    column, row = cell.nan_to_num_(0.0).int()
    first_row = maps.first_row[: part.heads.stop - part.heads.start]
    top_left = column.mul_(maps.cell_stride).add_(first_row).addcmul_(row, maps.row_of_cells)
    index = top_left.unsqueeze(2) + maps.corners
    weights = part.read(weights).flatten(1)
    fraction = fraction.flatten(1, 2)
    return _Bags(
        index.flatten(0, 1),
        _corner_weights(weights, fraction),
        weights,
        fraction,
        maps.size[:, 0],
    )


def _pixel_position(locations: Tensor, size: Tensor) -> Tensor:
    """(2, queries, heads, K), x and y in cells: `location * size - 0.5`, 0 the first's centre.

    In the steps and so with the rounding of `grid_sample`: where a sample lies on a cell's
    centre the slope jumps, and another rounding would give the slope of the other side.
    """
    # x and y apart: what follows is several times faster on numbers that lie side by side.
    grid = locations.new_empty(2, *locations.shape[:-1])
    for axis in (0, 1):
        torch.add(locations.new_tensor(-1.0), locations[..., axis], alpha=2, out=grid[axis])
    return torch.addcmul(grid.new_tensor(-0.5), grid.add_(1), size / 2)


def _corner_weights(weights: Tensor, fraction: Tensor) -> Tensor:
    """(n, 4, K): each weight shared among the corners by bilinear interpolation."""
    x, y = fraction
    shares = weights.new_empty(len(weights), 4, weights.shape[1])
    top_left, top_right, bottom_left, bottom_right = shares.unbind(1)
    bottom = weights * y
    top = weights - bottom
    torch.mul(top, x, out=top_right)
    torch.sub(top, top_right, out=top_left)
    torch.mul(bottom, x, out=bottom_right)
    torch.sub(bottom, bottom_right, out=bottom_left)
    return shares


def _sample_gradients(products: Tensor, bags: _Bags) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a location's x, of its y, and of the attention weight, each (n, K)."""
    top_left, top_right, bottom_left, bottom_right = products.unbind(1)
    x, y = bags.fraction
    slope_top, slope_bottom = top_right - top_left, bottom_right - bottom_left
    top = torch.addcmul(top_left, slope_top, x)
    bottom = torch.addcmul(bottom_left, slope_bottom, x)
    slope_y = bottom - top
    slope_x = torch.lerp(slope_top, slope_bottom, y)
    width, height = bags.size
    grad_weight = torch.addcmul(top, slope_y, y)
    grad_x = slope_x.mul_(bags.weights).mul_(width)
    grad_y = slope_y.mul_(bags.weights).mul_(height)
    return grad_x, grad_y, grad_weight
