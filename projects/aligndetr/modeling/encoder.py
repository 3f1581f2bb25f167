"""Deformable transformer encoder: each token attends to a few points on every level.

Shapes: B batch, S tokens over all levels, L levels, C embed_dim.
"""

from torch import Tensor, nn

from aligndetr.layers import (
    FFN,
    BaseTransformerLayer,
    MultiScaleDeformableAttention,
    TransformerLayerSequence,
)


class TransformerEncoder(TransformerLayerSequence):
    """`num_layers` layers of deformable self-attention and FFN, each followed by its norm.

    Args:
        embed_dim: C, divisible by `num_heads`.
        num_heads, feedforward_dim, attn_dropout, ffn_dropout, num_layers: of the layers.
        post_norm: one more LayerNorm after the last layer.
        num_feature_levels: L.
        use_checkpoint: compute the layers again in the backward pass, to save memory.
    """

    def __init__(
        self,
        embed_dim: int = 256,
        num_heads: int = 8,
        feedforward_dim: int = 1024,
        attn_dropout: float = 0.1,
        ffn_dropout: float = 0.1,
        num_layers: int = 6,
        post_norm: bool = False,
        num_feature_levels: int = 4,
        use_checkpoint: bool = False,
    ):
        super().__init__(
            transformer_layers=BaseTransformerLayer(
                attn=MultiScaleDeformableAttention(
                    embed_dim=embed_dim,
                    num_heads=num_heads,
                    dropout=attn_dropout,
                    batch_first=True,
                    num_levels=num_feature_levels,
                ),
                ffn=FFN(
                    embed_dim=embed_dim,
                    feedforward_dim=feedforward_dim,
                    output_dim=embed_dim,
                    num_fcs=2,
                    ffn_drop=ffn_dropout,
                ),
                norm=nn.LayerNorm(embed_dim),
                operation_order=("self_attn", "norm", "ffn", "norm"),
            ),
            num_layers=num_layers,
            use_checkpoint=use_checkpoint,
        )
        self.embed_dim = embed_dim
        self.post_norm_layer = nn.LayerNorm(embed_dim) if post_norm else None

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        padding_mask: Tensor,
        reference_points: Tensor,
        spatial_shapes: list[tuple[int, int]],
    ) -> Tensor:
        """Tokens, positions (B, S, C), padding mask (B, S), reference points (B, S, L, 2) in [0, 1]
        to memory (B, S, C)."""
        for layer in self.layers:
            tokens = self.run_layer(
                layer,
                tokens,
                query_pos=positions,
                query_key_padding_mask=padding_mask,
                reference_points=reference_points,
                spatial_shapes=spatial_shapes,
            )
        return tokens if self.post_norm_layer is None else self.post_norm_layer(tokens)
