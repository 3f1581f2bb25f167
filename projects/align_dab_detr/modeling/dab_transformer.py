"""DAB-DETR's transformer: queries are anchor boxes, which every decoder layer refines.

Liu et al., "DAB-DETR: Dynamic Anchor Boxes are Better Queries for DETR", ICLR 2022. Names of
modules, and so of weights, are those of detrex.
Shapes: B batch, Q queries, S tokens of the one feature map, C embed_dim, N decoder layers.
Boxes are cxcywh in [0, 1].
"""

from typing import Any

import torch
from torch import Tensor, nn

from aligndetr.layers import (
    FFN,
    MLP,
    BaseTransformerLayer,
    ConditionalCrossAttention,
    ConditionalSelfAttention,
    MultiheadAttention,
    TransformerLayerSequence,
    get_sine_pos_embed,
)
from aligndetr.modeling import refine_boxes
from aligndetr.modeling.widths import check_same_width

MIN_EDGE = 1e-4
"""Of an anchor, as a share of the image: attention is divided by its width and height."""


class DabDetrTransformerEncoder(TransformerLayerSequence):
    """`num_layers` layers of self-attention and FFN; contents scale the positions of each.

    Args:
        embed_dim: C, divisible by `num_heads`.
        num_heads, attn_dropout, feedforward_dim, ffn_dropout, num_layers: of the layers.
        activation: of the FFN, copied for each layer; None means ReLU.
        use_checkpoint: compute the layers again in the backward pass, to save memory.
    """

    def __init__(
        self,
        embed_dim: int = 256,
        num_heads: int = 8,
        attn_dropout: float = 0.0,
        feedforward_dim: int = 2048,
        ffn_dropout: float = 0.0,
        activation: nn.Module | None = None,
        num_layers: int = 6,
        use_checkpoint: bool = False,
    ):
        layer = BaseTransformerLayer(
            attn=MultiheadAttention(embed_dim, num_heads, attn_drop=attn_dropout, batch_first=True),
            ffn=FFN(embed_dim, feedforward_dim, activation=activation, ffn_drop=ffn_dropout),
            norm=nn.LayerNorm(embed_dim),
            operation_order=("self_attn", "norm", "ffn", "norm"),
        )
        super().__init__(layer, num_layers, use_checkpoint)
        self.embed_dim = embed_dim
        self.query_scale = MLP(embed_dim, embed_dim, embed_dim, 2)

    def forward(self, tokens: Tensor, positions: Tensor, padding_mask: Tensor) -> Tensor:
        """Tokens and positions (B, S, C), padding mask (B, S), True = padding, to memory
        (B, S, C)."""
        for layer in self.layers:
            tokens = self.run_layer(
                layer,
                tokens,
                query_pos=positions * self.query_scale(tokens),
                query_key_padding_mask=padding_mask,
            )
        return tokens


