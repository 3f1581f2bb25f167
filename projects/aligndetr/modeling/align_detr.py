"""Align-DETR: images in, losses (training) or detections (evaluation) out.

Shapes: B batch, Q matching queries, D denoising queries, K classes, C embed_dim, N decoder layers.
Boxes are cxcywh in [0, 1] of the unpadded image unless said otherwise.
"""

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.structures import ImageList
from torch import Tensor, nn

from aligndetr.layers import MLP
from aligndetr.modeling import (
    Detector,
    make_denoising_queries,
    refine_boxes,
    to_channels_last,
    with_hybrid_queries,
)


class AlignDETR(Detector):
    """The detector: backbone, neck, two-stage transformer, one class and box head per layer.

    Args:
        backbone: images (B, 3, H, W) to a dict of feature maps.
        position_embedding: padding mask (B, h, w) to (B, C, h, w).
        neck: the backbone's dict to a list of maps (B, C, h, w).
        transformer: see `Transformer`; gets this model's heads.
        embed_dim: C.
        num_classes: K.
        num_queries: Q, equal to the transformer's `two_stage_num_proposals`.
        criterion: (outputs, targets, dn_metas) to a dict of losses; also weights them.
        pixel_mean, pixel_std: per channel, in the units and channel order of the images.
        aux_loss: supervise every decoder layer, not only the last.
        select_box_nums_for_evaluation: detections per image.
        device: accepted since published configs have it; the model is where `.to()` puts it.
        dn_number, label_noise_ratio, box_noise_scale: see `make_denoising_queries`.
        prior_init: class probability that the class heads start from.
        dn_max_queries: most denoising queries of a batch, see `make_denoising_queries`; None: no
            limit, as published.

    Where the transformer has `num_hybrid_queries`, training has the hybrid branch of H-DETR, with a
    `HybridCriterion`; evaluation knows nothing of it.

    Raises:
        ValueError: sizes that do not fit each other, with the keys they stand under.
    """

    def __init__(
        self,
        backbone: Any,
        position_embedding: nn.Module,
        neck: Any,
        transformer: Any,
        embed_dim: int,
        num_classes: int,
        num_queries: int,
        criterion: Any,
        pixel_mean: Sequence[float] = (123.675, 116.280, 103.530),
        pixel_std: Sequence[float] = (58.395, 57.120, 57.375),
        aux_loss: bool = True,
        select_box_nums_for_evaluation: int = 300,
        device: str | None = None,  # noqa: ARG002 (a published key)
        dn_number: int = 100,
        label_noise_ratio: float = 0.5,
        box_noise_scale: float = 1.0,
        prior_init: float = 0.01,
        dn_max_queries: int | None = None,
    ):
        super().__init__(
            backbone, position_embedding, criterion, num_classes, pixel_mean, pixel_std, aux_loss,
            select_box_nums_for_evaluation,
        )  # fmt: skip
        if transformer.two_stage_num_proposals != num_queries:
            raise ValueError(
                f"`num_queries` (={num_queries}) must equal the transformer's "
                f"`two_stage_num_proposals` (={transformer.two_stage_num_proposals}); write "
                '`two_stage_num_proposals="${..num_queries}"` in the config.'
            )
        if embed_dim != transformer.embed_dim:
            raise ValueError(
                f"`model.embed_dim` (={embed_dim}) must equal `model.transformer.encoder.embed_dim`"
                f" (={transformer.embed_dim})"
            )
        self._check_position_width(embed_dim)
        if getattr(neck, "out_channels", embed_dim) != embed_dim:
            raise ValueError(
                f"`model.neck.out_channels` (={neck.out_channels}) must equal `model.embed_dim` "
                f"(={embed_dim})"
            )
        if not getattr(neck, "is_connected", True):
            neck.connect(backbone.output_shape())
        num_levels = transformer.num_feature_levels
        if getattr(neck, "num_outs", num_levels) != num_levels:
            raise ValueError(
                f"`model.neck.num_outs` (={neck.num_outs}) must equal "
                f"`model.transformer.num_feature_levels` (={num_levels})"
            )
        _check_options(dn_max_queries, transformer.num_hybrid_queries, criterion)
        criterion.check_num_layers(transformer.decoder.num_layers)
        self.neck = to_channels_last(neck)
        self.transformer: Any = transformer
        self.embed_dim = embed_dim
        self.num_queries = num_queries
        self.dn_number = dn_number
        self.label_noise_ratio = label_noise_ratio
        self.box_noise_scale = box_noise_scale
        self.dn_max_queries = dn_max_queries

        self.label_enc = nn.Embedding(num_classes, embed_dim)
        self._build_heads(transformer.decoder, prior_init)

    def _build_heads(self, decoder: Any, prior_init: float) -> None:
        """Equal heads for the N layers, and one more for the encoder's proposals (the last)."""
        class_head = nn.Linear(self.embed_dim, self.num_classes)
        nn.init.constant_(class_head.bias, -math.log((1 - prior_init) / prior_init))
        box_head = MLP(self.embed_dim, self.embed_dim, 4, 3)
        # Zero: every layer starts by keeping the box it was given.
        last: Any = box_head.layers[-1]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        count = decoder.num_layers + 1
        self.class_embed = nn.ModuleList(copy.deepcopy(class_head) for _ in range(count))
        self.bbox_embed = nn.ModuleList(copy.deepcopy(box_head) for _ in range(count))
        decoder.class_embed = self.class_embed
        decoder.bbox_embed = self.bbox_embed

    def _losses(self, images: ImageList, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        feats, masks, positions = self._features(images.tensor, images.image_sizes)
        num_tokens = sum(feat.shape[2] * feat.shape[3] for feat in feats)
        num_queries = min(self.num_queries, num_tokens)
        num_hybrid = min(self.transformer.num_hybrid_queries, num_tokens - num_queries)
        query_label, query_bbox, attn_mask, dn_meta = self.prepare_for_cdn(
            targets,
            dn_number=self.dn_number,
            label_noise_ratio=self.label_noise_ratio,
            box_noise_scale=self.box_noise_scale,
            num_queries=num_queries,
            num_classes=self.num_classes,
            hidden_dim=self.embed_dim,
            label_enc=self.label_enc,
            max_queries=self.dn_max_queries,
        )
        if num_hybrid:
            num_others = num_queries if attn_mask is None else len(attn_mask)
            attn_mask = with_hybrid_queries(attn_mask, num_others, num_hybrid, self.device)
        states, init_reference, references, enc_state, enc_reference = self.transformer(
            feats, masks, positions, (query_label, query_bbox), [attn_mask, None], num_hybrid
        )
        # 0 * weight keeps label_enc in the graph; DDP hangs on a batch with no objects otherwise.
        states = states + self.label_enc.weight[0, 0] * 0.0

        logits, boxes = self._predict_all_layers(states, init_reference, references)
        end = logits.shape[2] - num_hybrid
        hybrid = logits[:, :, end:], boxes[:, :, end:]
        logits, boxes = self.dn_post_process(logits[:, :, :end], boxes[:, :, :end], dn_meta)
        outputs = self._outputs(logits, boxes)
        if self.transformer.num_hybrid_queries:
            outputs["hybrid_outputs"] = self._outputs(*hybrid)
        outputs["enc_outputs"] = {
            "pred_logits": self.class_embed[-1](enc_state),
            "pred_boxes": enc_reference,
        }
        return self.criterion(outputs, targets, dn_meta)

    def _transform(
        self, pixels: Tensor, image_sizes: Sequence[tuple[int, int]] | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """What the transformer makes of normalised images; arguments as of `_features`."""
        features = self._features(pixels, image_sizes)
        return self.transformer(*features, (None, None), attn_masks=[None, None])

    def _predict_last_layer(
        self, states: Tensor, init_reference: Tensor, references: Tensor, *_: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits (B, Q, K) and boxes (B, Q, 4) from the transformer's outputs."""
        last = self.transformer.decoder.num_layers - 1
        return self._predict_layer(last, states[last], [init_reference, *references][last])

    def _features(
        self, pixels: Tensor, image_sizes: Sequence[tuple[int, int]] | None = None
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Per level: feature map (B, C, h, w), padding mask (B, h, w), positions (B, C, h, w).

        `image_sizes` are (h, w) without the padding in `pixels`; None where there is none.
        """
        feats = self.neck(self.backbone(pixels.contiguous(memory_format=torch.channels_last)))
        return feats, *self._masks_and_positions(feats, pixels, image_sizes)

    def _predict_layer(self, layer: int, state: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, D + Q, K) and boxes (B, D + Q, 4) of one decoder layer."""
        boxes = refine_boxes(self.bbox_embed[layer](state), reference)
        return self.class_embed[layer](state), boxes

    def _predict_all_layers(
        self, states: Tensor, init_reference: Tensor, references: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits (N, B, D + Q, K) and boxes (N, B, D + Q, 4); a layer refines its predecessor's."""
        starts = [init_reference, *references]
        layers = [
            self._predict_layer(layer, state, starts[layer]) for layer, state in enumerate(states)
        ]
        logits, boxes = zip(*layers, strict=True)
        return torch.stack(logits), torch.stack(boxes)

    def _predict_every_layer(
        self,
        states: Tensor,
        init_reference: Tensor,
        references: Tensor,
        enc_state: Tensor,
        enc_reference: Tensor,
    ) -> tuple[list[str], Tensor, Tensor]:
        """Names of the encoder's proposals and N decoder layers, logits (N + 1, B, Q, K), boxes."""
        logits, boxes = self._predict_all_layers(states, init_reference, references)
        logits = torch.cat([self.class_embed[-1](enc_state)[None], logits])
        boxes = torch.cat([enc_reference[None].to(boxes.dtype), boxes])
        names = ["encoder", *(f"decoder {layer}" for layer in range(1, len(states) + 1))]
        return names, logits, boxes

    def prepare_for_cdn(
        self,
        targets: list[dict[str, Tensor]],
        dn_number: int,
        label_noise_ratio: float,
        box_noise_scale: float,
        num_queries: int,
        num_classes: int,
        hidden_dim: int,
        label_enc: nn.Embedding,
        max_queries: int | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, dict | None]:
        """Contrastive denoising queries of a batch; `make_denoising_queries` says how.

        All random numbers come from `aligndetr.modeling.denoising.draw_noise`, but which objects
        are left out under `max_queries`.

        Returns:
            input_query_label (B, D, C), input_query_bbox (B, D, 4) before the sigmoid, attn_mask
            (D + Q, D + Q) with True = blocked, and dn_meta with "single_padding" (queries per
            group), "dn_num" (groups) and, where `max_queries` leaves objects out, "gt_indices" of
            those that are in. Four times None where there is nothing to denoise.
        """
        assert label_enc.embedding_dim == hidden_dim, (label_enc.embedding_dim, hidden_dim)
        queries = make_denoising_queries(
            targets,
            dn_number,
            label_noise_ratio,
            box_noise_scale,
            num_queries,
            num_classes,
            label_enc,
            max_queries,
        )
        if queries is None:
            return None, None, None, None
        dn_meta: dict[str, Any] = {
            "single_padding": queries.group_size,
            "dn_num": queries.num_groups,
        }
        if queries.gt_indices is not None:
            dn_meta["gt_indices"] = queries.gt_indices
        return queries.content, queries.boxes, queries.attn_mask, dn_meta

    def dn_post_process(
        self, outputs_class: Tensor, outputs_coord: Tensor, dn_metas: dict | None
    ) -> tuple[Tensor, Tensor]:
        """Split (N, B, D + Q, ...) outputs: denoising into `dn_metas`, matching returned."""
        if dn_metas is None:
            return outputs_class, outputs_coord
        count = dn_metas["single_padding"] * dn_metas["dn_num"]
        known_class, known_coord = outputs_class[:, :, :count], outputs_coord[:, :, :count]
        dn_metas["output_known_lbs_bboxes"] = self._outputs(known_class, known_coord)
        return outputs_class[:, :, count:], outputs_coord[:, :, count:]


def _check_options(dn_max_queries: int | None, num_hybrid: int, criterion: nn.Module) -> None:
    if dn_max_queries is not None and dn_max_queries < 2:
        raise ValueError(
            f"`model.dn_max_queries` (={dn_max_queries}) must be at least 2, a positive and a "
            "negative; null is no limit, and model.dn_number=0 no denoising"
        )
    if bool(num_hybrid) != hasattr(criterion, "hybrid_match_num"):
        raise ValueError(
            f"`model.transformer.num_hybrid_queries` is {num_hybrid}, but the criterion is a "
            f"{type(criterion).__name__}: a hybrid branch needs a HybridCriterion, and that needs "
            "a hybrid branch"
        )
