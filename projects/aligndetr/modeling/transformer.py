"""The two-stage deformable transformer: encoder, proposals from its tokens, decoder.

Shapes: B batch, Q matching queries, D denoising queries, S tokens over all levels, L levels,
C embed_dim, N decoder layers. Boxes are cxcywh in [0, 1].
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from aligndetr.layers import MultiScaleDeformableAttention, as_shape_list
from aligndetr.modeling import (
    FeatureLevels,
    TokenRanking,
    check_num_levels,
    encoder_reference_points,
    propose_from_tokens,
    valid_ratio,
)
from aligndetr.modeling.widths import check_same_width

from .decoder import TransformerDecoder
from .encoder import TransformerEncoder


class Transformer(nn.Module):
    """Encoder, two-stage proposals and decoder.

    Args:
        encoder, decoder: of one embed_dim C and one number of levels.
        num_feature_levels: L, at most 5: proposals of a sixth would be larger than the image.
        two_stage_num_proposals: Q; an image with fewer tokens gives all of them.
        learnt_init_query: queries start from a learnt embedding, else from the (detached) tokens
            that the proposals come from.
        num_hybrid_queries: H, the most extra queries that a training can ask `forward` for. They
            start from the proposals that come after the Q best.
    """

    def __init__(
        self,
        encoder: TransformerEncoder,
        decoder: TransformerDecoder,
        num_feature_levels: int = 4,
        two_stage_num_proposals: int = 900,
        learnt_init_query: bool = True,
        num_hybrid_queries: int = 0,
    ):
        super().__init__()
        check_num_levels(num_feature_levels)
        check_same_width(encoder, decoder)
        self.encoder = encoder
        self.decoder = decoder
        self.num_feature_levels = num_feature_levels
        self.two_stage_num_proposals = two_stage_num_proposals
        self.learnt_init_query = learnt_init_query
        self.num_hybrid_queries = num_hybrid_queries
        self.embed_dim = encoder.embed_dim

        self.level_embeds = nn.Parameter(torch.empty(num_feature_levels, self.embed_dim))
        if learnt_init_query:
            self.tgt_embed = nn.Embedding(two_stage_num_proposals, self.embed_dim)
            if num_hybrid_queries > 0:
                self.hybrid_embed = nn.Embedding(num_hybrid_queries, self.embed_dim)
        self.enc_output = nn.Linear(self.embed_dim, self.embed_dim)
        self.enc_output_norm = nn.LayerNorm(self.embed_dim)
        self.rank_tokens = TokenRanking()
        self.init_weights()

    def init_weights(self) -> None:
        """Xavier for every matrix, deformable attention's own scheme, normal level embeddings."""
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for module in self.modules():
            if isinstance(module, MultiScaleDeformableAttention):
                module.init_weights()
        nn.init.normal_(self.level_embeds)

    def forward(
        self,
        multi_level_feats: Sequence[Tensor],
        multi_level_masks: Sequence[Tensor],
        multi_level_pos_embeds: Sequence[Tensor],
        query_embed: tuple[Tensor | None, Tensor | None],
        attn_masks: list[Tensor | None] | None,
        num_hybrid: int = 0,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Run encoder and decoder.

        Args:
            multi_level_feats: L maps (B, C, h, w), from the finest to the coarsest.
            multi_level_masks: L masks (B, h, w), True = padding.
            multi_level_pos_embeds: L position embeddings (B, C, h, w).
            query_embed: content (B, D, C) and box logits (B, D, 4) of the denoising queries, which
                are put before the matching queries; (None, None) without.
            attn_masks: self-attention's (D + Q, D + Q) mask, True = blocked, and None for
                cross-attention.
            num_hybrid: extra queries, put behind the matching queries; what is said of D + Q below
                and of the mask then holds for D + Q + `num_hybrid`. Not more than H, nor than
                tokens are left.

        Returns:
            inter_states: (N, B, D + Q, C), normed.
            init_reference: (B, D + Q, 4), the boxes that the first layer starts from.
            inter_references: (N - 1, B, D + Q, 4), the boxes after each layer but the last, whose
                own nothing reads: the model predicts from its normed state.
            enc_state: (B, Q, C), the tokens that became proposals.
            enc_reference: (B, Q, 4), their boxes, with gradient.
        """
        levels = FeatureLevels.from_maps(
            multi_level_feats, multi_level_masks, multi_level_pos_embeds, self.level_embeds
        )
        memory = self.encoder(
            tokens=levels.tokens,
            positions=levels.positions,
            padding_mask=levels.padding_mask,
            reference_points=encoder_reference_points(levels.spatial_shapes, levels.valid_ratios),
            spatial_shapes=levels.spatial_shapes,
        )
        count = self.two_stage_num_proposals + num_hybrid
        state, boxes = self._select_proposals(memory, levels, count)
        num_queries = state.shape[1] - num_hybrid
        query, reference = self._initial_queries(state, boxes, query_embed, num_queries)
        enc_state, enc_reference = state[:, :num_queries], boxes[:, :num_queries]
        inter_states, references = self.decoder(
            query=query,
            memory=memory,
            memory_padding_mask=levels.padding_mask,
            reference_points=reference,
            spatial_shapes=levels.spatial_shapes,
            valid_ratios=levels.valid_ratios,
            attn_masks=attn_masks,
        )
        return inter_states, references[0], references[1:], enc_state, enc_reference

    def _select_proposals(
        self, memory: Tensor, levels: FeatureLevels, count: int
    ) -> tuple[Tensor, Tensor]:
        """The `count` tokens of highest class score, (B, count, C), best first, and their boxes,
        (B, count, 4); all tokens if they are fewer."""
        output_memory, proposals = self.gen_encoder_output_proposals(
            memory, levels.padding_mask, levels.spatial_shapes
        )
        class_head, box_head = self.decoder.class_embed[-1], self.decoder.bbox_embed[-1]
        # Detached, not under no_grad: autocast caches its copies of weights, and one made under
        # no_grad would cut the gradient of this head's later use.
        scores = class_head(output_memory.detach()).amax(-1)
        chosen = self.rank_tokens(scores, count)[..., None]
        enc_state = output_memory.gather(1, chosen.expand(-1, -1, self.embed_dim))
        # The box head runs on the chosen tokens only: nothing reads the others' boxes.
        delta = box_head(enc_state).to(torch.promote_types(enc_state.dtype, torch.float32))
        return enc_state, (delta + proposals.gather(1, chosen.expand(-1, -1, 4))).sigmoid()

    def _initial_queries(
        self,
        enc_state: Tensor,
        enc_reference: Tensor,
        query_embed: tuple[Tensor | None, Tensor | None],
        num_queries: int,
    ) -> tuple[Tensor, Tensor]:
        """Denoising, then matching, then hybrid queries: content (B, D + Q + H, C), boxes
        (B, D + Q + H, 4)."""
        if self.learnt_init_query:
            batch, count, _ = enc_state.shape
            content = self.tgt_embed.weight[:num_queries]
            if self.num_hybrid_queries and self.training:  # in the graph, though there be none
                content = torch.cat([content, self.hybrid_embed.weight[: count - num_queries]])
            query = content.expand(batch, -1, -1)
        else:
            query = enc_state.detach()
        # Detached: a proposal learns from its own loss, not from what the decoder makes of it.
        reference = enc_reference.detach()
        content, box_logits = query_embed
        if content is not None and box_logits is not None:
            query = torch.cat([content, query], 1)
            reference = torch.cat([box_logits.sigmoid(), reference], 1)
        return query, reference

    def gen_encoder_output_proposals(
        self,
        memory: Tensor,
        memory_padding_mask: Tensor,
        spatial_shapes: Sequence[tuple[int, int]] | Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Memory (B, S, C) to output memory (B, S, C), zero before its projection where a token
        cannot be a proposal, and proposals (B, S, 4), logits of cxcywh (see
        `propose_from_tokens`)."""
        spatial_shapes = as_shape_list(spatial_shapes)
        proposals, unusable = propose_from_tokens(memory_padding_mask, spatial_shapes)
        output_memory = memory.masked_fill(unusable[..., None], 0)
        return self.enc_output_norm(self.enc_output(output_memory)), proposals

    @staticmethod
    def get_reference_points(
        spatial_shapes: Sequence[tuple[int, int]] | Tensor,
        valid_ratios: Tensor,
        device: torch.device,
    ) -> Tensor:
        """(B, S, L, 2) places of the tokens on each level; see `encoder_reference_points`."""
        return encoder_reference_points(as_shape_list(spatial_shapes), valid_ratios.to(device))

    @staticmethod
    def get_valid_ratio(mask: Tensor) -> Tensor:
        """(B, h, w) padding mask to (B, 2), the unpadded share in x and y."""
        return valid_ratio(mask)
