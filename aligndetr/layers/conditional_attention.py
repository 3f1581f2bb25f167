"""Attention in which content and position have projections of their own.

Meng et al., "Conditional DETR for Fast Training Convergence", ICCV 2021. Both modules add the
residual, as `MultiheadAttention` does.
Shapes: B batch, Q queries, N keys, C embed_dim, M heads, D = C / M.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _ConditionalAttention(nn.Module):
    """What the two have in common; a subclass adds the projections of positions."""

    def __init__(
        self, embed_dim: int, num_heads: int, attn_drop: float = 0.0, proj_drop: float = 0.0
    ):
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(
                f"`embed_dim` (={embed_dim}) must be divisible by `num_heads` (={num_heads})"
            )
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.query_content_proj = nn.Linear(embed_dim, embed_dim)
        self.key_content_proj = nn.Linear(embed_dim, embed_dim)
        self.key_pos_proj = nn.Linear(embed_dim, embed_dim)
        self.value_proj = nn.Linear(embed_dim, embed_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)
        self.attn_drop = attn_drop
        self.proj_drop = nn.Dropout(proj_drop)

    def _heads(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, M, N, D)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None,
        key_padding_mask: Tensor | None,
    ) -> Tensor:
        """Heads (B, M, Q, E), (B, M, N, E) and (B, M, N, D) to the projected (B, Q, C)."""
        attended = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=_allowed(attn_mask, key_padding_mask),
            dropout_p=self.attn_drop if self.training else 0.0,
        )
        return self.proj_drop(self.out_proj(attended.transpose(1, 2).flatten(2)))


class ConditionalSelfAttention(_ConditionalAttention):
    """Self-attention; projected positions are added to projected contents.

    Args:
        embed_dim: C, divisible by `num_heads`.
        num_heads: M.
        attn_drop: dropout probability of the attention weights.
        proj_drop: dropout probability of the result, before the residual is added.
    """

    def __init__(
        self, embed_dim: int, num_heads: int, attn_drop: float = 0.0, proj_drop: float = 0.0
    ):
        super().__init__(embed_dim, num_heads, attn_drop, proj_drop)
        self.query_pos_proj = nn.Linear(embed_dim, embed_dim)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        identity: Tensor | None = None,
        query_pos: Tensor | None = None,
        key_pos: Tensor | None = None,
        attn_mask: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend from `query` to `key`.

        Args:
            query, query_pos: (B, Q, C), content and position.
            key, key_pos, value: (B, N, C).
            identity: (B, Q, C), the residual; None means `query`.
            attn_mask: (Q, N) bool, True = blocked.
            key_padding_mask: (B, N) bool, True = padding.

        Returns:
            (B, Q, C), residual included.
        """
        attended = self._attend(
            self._heads(self.query_content_proj(query) + self.query_pos_proj(query_pos)),
            self._heads(self.key_content_proj(key) + self.key_pos_proj(key_pos)),
            self._heads(self.value_proj(value)),
            attn_mask,
            key_padding_mask,
        )
        return (query if identity is None else identity) + attended


class ConditionalCrossAttention(_ConditionalAttention):
    """Cross-attention; within each head, contents and positions stand side by side.

    The product of a query and a key is the sum of that of their contents and that of their
    positions, divided by the square root of 2 D.

    Args:
        embed_dim, num_heads, attn_drop, proj_drop: as `ConditionalSelfAttention`.
        add_positions: also add projected positions to the contents. Conditional DETR does so in
            the first decoder layer, whose queries have no content yet.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        add_positions: bool = True,
    ):
        super().__init__(embed_dim, num_heads, attn_drop, proj_drop)
        self.query_pos_proj = nn.Linear(embed_dim, embed_dim) if add_positions else None
        self.query_pos_sine_proj = nn.Linear(embed_dim, embed_dim)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        identity: Tensor | None = None,
        query_pos: Tensor | None = None,
        key_pos: Tensor | None = None,
        query_sine_embed: Tensor | None = None,
        attn_mask: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend from `query` to `key`; arguments and result as of `ConditionalSelfAttention`.

        Args:
            query_pos: (B, Q, C); read only with `add_positions`.
            query_sine_embed: (B, Q, C), the position that is compared with `key_pos`.
        """
        content, key_content = self.query_content_proj(query), self.key_content_proj(key)
        position, key_position = (
            self.query_pos_sine_proj(query_sine_embed),
            self.key_pos_proj(key_pos),
        )
        if self.query_pos_proj is not None:
            content = content + self.query_pos_proj(query_pos)
            key_content = key_content + key_position
        attended = self._attend(
            torch.cat([self._heads(content), self._heads(position)], -1),
            torch.cat([self._heads(key_content), self._heads(key_position)], -1),
            self._heads(self.value_proj(value)),
            attn_mask,
            key_padding_mask,
        )
        return (query if identity is None else identity) + attended


def _allowed(attn_mask: Tensor | None, key_padding_mask: Tensor | None) -> Tensor | None:
    """Both masks in one, True = may attend, that broadcasts to (B, M, Q, N); None: all may."""
    if key_padding_mask is None:
        return None if attn_mask is None else ~attn_mask
    blocked = key_padding_mask[:, None, None]
    return ~(blocked if attn_mask is None else blocked | attn_mask)
