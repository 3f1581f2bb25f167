"""Multi-head attention with position embeddings and residual, around `torch.nn`'s.

Shapes: B batch, Q queries, N keys, C embed_dim.
"""

from torch import Tensor, nn


class MultiheadAttention(nn.Module):
    """`nn.MultiheadAttention` that adds positions to query and key, and the residual.

    Positions reach queries and keys but not values. Attention weights are never returned, so
    torch may use its fused `scaled_dot_product_attention`.

    Args:
        embed_dim: features C, divisible by `num_heads`.
        num_heads: number of heads.
        attn_drop: dropout probability of the attention weights.
        proj_drop: dropout probability of the result, before the residual is added.
        batch_first: tensors are (B, Q, C) if True, (Q, B, C) if False.
        **kwargs: further arguments of `nn.MultiheadAttention`, which rejects unknown ones.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        batch_first: bool = False,
        **kwargs,
    ):
        super().__init__()
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.batch_first = batch_first
        self.attn = nn.MultiheadAttention(
            embed_dim, num_heads, dropout=attn_drop, batch_first=batch_first, **kwargs
        )
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        identity: Tensor | None = None,
        query_pos: Tensor | None = None,
        key_pos: Tensor | None = None,
        attn_mask: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend from `query` to `key`. Shapes are those of `batch_first=True`.

        Args:
            query: (B, Q, C).
            key: (B, N, C); None means `query`, without its position.
            value: (B, N, C); None means `key`, without its position.
            identity: (B, Q, C), the residual; None means `query`, without its position.
            query_pos: (B, Q, C), added to the query.
            key_pos: (B, N, C), added to the key; None means `query_pos` where that has the
                shape of `key`, as in detrex.
            attn_mask: (Q, N) or (B * num_heads, Q, N); bool with True = blocked, or float,
                added to the logits. A query with every key blocked gives NaN.
            key_padding_mask: (B, N) bool, True = padding.

        Returns:
            (B, Q, C), residual included.
        """
        identity = query if identity is None else identity
        key = query if key is None else key
        value = key if value is None else value
        if key_pos is None and query_pos is not None and query_pos.shape == key.shape:
            key_pos = query_pos
        if query_pos is not None:
            query = query + query_pos
        if key_pos is not None:
            key = key + key_pos
        attended, _ = self.attn(
            query,
            key,
            value,
            key_padding_mask=key_padding_mask,
            attn_mask=attn_mask,
            need_weights=False,
        )
        return identity + self.proj_drop(attended)
