"""Mixed matching: one query per object, or several, by the Hungarian algorithm.

An object that may have k queries enters the assignment k times, so the queries of all objects
are chosen together and none serves two. Each image is matched by itself; all images of all
layers share one transfer to the host, where the assignment runs.
"""

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from aligndetr.layers import box_cxcywh_to_xyxy, generalized_box_iou

from .assignment import ImageCosts, assign

CLASS_COSTS = ("focal_loss_cost", "ce_cost")

# Costs computed at once, for the layers of the model together where objects are few. More would
# leave the cache, and memory for larger temporaries is given back to the system at each step.
BLOCK = 2**16


class MatchRequest(NamedTuple):
    """Predictions to match, as `MixedMatcher.forward` takes them, and their name for errors."""

    outputs: dict[str, Tensor]
    targets: list[dict[str, Tensor]]
    gt_copy: int = 1
    name: str = "predictions"


class MixedMatcher(nn.Module):
    """Assigns queries to objects at the least total cost, up to `gt_copy` queries per object.

    The cost of a pair is `cost_class` * class cost + `cost_bbox` * L1 - `cost_giou` * GIoU.

    Args:
        cost_class, cost_bbox, cost_giou: weights of the three parts; not all of them 0.
        cost_class_type: "focal_loss_cost" (sigmoid scores; positive minus negative focal loss)
            or "ce_cost" (softmax scores; minus the score of the object's class).
        alpha, gamma: parameters of the focal loss.

    Raises:
        ValueError: all weights are 0, or `cost_class_type` is not known.
    """

    def __init__(
        self,
        cost_class: float = 1,
        cost_bbox: float = 1,
        cost_giou: float = 1,
        cost_class_type: str = "focal_loss_cost",
        alpha: float = 0.25,
        gamma: float = 2.0,
    ):
        super().__init__()
        if not (cost_class or cost_bbox or cost_giou):
            raise ValueError(
                "`cost_class`, `cost_bbox` and `cost_giou` are all 0, every assignment would cost "
                "the same; set at least one in `model.criterion.matcher`"
            )
        if cost_class_type not in CLASS_COSTS:
            raise ValueError(
                f"unknown `cost_class_type` {cost_class_type!r}; choose one of {CLASS_COSTS}"
            )
        self.cost_class = cost_class
        self.cost_bbox = cost_bbox
        self.cost_giou = cost_giou
        self.cost_class_type = cost_class_type
        self.alpha = alpha
        self.gamma = gamma

    def forward(
        self, outputs: dict[str, Tensor], targets: list[dict[str, Tensor]], gt_copy: int = 1
    ) -> list[tuple[Tensor, Tensor]]:
        """Matches one set of predictions.

        With Q queries and N objects in an image, each object gets
        max(1, min(gt_copy, floor(0.5 * Q / N))) queries, so that half the queries stay negative.
        With N > Q there is one query for each of the Q objects that are cheapest to serve.

        Args:
            outputs: "pred_logits" (B, Q, K) and "pred_boxes" (B, Q, 4), cxcywh in [0, 1].
            targets: per image "labels" (N,) int64 in [0, K) and "boxes" (N, 4), cxcywh in
                [0, 1]; N may be 0.
            gt_copy: most queries an object may get.

        Returns:
            Per image (query_idx, gt_idx), both (M,) int64 on the device of the predictions,
            sorted by gt_idx.

        Raises:
            NonFinitePredictionError: a logit or box is NaN or infinite.
            ValueError: a label is outside [0, K), a target box is not finite, or shapes do not
                fit together.
        """
        return self.match([MatchRequest(outputs, targets, gt_copy)])[0]

    @torch.no_grad()
    def match(self, requests: list[MatchRequest]) -> list[list[tuple[Tensor, Tensor]]]:
        """Matches several sets of predictions with one transfer to the host and one back.

        Args:
            requests: what `forward` takes, once per set. Sets may differ in Q and in targets.

        Returns:
            The result of `forward` for each request, in order. Raises as `forward` does.
        """
        if not requests:
            return []
        for request in requests:
            _check_shapes(request)
        groups = list(_groups(requests))
        device = requests[0].outputs["pred_logits"].device
        with torch.autocast(device.type, enabled=False):
            values = torch.cat([part for group in groups for part in self._values_of(group)])
        pairs = []
        for request, images in zip(requests, _unpack(values.cpu().numpy(), groups), strict=True):
            num_classes = request.outputs["pred_logits"].shape[-1]
            pairs += assign(images, num_classes, request.gt_copy, request.name)

        if not pairs:  # a batch of no images
            return [[] for _ in requests]
        flat = torch.from_numpy(np.concatenate([index for pair in pairs for index in pair]))
        if device.type == "cuda":  # without waiting for what is queued there
            flat = flat.pin_memory().to(device, non_blocking=True)
        else:
            flat = flat.to(device)
        split = iter(flat.split([len(index) for pair in pairs for index in pair]))
        return [[(next(split), next(split)) for _ in r.targets] for r in requests]

    def cost_matrix(self, logits: Tensor, boxes: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
        """Cost of each query for each object of one image.

        Args:
            logits: (Q, K), float32 or float64.
            boxes: (Q, 4), cxcywh in [0, 1].
            labels: (N,) int64 in [0, K); values outside are taken as the nearest inside.
            targets: (N, 4), cxcywh in [0, 1].

        Returns:
            (Q, N).
        """
        return self._costs([logits], [boxes], labels, targets).t()

    def _costs(
        self, logits: list[Tensor], boxes: list[Tensor], labels: Tensor, targets: Tensor
    ) -> Tensor:
        """As `cost_matrix`, of several sets of predictions one behind the other: (N, L * Q)."""
        # An index outside would abort the CUDA context; `match` reports it from the host.
        labels = labels.clamp(0, logits[0].shape[-1] - 1)
        queries = torch.cat(boxes)
        cost = torch.cdist(targets, queries, p=1).mul_(self.cost_bbox)
        scores = torch.cat([self._of_classes(x, labels) for x in logits]).t().contiguous()
        cost += self._class_cost(scores).mul_(self.cost_class)
        giou = generalized_box_iou(box_cxcywh_to_xyxy(targets), box_cxcywh_to_xyxy(queries))
        return cost.sub_(giou.mul_(self.cost_giou))

    def _of_classes(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(Q, N): what the class cost is made of."""
        if self.cost_class_type == "ce_cost":
            logits = logits.softmax(-1)
        return logits.index_select(-1, labels)

    def _class_cost(self, scores: Tensor) -> Tensor:
        if self.cost_class_type == "ce_cost":
            return -scores
        score = scores.sigmoid()
        other = 1 - score
        positive = (score + 1e-8).log_().mul_(other**self.gamma).mul_(-self.alpha)
        negative = other.add_(1e-8).log_().mul_(score.pow_(self.gamma)).mul_(self.alpha - 1)
        return positive.sub_(negative)

    def _values_of(self, group: list[MatchRequest]) -> list[Tensor]:
        """All that the host has to know, flat: totals, then labels and costs of each image."""
        logits = _at_least_float32([request.outputs["pred_logits"] for request in group])
        boxes = _at_least_float32([request.outputs["pred_boxes"] for request in group])
        # NaN or infinite if and only if some prediction for the image is.
        values = [x.sum((1, 2)) + y.sum((1, 2)) for x, y in zip(logits, boxes, strict=True)]
        for i, target in enumerate(group[0].targets):
            if len(target["labels"]) == 0:
                continue
            labels, gt_boxes = target["labels"].to(logits[0].device), target["boxes"].to(boxes[0])
            cost = self._costs([x[i] for x in logits], [x[i] for x in boxes], labels, gt_boxes)
            values += [labels.to(cost.dtype), cost.flatten()]
        return values


def _groups(requests: list[MatchRequest]) -> Iterator[list[MatchRequest]]:
    """Neighbours that differ in predictions alone, as many as fit into a BLOCK of costs."""
    for _, alike in itertools.groupby(requests, key=_what_it_is_about):
        alike = list(alike)
        num_queries = alike[0].outputs["pred_logits"].shape[1]
        most_objects = max((len(t["labels"]) for t in alike[0].targets), default=0)
        size = max(1, BLOCK // max(1, num_queries * most_objects))
        for first in range(0, len(alike), size):
            yield alike[first : first + size]


def _what_it_is_about(request: MatchRequest) -> tuple:
    logits, boxes = request.outputs["pred_logits"], request.outputs["pred_boxes"]
    objects = [(id(target["labels"]), id(target["boxes"])) for target in request.targets]
    return logits.shape, logits.dtype, boxes.dtype, objects


def _at_least_float32(tensors: list[Tensor]) -> list[Tensor]:
    return [x.to(torch.promote_types(x.dtype, torch.float32)) for x in tensors]


def _unpack(values: np.ndarray, groups: list[list[MatchRequest]]) -> Iterator[list[ImageCosts]]:
    """What `_values_of` has written, for each request."""

    def take(*shape: int) -> np.ndarray:
        nonlocal position
        start, position = position, position + math.prod(shape)
        return values[start:position].reshape(shape)

    position = 0
    for group in groups:
        batch, num_queries, _ = group[0].outputs["pred_logits"].shape
        totals = take(len(group), batch)
        counts = [len(target["labels"]) for target in group[0].targets]
        images = [(take(n), take(n, len(group), num_queries)) for n in counts]
        for i in range(len(group)):
            yield [
                ImageCosts(total, labels, costs[:, i])
                for total, (labels, costs) in zip(totals[i], images, strict=True)
            ]
    assert position == len(values), (position, len(values))


def _check_shapes(request: MatchRequest) -> None:
    logits, boxes = request.outputs["pred_logits"], request.outputs["pred_boxes"]
    if logits.ndim != 3 or boxes.shape != (*logits.shape[:2], 4):
        raise ValueError(
            f"{request.name}: `pred_logits` {tuple(logits.shape)} and `pred_boxes` "
            f"{tuple(boxes.shape)} must be (B, Q, K) and (B, Q, 4)"
        )
    if len(request.targets) != len(logits):
        raise ValueError(
            f"{request.name}: {len(request.targets)} targets for a batch of {len(logits)} images; "
            "there must be one per image, empty where there is no object"
        )
    for i, target in enumerate(request.targets):
        if target["labels"].ndim != 1 or target["boxes"].shape != (len(target["labels"]), 4):
            raise ValueError(
                f"target {i}: `labels` {tuple(target['labels'].shape)} and `boxes` "
                f"{tuple(target['boxes'].shape)} must be (N,) and (N, 4)"
            )
    if request.gt_copy < 1:
        raise ValueError(f"`gt_copy` (={request.gt_copy}) must be at least 1")
