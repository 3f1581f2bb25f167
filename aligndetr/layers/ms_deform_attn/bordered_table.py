"""The values of all levels in one table, each level with a border of zeros around it.

A sample's four corners are then cells of the table wherever it lies, and need no masks.

Shapes: B batch, S tokens over all levels, M heads, D head dim, R cells in the table.
"""

from collections.abc import Iterator

from torch import Tensor


def padded_area(h: int, w: int) -> int:
    """Cells of a bordered map: two more on the left of each row, two more rows above and below.

    The right border is the left one of the next row.
    """
    return (h + 4) * (w + 2)


def table_cells(spatial_shapes: list[tuple[int, int]]) -> int:
    """R; the last two are the right border of the last map's last row."""
    return sum(padded_area(h, w) for h, w in spatial_shapes) + 2


def pad_levels(value: Tensor, spatial_shapes: list[tuple[int, int]]) -> Tensor:
    """(B, S, M, D) to the table (B, R, M, D), every map with a border of zeros."""
    batch, _, heads, head_dim = value.shape
    table = value.new_empty(batch, table_cells(spatial_shapes), heads, head_dim)
    for bordered, level in _level_views(table, value, spatial_shapes):
        bordered[:, :2] = 0
        bordered[:, -2:] = 0
        bordered[:, 2:-2, :2] = 0
        bordered[:, 2:-2, 2:] = level
    table[:, -2:] = 0
    return table


def crop_levels(table: Tensor, spatial_shapes: list[tuple[int, int]], value: Tensor) -> Tensor:
    """`pad_levels` undone: the (B, S, M, D) of `value` from the table."""
    cropped = value.new_empty(value.shape)
    for bordered, level in _level_views(table, cropped, spatial_shapes):
        level.copy_(bordered[:, 2:-2, 2:])
    return cropped


def _level_views(
    table: Tensor, tokens: Tensor, spatial_shapes: list[tuple[int, int]]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each level, the bordered map in the table, (B, h + 4, w + 2, M, D), and (B, h, w, M, D)
    in the tokens, both views."""
    in_table = table[:, :-2].split([padded_area(h, w) for h, w in spatial_shapes], dim=1)
    in_tokens = tokens.split([h * w for h, w in spatial_shapes], dim=1)
    for (h, w), bordered, plain in zip(spatial_shapes, in_table, in_tokens, strict=True):
        yield bordered.unflatten(1, (h + 4, w + 2)), plain.unflatten(1, (h, w))
