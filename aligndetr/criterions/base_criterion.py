"""One-to-one matching with focal, L1 and GIoU losses on the last and the auxiliary layers.

Also the frame in which the other criterions of this package change one thing each: name the
prediction sets, match them all in one call, compute three losses for each.
What is common to the sets is computed once for all of them.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from aligndetr.losses import giou_box_loss, l1_box_loss
from aligndetr.utils import get_world_size, is_dist_avail_and_initialized

from .prediction_set import Indices, MatchedPairs, PredictionSet, gather_pairs


class BaseCriterion(nn.Module):
    """DETR's criterion: each object is answered by one query, all others learn "no object".

    Args:
        num_classes: K, the number of object classes.
        matcher: `aligndetr.matchers.MixedMatcher` or another with its `match`.
        weight_dict: weight of each loss by key, see `weight_of`.

    Raises:
        ValueError: `num_classes` is not a positive int.
    """

    def __init__(self, num_classes: int, matcher: nn.Module, weight_dict: Mapping[str, float]):
        super().__init__()
        if not isinstance(num_classes, int) or num_classes < 1:
            raise ValueError(f"`num_classes` (={num_classes!r}) must be a positive integer")
        self.num_classes = num_classes
        self.matcher: Any = matcher
        self.weight_dict = dict(weight_dict)
        self._num_boxes_of_step: float | Tensor | None = None

    def forward(self, outputs: dict, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Unweighted losses of all layers.

        Args:
            outputs: "pred_logits" (B, Q, K) and "pred_boxes" (B, Q, 4), cxcywh in [0, 1], of
                the last layer; "aux_outputs", optional, a list of such dicts for the layers
                before it.
            targets: per image "labels" (N,) int64 in [0, K) and "boxes" (N, 4), cxcywh in
                [0, 1]. N may be 0. Not modified.

        Returns:
            0-d losses: loss_class, loss_bbox, loss_giou for the last layer, and with suffix _i
            for `aux_outputs[i]`. They are sums over the batch divided by the number of objects,
            averaged over the processes and at least 1.

        Raises:
            NonFinitePredictionError, ValueError: as `MixedMatcher.forward`, and if K is not
                `num_classes`.
        """
        num_boxes = self.count_boxes(outputs, targets)
        return self.compute_losses(self.prediction_sets(outputs, targets, num_boxes))

    def get_loss(
        self,
        outputs: dict[str, Tensor],
        targets: list[dict[str, Tensor]],
        num_boxes: float | Tensor,
        layer_spec: int,
        specify_indices: Indices | None = None,
    ) -> tuple[dict[str, Tensor], Indices]:
        """Losses of one layer, keys without suffix, and the indices they were computed with.

        Args:
            outputs, targets: "pred_logits" and "pred_boxes" of the layer; as `forward`.
            num_boxes: what the sums are divided by.
            layer_spec: 0 for the encoder, i + 1 for `aux_outputs[i]`, the greatest for the last.
            specify_indices: per image (query_idx, gt_idx) to use instead of matching.
        """
        layer = self.prediction_set(
            outputs, targets, num_boxes, layer_spec, f"layer {layer_spec}", indices=specify_indices
        )
        indices = self.match([layer])
        return self._losses_of([layer], indices)[0], indices[0]

    def check_num_layers(self, num_layers: int) -> None:
        """Called by a model that is built with this criterion; any number of layers will do."""

    def count_boxes(self, outputs: dict, targets: list[dict[str, Tensor]]) -> float | Tensor:
        """Number of objects per process, at least 1: the step's only all-reduce.

        Within `normalised_by` it is the number given there.
        """
        if self._num_boxes_of_step is not None:
            return self._num_boxes_of_step
        count = sum(len(target["labels"]) for target in targets)
        return _mean_over_ranks(count, outputs["pred_logits"].device)

    @contextmanager
    def normalised_by(self, count: int, device: torch.device) -> Iterator[None]:
        """Within it, losses are divided by `count` objects (of all that this process will see in
        a step of several batches) in place of those of the batch. Added up over these batches,
        the losses then are those of one large batch. A collective: all ranks must enter it.

        Args:
            count: of this process; averaged over all, at least 1.
            device: that the model is on.
        """
        self._num_boxes_of_step = _mean_over_ranks(count, device)
        try:
            yield
        finally:
            self._num_boxes_of_step = None

    def prediction_sets(
        self, outputs: dict, targets: list[dict[str, Tensor]], num_boxes: float | Tensor
    ) -> list[PredictionSet]:
        """The sets that `forward` supervises, in the order in which the model computes them.

        The matcher complains about the first set that is not finite: where the trouble began.
        """
        aux_outputs = outputs.get("aux_outputs", [])
        last = len(aux_outputs) + 1
        sets = []
        for i, aux in enumerate(aux_outputs):
            name = f"decoder layer {i + 1} of {last} (aux_outputs[{i}])"
            sets.append(self.prediction_set(aux, targets, num_boxes, i + 1, name, f"_{i}"))
        sets.append(self.prediction_set(outputs, targets, num_boxes, last, "last decoder layer"))
        return sets

    def prediction_set(
        self,
        outputs: dict[str, Tensor],
        targets: list[dict[str, Tensor]],
        num_boxes: float | Tensor,
        layer: int,
        name: str,
        suffix: str = "",
        indices: Indices | None = None,
    ) -> PredictionSet:
        """One layer's predictions as a set, in float32 or wider. Fields as `PredictionSet`."""
        logits, boxes = outputs["pred_logits"], outputs["pred_boxes"]
        if logits.shape[-1] != self.num_classes:
            raise ValueError(
                f"{name}: the model predicts {logits.shape[-1]} classes but the criterion has "
                f"`num_classes` = {self.num_classes}; set `model.num_classes` for both"
            )
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        boxes = boxes.to(torch.promote_types(boxes.dtype, torch.float32))
        if isinstance(num_boxes, Tensor):
            num_boxes = num_boxes.reshape(())  # every loss is 0-d
        return PredictionSet(
            logits, boxes, targets, num_boxes, layer, name, suffix, indices=indices
        )

    def compute_losses(self, sets: list[PredictionSet]) -> dict[str, Tensor]:
        """Matches what has no indices yet and returns the losses of all sets."""
        return {
            key + layer.suffix: loss
            for layer, losses in zip(sets, self._losses_of(sets, self.match(sets)), strict=True)
            for key, loss in losses.items()
        }

    def match(self, sets: list[PredictionSet]) -> list[Indices]:
        """Indices of each set: its own, or the matcher's, which is asked once for all of them."""
        matched = self.matcher.match([layer.match_request() for layer in sets])
        return [
            found if layer.indices is None else layer.indices
            for layer, found in zip(sets, matched, strict=True)
        ]

    def classification_sums(
        self, sets: list[PredictionSet], pairs: MatchedPairs
    ) -> tuple[list[Tensor], float | Tensor]:
        """Loss of each set, summed over all (query, class) entries, and the weight of each pair.

        Returns:
            One 0-d tensor for each set, not yet divided by its `num_boxes`; one number or (N,).
        """
        sums = []
        for layer, position in zip(sets, pairs.positions, strict=True):
            one_hot = torch.zeros_like(layer.logits)
            one_hot.index_put_(position, one_hot.new_ones(()))  # a plain 1 makes a GPU's host wait
            sums.append(
                sigmoid_focal_loss(layer.logits, one_hot, alpha=0.25, gamma=2, reduction="sum")
            )
        return sums, 1

    def weight_of(self, key: str) -> float:
        """Weight of a loss: that of its exact key, else of the key without the layer.

        "loss_bbox_dn_3" is looked up as itself, then as "loss_bbox_dn"; "loss_bbox_enc" as
        itself, then as "loss_bbox".

        Raises:
            KeyError: there is neither. A loss that nobody weighted must not pass unnoticed.
        """
        for name in (key, re.sub(r"_(\d+|enc)$", "", key)):
            if name in self.weight_dict:
                return self.weight_dict[name]
        raise KeyError(
            f"no weight for loss {key!r}; `model.criterion.weight_dict` has "
            f"{sorted(self.weight_dict)}"
        )

    def weighted(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each loss times its weight."""
        return {key: loss * self.weight_of(key) for key, loss in losses.items()}

    def _losses_of(
        self, sets: list[PredictionSet], indices: list[Indices]
    ) -> list[dict[str, Tensor]]:
        """The losses of each set; what concerns pairs is computed for all sets together."""
        with torch.autocast(sets[0].logits.device.type, enabled=False):
            pairs = gather_pairs(sets, indices)
            class_sums, weight = self.classification_sums(sets, pairs)
            boxes = (pairs.src_boxes, pairs.target_boxes)
            of_pairs = torch.stack([l1_box_loss(*boxes), giou_box_loss(*boxes)]) * weight
            box_sums = [part.sum(dim=1) for part in of_pairs.split(pairs.sizes, dim=1)]
        losses = []
        for layer, class_sum, box_sum in zip(sets, class_sums, box_sums, strict=True):
            loss_bbox, loss_giou = (box_sum / layer.num_boxes).unbind()
            loss_class = class_sum / layer.num_boxes
            losses.append(
                {"loss_class": loss_class, "loss_bbox": loss_bbox, "loss_giou": loss_giou}
            )
        return losses


def _mean_over_ranks(count: int, device: torch.device) -> float | Tensor:
    if not is_dist_avail_and_initialized():
        return max(float(count), 1.0)
    # Written and kept on the device: copying or reading it would make the host wait.
    total = torch.full((), float(count), device=device)
    torch.distributed.all_reduce(total)
    return (total / get_world_size()).clamp(min=1)
