"""DAB-DETR trained with Align-DETR's criterion: one feature map, anchor boxes as queries.

Shapes: B batch, Q queries, K classes, C embed_dim, N decoder layers.
Boxes are cxcywh in [0, 1] of the unpadded image.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.structures import ImageList
from torch import Tensor, nn

from aligndetr.layers import MLP
from aligndetr.modeling import Detector, refine_boxes, to_channels_last
from aligndetr.utils import inverse_sigmoid

PRIOR = 0.01
"""Class probability that the class head starts from."""


class AlignDABDETR(Detector):
    """Backbone, one projected map, transformer, and heads that all decoder layers share.

    Args:
        backbone: images (B, 3, H, W) to a dict of feature maps.
        in_features: names of maps; the last one is used.
        in_channels: of that map; None: the backbone's.
        position_embedding: padding mask (B, h, w) to (B, C, h, w).
        transformer: see `DabDetrTransformer`; gets this model's box head.
        embed_dim: C.
        num_classes: K.
        num_queries: Q.
        criterion: (outputs, targets) to a dict of losses; also weights them.
        aux_loss: supervise every decoder layer, not only the last.
        pixel_mean, pixel_std: per channel, in the units and channel order of the images.
        freeze_anchor_box_centers: the anchors' centres, drawn uniformly, get no gradient; only
            their sizes learn.
        select_box_nums_for_evaluation: detections per image.
        device: accepted since published configs have it; the model is where `.to()` puts it.

    Raises:
        ValueError: sizes that do not fit each other, with the keys they stand under.
    """

    def __init__(
        self,
        backbone: Any,
        in_features: Sequence[str],
        in_channels: int | None,
        position_embedding: nn.Module,
        transformer: Any,
        embed_dim: int,
        num_classes: int,
        num_queries: int,
        criterion: Any,
        aux_loss: bool = True,
        pixel_mean: Sequence[float] = (123.675, 116.280, 103.530),
        pixel_std: Sequence[float] = (58.395, 57.120, 57.375),
        freeze_anchor_box_centers: bool = False,
        select_box_nums_for_evaluation: int = 300,
        device: str | None = None,  # noqa: ARG002 (a published key)
    ):
        super().__init__(
            backbone, position_embedding, criterion, num_classes, pixel_mean, pixel_std, aux_loss,
            select_box_nums_for_evaluation,
        )  # fmt: skip
        if embed_dim != transformer.embed_dim:
            raise ValueError(
                f"`model.embed_dim` (={embed_dim}) must equal `model.transformer.encoder.embed_dim`"
                f" (={transformer.embed_dim})"
            )
        self._check_position_width(embed_dim)
        criterion.check_num_layers(transformer.decoder.num_layers)
        self.in_features = list(in_features)
        channels = _channels_of(backbone, self.in_features, in_channels)
        self.input_proj = to_channels_last(nn.Conv2d(channels, embed_dim, kernel_size=1))
        self.transformer: Any = transformer
        self.anchor_box_embed = nn.Embedding(num_queries, 4)
        self.freeze_anchor_box_centers = freeze_anchor_box_centers
        self.class_embed = nn.Linear(embed_dim, num_classes)
        self.bbox_embed = MLP(embed_dim, embed_dim, 4, 3)
        transformer.decoder.bbox_embed = self.bbox_embed
        self.init_weights()

    def init_weights(self) -> None:
        """Centres of anchors all over the image; box offsets of 0; rare objects."""
        with torch.no_grad():
            centres = self.anchor_box_embed.weight[:, :2]
            centres.copy_(inverse_sigmoid(centres.uniform_(0, 1)))
        nn.init.constant_(self.class_embed.bias, -math.log((1 - PRIOR) / PRIOR))
        last: Any = self.bbox_embed.layers[-1]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def _losses(self, images: ImageList, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        states, references = self._transform(images.tensor, images.image_sizes)
        return self.criterion(self._outputs(*self._predict(states, references)), targets)

    def _transform(
        self, pixels: Tensor, image_sizes: Sequence[tuple[int, int]] | None = None
    ) -> tuple[Tensor, Tensor]:
        """States (N, B, Q, C) and the boxes that each layer starts from (N, B, Q, 4)."""
        maps = self.backbone(pixels.contiguous(memory_format=torch.channels_last))
        feature = self.input_proj(maps[self.in_features[-1]])
        (mask,), (position,) = self._masks_and_positions([feature], pixels, image_sizes)
        return self.transformer(feature, mask, self._anchors(), position)

    def _anchors(self) -> Tensor:
        """(Q, 4), logits of cxcywh."""
        anchors = self.anchor_box_embed.weight
        if self.freeze_anchor_box_centers:
            anchors = torch.cat([anchors[:, :2].detach(), anchors[:, 2:]], 1)
        return anchors

    def _predict(self, states: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (..., Q, K) and boxes (..., Q, 4) of states (..., Q, C) and their references."""
        return self.class_embed(states), refine_boxes(self.bbox_embed(states), references)

    def _predict_last_layer(self, states: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
        return self._predict(states[-1], references[-1])

    def _predict_every_layer(
        self, states: Tensor, references: Tensor
    ) -> tuple[list[str], Tensor, Tensor]:
        names = [f"decoder {layer}" for layer in range(1, len(states) + 1)]
        return names, *self._predict(states, references)


def _channels_of(backbone: Any, in_features: Sequence[str], given: int | None) -> int:
    shapes = backbone.output_shape()
    if not in_features or in_features[-1] not in shapes:
        raise ValueError(
            f"`model.in_features` (={list(in_features)}) must end with a map of the backbone, "
            f"which has {sorted(shapes)}"
        )
    channels = shapes[in_features[-1]].channels
    if given not in (None, channels):
        raise ValueError(
            f"`model.in_channels` is {given}, but {in_features[-1]!r} of the backbone has "
            f"{channels} channels; set model.in_channels=null for the backbone's"
        )
    return channels
