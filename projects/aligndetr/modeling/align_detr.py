"""Align-DETR: images in, losses (training) or detections (evaluation) out.

Shapes: B batch, Q matching queries, D denoising queries, K classes, C embed_dim, N decoder layers.
Boxes are cxcywh in [0, 1] of the unpadded image unless said otherwise.
"""

import copy
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from detectron2.modeling import detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from aligndetr.layers import MLP, box_cxcywh_to_xyxy, box_xyxy_to_cxcywh
from aligndetr.modeling import (
    LevelPositions,
    make_denoising_queries,
    refine_boxes,
    select_top_predictions,
    with_hybrid_queries,
)


class AlignDETR(nn.Module):
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
    """

    def __init__(
        self,
        backbone: nn.Module,
        position_embedding: nn.Module,
        neck: nn.Module,
        transformer: nn.Module,
        embed_dim: int,
        num_classes: int,
        num_queries: int,
        criterion: nn.Module,
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
        super().__init__()
        if transformer.two_stage_num_proposals != num_queries:
            raise ValueError(
                f"`num_queries` (={num_queries}) must equal the transformer's "
                f"`two_stage_num_proposals` (={transformer.two_stage_num_proposals}); write "
                '`two_stage_num_proposals="${..num_queries}"` in the config.'
            )
        for name, here, there, value in (
            ("embed_dim", embed_dim, "model.transformer", transformer.embed_dim),
            ("num_classes", num_classes, "model.criterion", criterion.num_classes),
        ):
            if here != value:
                raise ValueError(f"`model.{name}` (={here}) must equal `{there}.{name}` (={value})")
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
        # Convolutions are faster so, and the maps leave the neck as rows of tokens.
        self.backbone = backbone.to(memory_format=torch.channels_last)
        self.position_embedding = position_embedding
        self._level_positions = LevelPositions()
        self.neck = neck.to(memory_format=torch.channels_last)
        self.transformer = transformer
        self.criterion = criterion
        self.embed_dim = embed_dim
        self.num_classes = num_classes
        self.num_queries = num_queries
        self.aux_loss = aux_loss
        self.select_box_nums_for_evaluation = select_box_nums_for_evaluation
        self.dn_number = dn_number
        self.label_noise_ratio = label_noise_ratio
        self.box_noise_scale = box_noise_scale
        self.dn_max_queries = dn_max_queries
        self._gives_all_layers = False

        self.label_enc = nn.Embedding(num_classes, embed_dim)
        self._build_heads(transformer.decoder, prior_init)
        for name, value in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            # Not persistent: published checkpoints do not hold them.
            buffer = torch.tensor(list(value), dtype=torch.float32).view(-1, 1, 1)
            self.register_buffer(name, buffer, persistent=False)

    def _build_heads(self, decoder: nn.Module, prior_init: float) -> None:
        """Equal heads for the N layers, and one more for the encoder's proposals (the last)."""
        class_head = nn.Linear(self.embed_dim, self.num_classes)
        nn.init.constant_(class_head.bias, -math.log((1 - prior_init) / prior_init))
        box_head = MLP(self.embed_dim, self.embed_dim, 4, 3)
        # Zero: every layer starts by keeping the box it was given.
        nn.init.zeros_(box_head.layers[-1].weight)
        nn.init.zeros_(box_head.layers[-1].bias)
        count = decoder.num_layers + 1
        self.class_embed = nn.ModuleList(copy.deepcopy(class_head) for _ in range(count))
        self.bbox_embed = nn.ModuleList(copy.deepcopy(box_head) for _ in range(count))
        decoder.class_embed = self.class_embed
        decoder.bbox_embed = self.bbox_embed

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """Losses of a batch, or its detections.

        Args:
            batched_inputs: detectron2's format: "image" (3, H, W) in the channel order of
                `pixel_mean`; for training "instances" with `gt_boxes` (xyxy in pixels of that
                image) and `gt_classes`; for evaluation "height" and "width" of the original image
                (default: of the image given).

        Returns:
            Training: named, weighted losses, each a 0-d tensor. Evaluation: per image
            {"instances": Instances} with `pred_boxes` (xyxy in pixels of the original image,
            clipped to it), `scores` from high to low and `pred_classes`.
        """
        if self.training:
            return self._losses(batched_inputs)
        return self._detections(batched_inputs)

    @contextmanager
    def losses_over(self, batches: Sequence[list[dict]]) -> Iterator[None]:
        """Within it, the losses of each of `batches` sum up to those of one batch of all of them.

        They are sums over objects divided by the number of objects, so that number has to be
        known before the first. `Trainer` enters it for a step over several micro-batches; all
        ranks must. What else depends on the batch (padding, the number of denoising groups)
        stays that of each.
        """
        count = sum(len(x.get("instances", ())) for batch in batches for x in batch)
        with self.criterion.normalised_by(count, self.device):
            yield

    def _losses(self, batched_inputs: list[dict]) -> dict[str, Tensor]:
        if not all("instances" in x for x in batched_inputs):
            raise ValueError(
                'an input has no "instances" to learn from; call `model.eval()` for detections, '
                "or give the mapper `is_train=True`."
            )
        images = self.preprocess_image(batched_inputs)
        targets = self.prepare_targets([x["instances"] for x in batched_inputs])
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
        return self.criterion.weighted(self.criterion(outputs, targets, dn_meta))

    def _detections(self, batched_inputs: list[dict]) -> list[dict]:
        # Images of one size form a batch and others run apart: padding would change a result
        # (GroupNorm, the convolutions' borders and the position embedding all see it).
        by_size = defaultdict(list)
        for index, x in enumerate(batched_inputs):
            by_size[tuple(x["image"].shape)].append(index)
        results: list[dict] = [{} for _ in batched_inputs]
        for indices in by_size.values():
            group = [batched_inputs[index] for index in indices]
            for index, result in zip(indices, self._detect(group), strict=True):
                results[index] = result
        return results

    @contextmanager
    def all_layers(self) -> Iterator[None]:
        """Within it, each image's detections come with "layers": what every layer predicts.

        They hold "names" (N + 1), the encoder's proposals first, "pred_logits" (N + 1, Q, K) and
        "pred_boxes" (N + 1, Q, 4). The detections themselves are the same as outside of it.
        """
        before, self._gives_all_layers = self._gives_all_layers, True
        try:
            yield
        finally:
            self._gives_all_layers = before

    def _detect(self, same_size: list[dict]) -> list[dict]:
        images = self.preprocess_image(same_size)
        predicted = self._transform(images.tensor, images.image_sizes)
        logits, boxes = self._predict_last_layer(*predicted)
        instances = self.inference(logits, boxes, images.image_sizes)
        results = [
            {
                "instances": detector_postprocess(
                    i, x.get("height", size[0]), x.get("width", size[1])
                )
            }
            for i, x, size in zip(instances, same_size, images.image_sizes, strict=True)
        ]
        if self._gives_all_layers:
            for result, layers in zip(results, self._layers_of_images(*predicted), strict=True):
                result["layers"] = layers
        return results

    def _layers_of_images(
        self,
        states: Tensor,
        init_reference: Tensor,
        references: Tensor,
        enc_state: Tensor,
        enc_reference: Tensor,
    ) -> list[dict]:
        """What `all_layers` promises, for each image of a batch, from the transformer's outputs."""
        logits, boxes = self._predict_all_layers(states, init_reference, references)
        logits = torch.cat([self.class_embed[-1](enc_state)[None], logits])
        boxes = torch.cat([enc_reference[None].to(boxes.dtype), boxes])
        names = ["encoder", *(f"decoder {layer}" for layer in range(1, len(states) + 1))]
        return [
            {"names": names, "pred_logits": logits[:, image], "pred_boxes": boxes[:, image]}
            for image in range(logits.shape[1])
        ]

    def predict(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Detections of images of one size as tensors, as `forward` gives them as Instances.

        It works on tensors alone and so can be exported with any B, H and W. Call it in eval mode.

        Args:
            images: (B, 3, H, W), any dtype, in the units and channel order of `pixel_mean`.

        Returns:
            boxes (B, N, 4), xyxy in pixels of `images`, clipped to them, some perhaps without
            area; scores (B, N) from high to low; classes (B, N) int64. N is
            `select_box_nums_for_evaluation`, or fewer in images with fewer tokens than queries.
        """
        pixels = (images - self.pixel_mean) / self.pixel_std
        logits, boxes = self._predict_last_layer(*self._transform(pixels))
        scores, classes, boxes = select_top_predictions(
            logits, boxes, self.select_box_nums_for_evaluation
        )
        height, width = images.shape[-2:]
        x0, y0, x1, y1 = box_cxcywh_to_xyxy(boxes).clamp(0, 1).unbind(-1)
        boxes = torch.stack([x0 * width, y0 * height, x1 * width, y1 * height], -1)
        return boxes, scores, classes

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
        before_last = references[-2] if len(references) > 1 else init_reference
        last = self.transformer.decoder.num_layers - 1
        return self._predict_layer(last, states[last], before_last)

    def _features(
        self, pixels: Tensor, image_sizes: Sequence[tuple[int, int]] | None = None
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Per level: feature map (B, C, h, w), padding mask (B, h, w), positions (B, C, h, w).

        `image_sizes` are (h, w) without the padding in `pixels`; None where there is none.
        """
        feats = self.neck(self.backbone(pixels.contiguous(memory_format=torch.channels_last)))
        embedding, where = self.position_embedding, ([f.shape[-2:] for f in feats], pixels.device)
        if image_sizes is None:
            return feats, *self._level_positions.unpadded(embedding, pixels.shape[0], *where)
        size = pixels.shape[-2:]
        return feats, *self._level_positions(embedding, image_sizes, size, *where)

    def _predict_layer(self, layer: int, state: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, D + Q, K) and boxes (B, D + Q, 4) of one decoder layer."""
        boxes = refine_boxes(self.bbox_embed[layer](state), reference)
        return self.class_embed[layer](state), boxes

    def _predict_all_layers(
        self, states: Tensor, init_reference: Tensor, references: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits (N, B, D + Q, K) and boxes (N, B, D + Q, 4); a layer refines its predecessor's."""
        starts = [init_reference, *references[:-1]]
        layers = [
            self._predict_layer(layer, state, start)
            for layer, (state, start) in enumerate(zip(states, starts, strict=True))
        ]
        logits, boxes = zip(*layers, strict=True)
        return torch.stack(logits), torch.stack(boxes)

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        """Normalise, then pad with zeros to the largest height and width of the batch, and to
        what the backbone asks for (a ResNet for nothing)."""
        images = [x["image"].to(self.device, non_blocking=True) for x in batched_inputs]
        return ImageList.from_tensors(
            [(x - self.pixel_mean) / self.pixel_std for x in images],
            getattr(self.backbone, "size_divisibility", 0),
            padding_constraints=getattr(self.backbone, "padding_constraints", None),
        )

    def prepare_targets(self, targets: Sequence[Instances]) -> list[dict[str, Tensor]]:
        """Instances with `gt_boxes` (xyxy in pixels) and `gt_classes`, on any device, to "labels"
        (n,) and "boxes" (n, 4) on the model's. A class the model does not have is a ValueError."""
        prepared = []
        for instances in targets:
            self._check_classes(instances.gt_classes)
            height, width = instances.image_size
            boxes = instances.gt_boxes.tensor
            boxes = box_xyxy_to_cxcywh(boxes / boxes.new_tensor([width, height, width, height]))
            target = {"labels": instances.gt_classes, "boxes": boxes}
            # Moved last and without waiting: the numbers above were computed where they were read.
            prepared.append(
                {name: value.to(self.device, non_blocking=True) for name, value in target.items()}
            )
        return prepared

    def _check_classes(self, classes: Tensor) -> None:
        # Only where reading them is free; from a GPU the matcher reads them, with its costs.
        if classes.device.type == "cpu" and len(classes):
            low, high = classes.min().item(), classes.max().item()
            if low < 0 or high >= self.num_classes:
                raise ValueError(
                    f"an object has class {low if low < 0 else high}, but the model has "
                    f"{self.num_classes}; classes must be in [0, {self.num_classes}). Set "
                    "`model.num_classes` to the number of categories in the data."
                )

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

        All random numbers come from `aligndetr.modeling.denoising.draw_noise`.

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
        dn_meta = {"single_padding": queries.group_size, "dn_num": queries.num_groups}
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

    def _outputs(self, logits: Tensor, boxes: Tensor) -> dict:
        """What the criterion takes, of the same queries in all layers."""
        outputs = {"pred_logits": logits[-1], "pred_boxes": boxes[-1]}
        if self.aux_loss:
            outputs["aux_outputs"] = self._set_aux_loss(logits, boxes)
        return outputs

    def _set_aux_loss(self, outputs_class: Tensor, outputs_coord: Tensor) -> list[dict]:
        """Outputs of all layers but the last, one dict each."""
        return [
            {"pred_logits": logits, "pred_boxes": boxes}
            for logits, boxes in zip(outputs_class[:-1], outputs_coord[:-1], strict=True)
        ]

    def inference(
        self, box_cls: Tensor, box_pred: Tensor, image_sizes: Sequence[tuple[int, int]]
    ) -> list[Instances]:
        """Logits (B, Q, K) and boxes (B, Q, 4) to Instances in pixels of `image_sizes` (h, w)."""
        scores, classes, boxes = select_top_predictions(
            box_cls, box_pred, self.select_box_nums_for_evaluation
        )
        results = []
        for image, size in enumerate(image_sizes):
            result = Instances(tuple(size))
            result.pred_boxes = Boxes(box_cxcywh_to_xyxy(boxes[image]))
            result.pred_boxes.scale(scale_x=size[1], scale_y=size[0])
            result.scores = scores[image]
            result.pred_classes = classes[image]
            results.append(result)
        return results


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