class DabDetrTransformerDecoder(TransformerLayerSequence):
    """`num_layers` layers of self-attention, conditional cross-attention and FFN.

    The model sets `bbox_embed`, its own box head, which so stands twice in a state_dict.

    Args:
        embed_dim: C, even and divisible by `num_heads`.
        num_heads, attn_dropout, feedforward_dim, ffn_dropout, activation, num_layers,
            use_checkpoint: as `DabDetrTransformerEncoder`.
        modulate_hw_attn: scale positional attention along x by the width, along y by the height
            (section 4.4 of the paper).
    """

    def __init__(
        self,
        embed_dim: int = 256,
        num_heads: int = 8,
        attn_dropout: float = 0.0,
        feedforward_dim: int = 2048,
        ffn_dropout: float = 0.0,
        activation: nn.Module | None = None,
        num_layers: int = 6,
        modulate_hw_attn: bool = True,
        use_checkpoint: bool = False,
    ):
        if embed_dim % 2:
            raise ValueError(f"`embed_dim` (={embed_dim}) must be even: half of it is for x")
        layers = [
            BaseTransformerLayer(
                attn=[
                    ConditionalSelfAttention(embed_dim, num_heads, attn_dropout),
                    ConditionalCrossAttention(
                        embed_dim, num_heads, attn_dropout, add_positions=index == 0
                    ),
                ],
                ffn=FFN(embed_dim, feedforward_dim, activation=activation, ffn_drop=ffn_dropout),
                norm=nn.LayerNorm(embed_dim),
                operation_order=("self_attn", "norm", "cross_attn", "norm", "ffn", "norm"),
            )
            for index in range(num_layers)
        ]
        super().__init__(layers, num_layers, use_checkpoint)
        self.embed_dim = embed_dim
        self.modulate_hw_attn = modulate_hw_attn
        if num_layers > 1:  # the first layer's queries have no content to scale by
            self.query_scale = MLP(embed_dim, embed_dim, embed_dim, 2)
        self.ref_point_head = MLP(2 * embed_dim, embed_dim, embed_dim, 2)
        if modulate_hw_attn:
            self.ref_anchor_head = MLP(embed_dim, embed_dim, 2, 2)
        self.post_norm_layer = nn.LayerNorm(embed_dim)
        self.bbox_embed: Any = None

    def forward(
        self,
        query: Tensor,
        memory: Tensor,
        memory_pos: Tensor,
        memory_padding_mask: Tensor,
        boxes: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Run all layers.

        Args:
            query: (B, Q, C).
            memory, memory_pos: (B, S, C) of the encoder, with `memory_padding_mask` (B, S), True =
                padding.
            boxes: (B, Q, 4), the anchors.

        Returns:
            states (N, B, Q, C), normed; references (N, B, Q, 4), the boxes that each layer starts
            from, with the gradient of the layer that refined them.
        """
        states, references = [], [boxes]
        for index, layer in enumerate(self.layers):
            sine = get_sine_pos_embed(boxes, num_pos_feats=self.embed_dim // 2).to(memory.dtype)
            position = sine[..., : self.embed_dim]  # y, then x
            if index > 0:
                position = position * self.query_scale(query)
            if self.modulate_hw_attn:
                position = position * self.size_factors(query, boxes)
            query = self.run_layer(
                layer,
                query,
                key=memory,
                value=memory,
                query_pos=self.ref_point_head(sine),
                key_pos=memory_pos,
                query_sine_embed=position,
                key_padding_mask=memory_padding_mask,
            )
            states.append(self.post_norm_layer(query))
            if index + 1 < self.num_layers:
                # From the un-normed state; the model predicts from the normed one with this head.
                refined = refine_boxes(self.bbox_embed(query), boxes)
                references.append(refined)
                boxes = refined.detach()
        return torch.stack(states), torch.stack(references)

    def size_factors(self, query: Tensor, boxes: Tensor) -> Tensor:
        """What modulates positional attention: w_ref / w for features of x, h_ref / h for y.

        Args:
            query: (B, Q, C), from which w_ref and h_ref in (0, 1) are predicted.
            boxes: (B, Q, 4).

        Returns:
            (B, Q, C), as the features of positions: the first half is for y.
        """
        reference_size = self.ref_anchor_head(query).sigmoid()
        ratio = reference_size / boxes[..., 2:].clamp(min=MIN_EDGE).to(query.dtype)
        of_x, of_y = ratio.split(1, dim=-1)
        half = self.embed_dim // 2
        return torch.cat([of_y.expand(-1, -1, half), of_x.expand(-1, -1, half)], dim=-1)


class DabDetrTransformer(nn.Module):
    """Encoder and decoder.

    Args:
        encoder, decoder: of one embed_dim C.
    """

    def __init__(self, encoder: DabDetrTransformerEncoder, decoder: DabDetrTransformerDecoder):
        super().__init__()
        check_same_width(encoder, decoder)
        self.encoder = encoder
        self.decoder = decoder
        self.embed_dim = encoder.embed_dim
        self.init_weights()

    def init_weights(self) -> None:
        """Xavier for every matrix."""
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(
        self, x: Tensor, mask: Tensor, anchor_box_embed: Tensor, pos_embed: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Run encoder and decoder.

        Args:
            x: (B, C, h, w).
            mask: (B, h, w) bool, True = padding.
            anchor_box_embed: (Q, 4), logits of the anchors.
            pos_embed: (B, C, h, w).

        Returns:
            As the decoder: states (N, B, Q, C) and references (N, B, Q, 4).
        """
        tokens, positions = (maps.flatten(2).transpose(1, 2) for maps in (x, pos_embed))
        positions, padding_mask = positions.to(tokens.dtype), mask.flatten(1)
        memory = self.encoder(tokens, positions, padding_mask)
        batch = x.shape[0]  # not len(x), which a tracer takes for a constant
        boxes = anchor_box_embed.sigmoid().expand(batch, -1, -1)
        query = memory.new_zeros(batch, boxes.shape[1], self.embed_dim)
        return self.decoder(query, memory, positions, padding_mask, boxes)
