"""The frame of a detector: images in, losses (training) or detections (evaluation) out.

Shapes: B batch, Q queries, K classes, C embed_dim, N decoder layers.
Boxes are cxcywh in [0, 1] of the unpadded image unless said otherwise.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.modeling import detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from aligndetr.layers import box_cxcywh_to_xyxy, box_xyxy_to_cxcywh
from aligndetr.utils.batches import in_batches_of_one_size

from .level_positions import LevelPositions
from .memory_format import to_channels_last
from .postprocess import select_top_predictions


class Detector(nn.Module):
    """The frame of a DETR. A subclass has four methods, which are all that differs:

    - `_losses(images, targets)`: `ImageList` and `prepare_targets` to a dict of unweighted losses.
    - `_transform(pixels, image_sizes)`: normalised pixels (B, 3, H, W), and (h, w) of each image
      before padding or None where there is none, to a tuple of whatever the next two read.
    - `_predict_last_layer(*transformed)`: logits (B, Q, K) and boxes (B, Q, 4).
    - `_predict_every_layer(*transformed)`: names of L layers, logits (L, B, Q, K), boxes
      (L, B, Q, 4).

    Args:
        backbone: images (B, 3, H, W) to a dict of feature maps.
        position_embedding: padding mask (B, h, w) to (B, C, h, w).
        criterion: weights losses; counts objects over several batches.
        num_classes: K.
        pixel_mean, pixel_std: per channel, in the units and channel order of the images.
        aux_loss: supervise every decoder layer, not only the last.
        select_box_nums_for_evaluation: detections per image.
    """

    # Methods of each model.
    _losses: Callable[..., dict[str, Tensor]]
    _transform: Callable[..., tuple[Tensor, ...]]
    _predict_last_layer: Callable[..., tuple[Tensor, Tensor]]
    _predict_every_layer: Callable[..., tuple[list[str], Tensor, Tensor]]

    def __init__(
        self,
        backbone: Any,
        position_embedding: nn.Module,
        criterion: Any,
        num_classes: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        aux_loss: bool,
        select_box_nums_for_evaluation: int,
    ):
        super().__init__()
        self.pixel_mean: Tensor
        self.pixel_std: Tensor
        if num_classes != criterion.num_classes:
            raise ValueError(
                f"`model.num_classes` (={num_classes}) must equal "
                f"`model.criterion.num_classes` (={criterion.num_classes})"
            )
        # Convolutions are faster so, and the maps leave as rows of tokens.
        self.backbone: Any = to_channels_last(backbone)
        self.position_embedding = position_embedding
        self._level_positions = LevelPositions()
        self.criterion: Any = criterion
        self.num_classes = num_classes
        self.aux_loss = aux_loss
        self.select_box_nums_for_evaluation = select_box_nums_for_evaluation
        self._gives_all_layers = False
        for name, value in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            # Not persistent: published checkpoints do not hold them.
            buffer = torch.tensor(list(value), dtype=torch.float32).view(-1, 1, 1)
            self.register_buffer(name, buffer, persistent=False)

    def _check_position_width(self, embed_dim: int) -> None:
        """What is added to tokens of `embed_dim` channels has as many."""
        num_pos_feats = getattr(self.position_embedding, "num_pos_feats", None)
        if num_pos_feats is not None and 2 * num_pos_feats != embed_dim:
            raise ValueError(
                f"`model.position_embedding.num_pos_feats` (={num_pos_feats}) must be half of "
                f"`model.embed_dim` (={embed_dim})"
            )

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
            return self._weighted_losses(batched_inputs)
        return in_batches_of_one_size(batched_inputs, self._detect)

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

    def _weighted_losses(self, batched_inputs: list[dict]) -> dict[str, Tensor]:
        if not all("instances" in x for x in batched_inputs):
            raise ValueError(
                'an input has no "instances" to learn from; call `model.eval()` for detections, '
                "or give the mapper `is_train=True`."
            )
        images = self.preprocess_image(batched_inputs)
        targets = self.prepare_targets([x["instances"] for x in batched_inputs])
        return self.criterion.weighted(self._losses(images, targets))

    @contextmanager
    def all_layers(self) -> Iterator[None]:
        """Within it, each image's detections come with "layers": what every layer predicts.

        They hold "names" (L), of the encoder's proposals first where there are any and of all
        decoder layers, "pred_logits" (L, Q, K) and "pred_boxes" (L, Q, 4). The detections
        themselves are the same as outside of it.
        """
        before, self._gives_all_layers = self._gives_all_layers, True
        try:
            yield
        finally:
            self._gives_all_layers = before

    def _detect(self, same_size: list[dict]) -> list[dict]:
        images = self.preprocess_image(same_size)
        transformed = self._transform(images.tensor, images.image_sizes)
        logits, boxes = self._predict_last_layer(*transformed)
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
            for result, layers in zip(results, self._layers_of_images(*transformed), strict=True):
                result["layers"] = layers
        return results

    def _layers_of_images(self, *transformed: Tensor) -> list[dict]:
        """What `all_layers` promises, for each image of a batch."""
        names, logits, boxes = self._predict_every_layer(*transformed)
        return [
            {"names": names, "pred_logits": logits[:, image], "pred_boxes": boxes[:, image]}
            for image in range(logits.shape[1])
        ]

    def predict(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Detections of images of one size as tensors, as `forward` gives them as Instances.

        It works on tensors alone and so can be exported with any B, H and W. Call it in eval mode.
        Nothing is padded: a backbone with a `size_divisibility` needs H and W that are multiples
        of it, else `forward` finds something else.

        Args:
            images: (B, 3, H, W), any dtype, in the units and channel order of `pixel_mean`.

        Returns:
            boxes (B, N, 4), xyxy in pixels of `images`, clipped to them, some perhaps without
            area; scores (B, N) from high to low; classes (B, N) int64. N is
            `select_box_nums_for_evaluation`, or Q * K where that is less; Q is the number of
            queries, or of tokens where an image has fewer.
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

    def _masks_and_positions(
        self, maps: Sequence[Tensor], pixels: Tensor, image_sizes: Sequence[tuple[int, int]] | None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Padding mask (B, h, w) and positions (B, C, h, w) of each of the feature maps.

        `image_sizes` are (h, w) without the padding in `pixels`; None where there is none.
        """
        embedding, where = self.position_embedding, ([x.shape[-2:] for x in maps], pixels.device)
        if image_sizes is None:
            return self._level_positions.unpadded(embedding, pixels.shape[0], *where)
        return self._level_positions(embedding, image_sizes, pixels.shape[-2:], *where)

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

    def _outputs(self, logits: Tensor, boxes: Tensor) -> dict:
        """What the criterion takes, of the same queries in all layers."""
        outputs: dict[str, Any] = {"pred_logits": logits[-1], "pred_boxes": boxes[-1]}
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
