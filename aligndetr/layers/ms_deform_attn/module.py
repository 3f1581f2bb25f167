"""Multi-scale deformable attention with its projections (Deformable DETR, section 4.1).

Shapes: B batch, Q queries, S tokens over all levels, L levels, M heads, P points, C embed_dim,
D = C / M.
"""

import contextlib
import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from .functional import as_shape_list, multi_scale_deformable_attn


class MultiScaleDeformableAttention(nn.Module):
    """Each query samples P points per head and level around its reference point.

    Args:
        embed_dim: features C, divisible by `num_heads`.
        num_heads, num_levels, num_points: M, L and P.
        img2col_step: batch entries that detrex's CUDA operator takes at once. Accepted and
            kept so that its configs build; nothing here reads it.
        dropout: dropout probability of the result, before the residual is added.
        batch_first: tensors are (B, Q, C) if True, (Q, B, C) if False.
    """

    def __init__(
        self,
        embed_dim: int = 256,
        num_heads: int = 8,
        num_levels: int = 4,
        num_points: int = 4,
        img2col_step: int = 64,
        dropout: float = 0.1,
        batch_first: bool = False,
    ):
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(
                f"`embed_dim` must be divisible by `num_heads`, got {embed_dim} and {num_heads}"
            )
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.num_levels = num_levels
        self.num_points = num_points
        self.img2col_step = img2col_step
        self.batch_first = batch_first
        samples = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(embed_dim, samples * 2)
        self.attention_weights = nn.Linear(embed_dim, samples)
        self.value_proj = nn.Linear(embed_dim, embed_dim)
        self.output_proj = nn.Linear(embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Equal weights for all samples; head m looks along direction m, point p p + 1 cells away.

        Directions are spread evenly over the circle and stretched to the unit square, so that
        the first points of eight heads are the eight neighbours of the reference point.
        """
        angles = torch.arange(self.num_heads, dtype=torch.float32) * (2 * math.pi / self.num_heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        directions = directions / directions.abs().amax(dim=-1, keepdim=True)
        distances = torch.arange(1, self.num_points + 1, dtype=torch.float32)
        offsets = directions[:, None, None, :] * distances[:, None]  # (M, 1, P, 2)
        offsets = offsets.expand(-1, self.num_levels, -1, -1)
        nn.init.zeros_(self.sampling_offsets.weight)
        self.sampling_offsets.bias.copy_(offsets.flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,  # noqa: ARG002 - attention modules are called alike
        value: Tensor | None = None,
        identity: Tensor | None = None,
        query_pos: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        reference_points: Tensor | None = None,
        spatial_shapes: Sequence[tuple[int, int]] | Tensor | None = None,
        level_start_index: Tensor | None = None,  # noqa: ARG002 - follows from spatial_shapes
    ) -> Tensor:
        """Sample and project. Shapes are those of `batch_first=True`.

        Args:
            query: (B, Q, C).
            key: not read; deformable attention has no keys.
            value: (B, S, C); None means `query`, without its position.
            identity: (B, Q, C), the residual; None means `query`, without its position.
            query_pos: (B, Q, C), added to the query.
            key_padding_mask: (B, S) bool, True = padding, whose value counts as zero.
            reference_points: (B, Q, L, 2), (x, y), offsets then count in cells of each level;
                or (B, Q, L, 4), cxcywh, offsets then count in half sizes of the box, divided
                by P. Both in [0, 1] over the padded map. Required.
            spatial_shapes: (h, w) of each level, see `multi_scale_deformable_attn`. Required.
            level_start_index: not read; detrex's callers pass it.

        Returns:
            (B, Q, C), residual included.

        Raises:
            ValueError: an argument is missing or its shape does not fit.
        """
        if reference_points is None or spatial_shapes is None:
            raise ValueError("deformable attention needs `reference_points` and `spatial_shapes`")
        spatial_shapes = as_shape_list(spatial_shapes)
        if value is None:
            value = query
        identity = query if identity is None else identity
        query = query if query_pos is None else query + query_pos
        if not self.batch_first:
            query, value = query.transpose(0, 1), value.transpose(0, 1)

        value = cast(Tensor, self.value_proj(value))
        if key_padding_mask is not None:
            value = value.masked_fill(key_padding_mask[..., None], 0)
        attended = multi_scale_deformable_attn(
            value.unflatten(-1, (self.num_heads, -1)),
            spatial_shapes,
            self._sampling_locations(query, reference_points, spatial_shapes),
            self._attention_weights(query),
        )
        out = self.output_proj(attended)
        if not self.batch_first:
            out = out.transpose(0, 1)
        return self.dropout(out) + identity

    def _attention_weights(self, query: Tensor) -> Tensor:
        """(B, Q, M, L, P), summing to 1 over levels and points."""
        logits = self.attention_weights(query).unflatten(-1, (self.num_heads, -1))
        return logits.softmax(-1).unflatten(-1, (self.num_levels, self.num_points))

    def _sampling_locations(
        self, query: Tensor, reference_points: Tensor, spatial_shapes: list[tuple[int, int]]
    ) -> Tensor:
        """(B, Q, M, L, P, 2) in at least float32, whatever the autocast."""
        num_coordinates = reference_points.shape[-1]
        if num_coordinates not in (2, 4) or reference_points.shape[-2] != self.num_levels:
            raise ValueError(
                f"`reference_points` must be (B, Q, {self.num_levels}, 2 or 4), "
                f"got {tuple(reference_points.shape)}"
            )
        # bfloat16 has 8 bits: on a map 100 cells wide a location would be off by 0.2 cells.
        with _autocast_off(query.device.type):
            offsets = self.sampling_offsets(query.to(self.sampling_offsets.weight.dtype))
        offsets = offsets.to(torch.promote_types(offsets.dtype, torch.float32))
        # Rows of L * P * 2 numbers, head after head: in the (..., P, 2) they stand for, the inner
        # dimensions are too short to be computed fast.
        offsets = offsets.unflatten(-1, (self.num_heads, -1))
        center = self._rows(reference_points[..., :2])
        if num_coordinates == 2:
            sizes = self._rows(_map_sizes(spatial_shapes, offsets))
            locations = torch.addcdiv(center, offsets, sizes)
        else:
            half_size = self._rows(reference_points[..., 2:] * 0.5)
            locations = torch.addcmul(center, offsets / self.num_points, half_size)
        return locations.unflatten(-1, (self.num_levels, self.num_points, 2))

    def _rows(self, of_levels: Tensor) -> Tensor:
        """(..., L, 2) to (..., 1, L * P * 2): repeated for each point, and for all heads."""
        of_points = of_levels[..., :, None, :].expand(*of_levels.shape[:-1], self.num_points, 2)
        return of_points.flatten(-3)[..., None, :]


def _map_sizes(spatial_shapes: list[tuple[int, int]], like: Tensor) -> Tensor:
    """(L, 2) tensor of (w, h), written on the device: a copy from the host would make it wait."""
    sizes = [like.new_full((), size) for h, w in spatial_shapes for size in (w, h)]
    return torch.stack(sizes).view(-1, 2)


def _autocast_off(device_type: str):
    # Before 2.14, torch.compile cannot follow the question.
    if not (torch.compiler.is_compiling() or torch.amp.is_autocast_available(device_type)):
        return contextlib.nullcontext()
    return torch.autocast(device_type, enabled=False)
