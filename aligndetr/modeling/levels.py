"""From feature maps of several levels to one sequence of tokens, and what padding does to it.

Shapes: B batch, S tokens over all levels, L levels, C embed_dim.
Masks: True = padding. A level's spatial shape is a pair of Python ints (h, w), never a tensor:
reading a tensor's value would make a GPU wait.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class FeatureLevels:
    """All levels of one batch, flattened row by row and joined from the finest to the coarsest."""

    tokens: Tensor  # (B, S, C)
    padding_mask: Tensor  # (B, S) bool
    positions: Tensor  # (B, S, C): sine embedding + the level's own embedding
    spatial_shapes: list[tuple[int, int]]  # L pairs (h, w), sum of h * w is S
    valid_ratios: Tensor  # (B, L, 2) as (x, y): the part of each map that is not padding

    @classmethod
    def from_maps(
        cls,
        maps: Sequence[Tensor],
        masks: Sequence[Tensor],
        position_maps: Sequence[Tensor],
        level_embeds: Tensor,
    ) -> "FeatureLevels":
        """Maps (B, C, h, w), masks (B, h, w), position maps like the maps, level_embeds (L, C)."""
        if len(maps) != len(level_embeds):
            raise ValueError(
                f"got {len(maps)} feature maps but `num_feature_levels` is {len(level_embeds)}; "
                "`model.neck.num_outs` and `model.transformer.num_feature_levels` must agree."
            )
        positions = [
            _to_tokens(position) + embed
            for position, embed in zip(position_maps, level_embeds, strict=True)
        ]
        tokens = torch.cat([_to_tokens(feature) for feature in maps], 1)
        return cls(
            tokens=tokens,
            padding_mask=torch.cat([mask.flatten(1) for mask in masks], 1),
            positions=torch.cat(positions, 1).to(tokens.dtype),
            spatial_shapes=[(feature.shape[-2], feature.shape[-1]) for feature in maps],
            valid_ratios=torch.stack([valid_ratio(mask) for mask in masks], 1),
        )


def _to_tokens(feature: Tensor) -> Tensor:
    return feature.flatten(2).transpose(1, 2)


def padding_masks(
    image_sizes: Sequence[Sequence[int]],
    padded_size: Sequence[int],
    map_sizes: Sequence[Sequence[int]],
    device: torch.device,
) -> list[Tensor]:
    """Padding of each level's map for images of `image_sizes` (h, w) in the top left corner.

    Returns:
        One (B, h, w) bool mask per level; a cell is padding where the pixel at its top left
        corner is (nearest-neighbour resizing, as in DETR).
    """
    mask = torch.ones(len(image_sizes), *padded_size, device=device)
    for row, (height, width) in zip(mask, image_sizes, strict=True):
        row[:height, :width] = 0
    return [F.interpolate(mask[None], size=size)[0].bool() for size in map_sizes]


def valid_ratio(mask: Tensor) -> Tensor:
    """(B, h, w) mask to (B, 2): the share of columns (x) and rows (y) that are not padding."""
    height, width = mask.shape[1:]
    rows = (~mask[:, :, 0]).sum(1)
    columns = (~mask[:, 0, :]).sum(1)
    return torch.stack([columns.float() / width, rows.float() / height], -1)


def encoder_reference_points(
    spatial_shapes: Sequence[tuple[int, int]], valid_ratios: Tensor
) -> Tensor:
    """The place of each token, as seen on each level.

    Args:
        spatial_shapes: L pairs (h, w).
        valid_ratios: (B, L, 2), x before y.

    Returns:
        (B, S, L, 2), x before y. A token at the same place of the picture has other coordinates on
        each level, since the share of padding differs from level to level by rounding.
    """
    points = []
    for level, (height, width) in enumerate(spatial_shapes):
        ratio_x, ratio_y = valid_ratios[:, level].unbind(-1)
        valid_cells = torch.stack([ratio_x * width, ratio_y * height], -1)
        centres = cell_centres((height, width), valid_ratios.device)
        points.append(centres / valid_cells[:, None])
    return torch.cat(points, 1)[:, :, None] * valid_ratios[:, None]


def cell_centres(shape: tuple[int, int], device: torch.device) -> Tensor:
    """(h * w, 2) float32 centres of the cells of an h x w map, (x, y) in cells, row by row."""
    height, width = shape
    y = torch.arange(height, dtype=torch.float32, device=device) + 0.5
    x = torch.arange(width, dtype=torch.float32, device=device) + 0.5
    grid = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], -1)
    return grid.flatten(0, 1)
