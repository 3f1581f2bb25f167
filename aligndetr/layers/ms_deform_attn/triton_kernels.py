"""Triton kernels of deformable attention.

Importing this file needs Triton; with TRITON_INTERPRET=1 set before Triton is first imported, the
kernels run on the CPU, in Python.

A program takes BLOCK_Q queries of one head and batch entry. Threads lie along the D features of a
row first, which are contiguous in memory: a row is read in loads of 64 or 128 bits. Numbers are
computed in the dtype of the locations, float32 or float64, whatever the values are stored in.

Tensors are contiguous: value (B, S, M, D), locations (B, Q, M, L, P, 2), weights (B, Q, M, L, P),
out (B, Q, M * D), levels (L, 3) int32 with height, width and first token.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["S", "Q"])
def forward_kernel(
    value,
    levels,
    locations,
    weights,
    out,
    S,
    Q,
    M: tl.constexpr,
    D: tl.constexpr,
    L: tl.constexpr,
    P: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Grid (cdiv(Q, BLOCK_Q), M, B)."""
    bag, present, feature, first_row = _program_place(S, Q, M, BLOCK_Q, BLOCK_D)
    value += first_row * D
    total = tl.zeros([BLOCK_Q, BLOCK_D], locations.dtype.element_ty)
    for level in range(L):
        height, width, first = _load_level(levels, level)
        for point in range(P):
            sample = bag * (L * P) + level * P + point
            x, y, weight, cell_x, cell_y = _load_sample(
                locations, weights, sample, present, height, width
            )
            top_left, top_right, bottom_left, bottom_right = _load_corners(
                value, cell_x, cell_y, height, width, first, feature, M, D, total.dtype
            )
            bottom = weight * y
            top = weight - bottom
            total += (top - top * x)[:, None] * top_left + (top * x)[:, None] * top_right
            total += (bottom - bottom * x)[:, None] * bottom_left
            total += (bottom * x)[:, None] * bottom_right
    offset = bag[:, None] * D + feature[None, :]
    mask = present[:, None] & (feature < D)[None, :]
    tl.store(out + offset, total.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["S", "Q"])
def backward_kernel(
    value,
    levels,
    locations,
    weights,
    grad_out,
    grad_value,
    grad_locations,
    grad_weights,
    S,
    Q,
    M: tl.constexpr,
    D: tl.constexpr,
    L: tl.constexpr,
    P: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ADD_TO_VALUE: tl.constexpr,
):
    """Grid (cdiv(Q, BLOCK_Q), M, B). Writes the gradients of locations and weights.

    With ADD_TO_VALUE it also adds to `grad_value`, which starts as zeros in the dtype of the
    locations, by atomics: in no fixed order. Without, nothing here depends on an order.
    """
    bag, present, feature, first_row = _program_place(S, Q, M, BLOCK_Q, BLOCK_D)
    value += first_row * D
    grad_value += first_row * D
    dtype: tl.constexpr = locations.dtype.element_ty
    offset = bag[:, None] * D + feature[None, :]
    mask = present[:, None] & (feature < D)[None, :]
    grad = tl.load(grad_out + offset, mask=mask, other=0.0).to(dtype)
    # Kept until all are there: stored one by one, each would cross from the threads of its row to
    # those that write it, through shared memory and a barrier.
    slot = tl.arange(0, BLOCK_K)
    for_x = tl.zeros([BLOCK_Q, BLOCK_K], dtype)
    for_y = tl.zeros([BLOCK_Q, BLOCK_K], dtype)
    for_weight = tl.zeros([BLOCK_Q, BLOCK_K], dtype)
    for level in range(L):
        height, width, first = _load_level(levels, level)
        for point in range(P):
            sample = bag * (L * P) + level * P + point
            x, y, weight, cell_x, cell_y = _load_sample(
                locations, weights, sample, present, height, width
            )
            top_left, top_right, bottom_left, bottom_right = _load_corners(
                value, cell_x, cell_y, height, width, first, feature, M, D, dtype
            )
            # Interpolated before they are summed over D: three sums instead of four.
            slope_top, slope_bottom = top_right - top_left, bottom_right - bottom_left
            top, bottom = top_left + x[:, None] * slope_top, bottom_left + x[:, None] * slope_bottom
            along_x = tl.sum(grad * (slope_top + y[:, None] * (slope_bottom - slope_top)), axis=1)
            along_y = tl.sum(grad * (bottom - top), axis=1)
            along_weight = tl.sum(grad * (top + y[:, None] * (bottom - top)), axis=1)
            here = (slot == level * P + point)[None, :]
            for_x = tl.where(here, (weight * width * along_x)[:, None], for_x)
            for_y = tl.where(here, (weight * height * along_y)[:, None], for_y)
            for_weight = tl.where(here, along_weight[:, None], for_weight)
            if ADD_TO_VALUE:
                _add_to_corners(
                    grad_value, grad, weight, x, y, cell_x, cell_y, height, width, first,
                    feature, M, D,
                )  # fmt: skip
    sample = (bag * (L * P))[:, None] + slot[None, :]
    mask = present[:, None] & (slot < L * P)[None, :]
    tl.store(grad_locations + 2 * sample, for_x, mask=mask)
    tl.store(grad_locations + 2 * sample + 1, for_y, mask=mask)
    tl.store(grad_weights + sample, for_weight, mask=mask)


