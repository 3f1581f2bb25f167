"""Deformable transformer decoder with iterative box refinement.

Differs from Deformable DETR in two ways: queries come with 4-d reference boxes, and each layer's
box gradient also reaches the layer before it ("look forward twice", DINO, section 3.5).
Shapes: B batch, Q queries (denoising and matching), S tokens, L levels, C embed_dim, N layers.
"""

from typing import Any

import torch
from torch import Tensor, nn

from aligndetr.layers import (
    FFN,
    MLP,
    BaseTransformerLayer,
    MultiheadAttention,
    MultiScaleDeformableAttention,
    TransformerLayerSequence,
    get_sine_pos_embed,
)
from aligndetr.modeling import refine_boxes


class TransformerDecoder(TransformerLayerSequence):
    """`num_layers` layers of self-attention, deformable cross-attention and FFN.

    The model sets `bbox_embed` and `class_embed`, one head per layer and one more for the
    encoder's proposals; they are the model's own heads, so they stand twice in a state_dict.

    Args:
        embed_dim: C, divisible by `num_heads`.
        num_heads, feedforward_dim, attn_dropout, ffn_dropout, num_layers: of the layers.
        return_intermediate: must be True, every layer is supervised; kept as a published key.
        num_feature_levels: L.
        look_forward_twice: pass each refined box with its gradient to the next layer's prediction.
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
        return_intermediate: bool = True,
        num_feature_levels: int = 4,
        look_forward_twice: bool = True,
        use_checkpoint: bool = False,
    ):
        if not return_intermediate:
            raise ValueError(
                "`return_intermediate` (=False) must be True: the criterion supervises every "
                "decoder layer. For a loss on the last layer alone set `model.aux_loss=False`."
            )
        super().__init__(
            transformer_layers=BaseTransformerLayer(
                attn=[
                    MultiheadAttention(
                        embed_dim=embed_dim,
                        num_heads=num_heads,
                        attn_drop=attn_dropout,
                        batch_first=True,
                    ),
                    MultiScaleDeformableAttention(
                        embed_dim=embed_dim,
                        num_heads=num_heads,
                        dropout=attn_dropout,
                        batch_first=True,
                        num_levels=num_feature_levels,
                    ),
                ],
                ffn=FFN(
                    embed_dim=embed_dim,
                    feedforward_dim=feedforward_dim,
                    output_dim=embed_dim,
                    ffn_drop=ffn_dropout,
                ),
                norm=nn.LayerNorm(embed_dim),
                operation_order=("self_attn", "norm", "cross_attn", "norm", "ffn", "norm"),
            ),
            num_layers=num_layers,
            use_checkpoint=use_checkpoint,
        )
        self.embed_dim = embed_dim
        self.look_forward_twice = look_forward_twice
        self.ref_point_head = MLP(2 * embed_dim, embed_dim, embed_dim, 2)
        self.norm = nn.LayerNorm(embed_dim)
        self.bbox_embed: Any = None
        self.class_embed: Any = None

    def forward(
        self,
        query: Tensor,
        memory: Tensor,
        memory_padding_mask: Tensor,
        reference_points: Tensor,
        spatial_shapes: list[tuple[int, int]],
        valid_ratios: Tensor,
        attn_masks: list[Tensor | None] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run all layers.

        Args:
            query: (B, Q, C).
            memory: (B, S, C) of the encoder, with `memory_padding_mask` (B, S), True = padding.
            reference_points: (B, Q, 4), cxcywh in [0, 1] of the unpadded image.
            valid_ratios: (B, L, 2), x before y.
            attn_masks: for self-attention and cross-attention; (Q, Q) bool, True = blocked, or
                None.

        Returns:
            states (N, B, Q, C), normed; references (N, B, Q, 4), the boxes that each layer starts
            from: `reference_points`, then its predecessor's, refined.
        """
        ratios = valid_ratios.repeat(1, 1, 2)[:, None]  # of the padded batch: (B, 1, L, 4)
        states, references = [], [reference_points]
        for index, layer in enumerate(self.layers):
            level_references = reference_points[:, :, None] * ratios
            query = self.run_layer(
                layer,
                query,
                key=memory,
                value=memory,
                query_pos=self._query_pos(level_references[:, :, 0]),
                attn_masks=attn_masks,
                key_padding_mask=memory_padding_mask,
                reference_points=level_references,
                spatial_shapes=spatial_shapes,
            )
            states.append(self.norm(query))
            if index + 1 == self.num_layers:
                break
            # Boxes are refined from the un-normed state but predicted, by the model, from the
            # normed one: one head on two inputs. The published weights were trained so.
            refined = refine_boxes(self.bbox_embed[index](query), reference_points)
            reference_points = refined.detach()
            references.append(refined if self.look_forward_twice else reference_points)
        return torch.stack(states), torch.stack(references)

    def _query_pos(self, boxes: Tensor) -> Tensor:
        """(B, Q, 4) boxes to the (B, Q, C) positional part of the queries."""
        sine = get_sine_pos_embed(boxes, num_pos_feats=self.embed_dim // 2)
        first: Any = self.ref_point_head.layers[0]
        return self.ref_point_head(sine.to(first.weight.dtype))