@triton.jit
def _program_place(S, Q, M: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_D: tl.constexpr):
    """The program's bags (BLOCK_Q,), which of them exist, features (BLOCK_D,), first row.

    Bags and rows count from the start of the tensors and need 64 bits.
    """
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    query = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    bag = (batch * Q + query) * M + head
    return bag, query < Q, tl.arange(0, BLOCK_D), batch * S * M + head


@triton.jit
def _load_level(levels, level):
    levels += 3 * level
    return tl.load(levels), tl.load(levels + 1), tl.load(levels + 2)


@triton.jit
def _load_sample(locations, weights, sample, present, height, width):
    """Fractions (x, y) from the top left corner, attention weight, and that corner's cell."""
    # -2 is far outside: bags that do not exist read no value.
    x, cell_x = _cell(tl.load(locations + 2 * sample, mask=present, other=-2.0), width)
    y, cell_y = _cell(tl.load(locations + 2 * sample + 1, mask=present, other=-2.0), height)
    return x, y, tl.load(weights + sample, mask=present, other=0.0), cell_x, cell_y


@triton.jit
def _cell(location, size):
    """Fraction and cell along one axis, for a map of `size` cells."""
    # In the steps of grid_sample on CUDA: another rounding would, on a cell's centre, give the
    # slope of the other side.
    position = ((location * 2.0 - 1.0 + 1.0) * size - 1.0) * 0.5
    # Two cells outside or more, no corner is in the map, and a huge number overflows no index.
    # NaN, which alone differs from itself, becomes -2 here: it reads no value, but stays NaN in the
    # fraction and so in the result.
    clamped = tl.minimum(tl.maximum(position, -2.0), size + 1.0)
    floor = tl.floor(clamped)
    return tl.where(position == position, clamped - floor, position), floor.to(tl.int32)


@triton.jit
def _load_corners(
    value, cell_x, cell_y, height, width, first, feature, M: tl.constexpr, D: tl.constexpr,
    dtype: tl.constexpr,
):  # fmt: skip
    """Top left, top right, bottom left and bottom right rows (BLOCK_Q, BLOCK_D); zeros outside."""
    row = first + cell_y * width + cell_x
    left, right = _inside(cell_x, width), _inside(cell_x + 1, width)
    top, bottom = _inside(cell_y, height), _inside(cell_y + 1, height)
    top_left = _load_row(value, row, top & left, feature, M, D).to(dtype)
    top_right = _load_row(value, row + 1, top & right, feature, M, D).to(dtype)
    bottom_left = _load_row(value, row + width, bottom & left, feature, M, D).to(dtype)
    bottom_right = _load_row(value, row + width + 1, bottom & right, feature, M, D).to(dtype)
    return top_left, top_right, bottom_left, bottom_right


@triton.jit
def _add_to_corners(
    grad_value, grad, weight, x, y, cell_x, cell_y, height, width, first, feature,
    M: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    row = first + cell_y * width + cell_x
    left, right = _inside(cell_x, width), _inside(cell_x + 1, width)
    top, bottom = _inside(cell_y, height), _inside(cell_y + 1, height)
    lower = weight * y
    upper = weight - lower
    _add_row(grad_value, row, top & left, feature, (upper - upper * x)[:, None] * grad, M, D)
    _add_row(grad_value, row + 1, top & right, feature, (upper * x)[:, None] * grad, M, D)
    row += width
    _add_row(grad_value, row, bottom & left, feature, (lower - lower * x)[:, None] * grad, M, D)
    _add_row(grad_value, row + 1, bottom & right, feature, (lower * x)[:, None] * grad, M, D)


@triton.jit
def _inside(cell, size):
    return (cell >= 0) & (cell < size)


@triton.jit
def _load_row(value, row, inside, feature, M: tl.constexpr, D: tl.constexpr):
    offset, mask = _row_offset(row, inside, feature, M, D)
    return tl.load(value + offset, mask=mask, other=0.0)


@triton.jit
def _add_row(grad_value, row, inside, feature, addend, M: tl.constexpr, D: tl.constexpr):
    offset, mask = _row_offset(row, inside, feature, M, D)
    tl.atomic_add(grad_value + offset, addend, mask=mask, sem="relaxed")


@triton.jit
def _row_offset(row, inside, feature, M: tl.constexpr, D: tl.constexpr):
    offset = (row.to(tl.int64) * (M * D))[:, None] + feature[None, :]
    return offset, inside[:, None] & (feature < D)[None, :]
