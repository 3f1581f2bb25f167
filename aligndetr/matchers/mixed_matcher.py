"""Mixed matching: one query per object, or several, by the Hungarian algorithm.

An object that may have k queries enters the assignment k times, so the queries of all objects
are chosen together and none serves two. Each image is matched by itself; all images of all
layers share one transfer to the host, where the assignment runs.
"""

from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from aligndetr.layers import box_cxcywh_to_xyxy, generalized_box_iou
from aligndetr.utils.errors import NonFinitePredictionError

CLASS_COSTS = ("focal_loss_cost", "ce_cost")


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
        device = requests[0].outputs["pred_logits"].device
        with torch.autocast(device.type, enabled=False):
            values = torch.cat([part for r in requests for part in self._values_of(r)])
        host = _Reader(values.cpu().numpy())
        pairs = [pair for request in requests for pair in _assign(request, host)]

        flat = torch.from_numpy(np.concatenate([index for pair in pairs for index in pair]))
        split = iter(flat.to(device).split([len(index) for pair in pairs for index in pair]))
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
        # An index outside would abort the CUDA context; `match` reports it from the host.
        labels = labels.clamp(0, logits.shape[-1] - 1)
        l1 = torch.cdist(boxes, targets, p=1)
        giou = generalized_box_iou(box_cxcywh_to_xyxy(boxes), box_cxcywh_to_xyxy(targets))
        class_cost = self._class_cost(logits, labels)
        return self.cost_bbox * l1 + self.cost_class * class_cost - self.cost_giou * giou

    def _class_cost(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.cost_class_type == "ce_cost":
            return -logits.softmax(-1)[:, labels]
        score = logits[:, labels].sigmoid()
        positive = -self.alpha * (1 - score) ** self.gamma * (score + 1e-8).log()
        negative = -(1 - self.alpha) * score**self.gamma * (1 - score + 1e-8).log()
        return positive - negative

    def _values_of(self, request: MatchRequest) -> list[Tensor]:
        """All that the host has to know, flat: per image a total, the labels, the costs."""
        _check_shapes(request)
        logits, boxes = (
            x.to(torch.promote_types(x.dtype, torch.float32))
            for x in (request.outputs["pred_logits"], request.outputs["pred_boxes"])
        )
        # NaN or infinite if and only if some prediction for the image is.
        totals = logits.sum((1, 2)) + boxes.sum((1, 2))
        values = []
        for i, target in enumerate(request.targets):
            labels, gt_boxes = target["labels"].to(logits.device), target["boxes"].to(boxes)
            cost = self.cost_matrix(logits[i], boxes[i], labels, gt_boxes)
            values += [totals[i : i + 1], labels.to(cost.dtype), cost.flatten()]
        return values


class _Reader:
    """Hands out the values of a flat array in the order in which they were written."""

    def __init__(self, values: np.ndarray):
        self.values = values

    def take(self, count: int) -> np.ndarray:
        taken, self.values = self.values[:count], self.values[count:]
        assert len(taken) == count, (len(taken), count)
        return taken


def _assign(request: MatchRequest, host: _Reader) -> list[tuple[np.ndarray, np.ndarray]]:
    """(query_idx, gt_idx) of each image of a request, or an error about what stands in the way."""
    num_queries, num_classes = request.outputs["pred_logits"].shape[1:]
    pairs = []
    for i, target in enumerate(request.targets):
        num_objects = len(target["labels"])
        if not np.isfinite(host.take(1)).all():
            raise NonFinitePredictionError(request.name, i)
        labels = host.take(num_objects).astype(np.int64)
        unknown = labels[(labels < 0) | (labels >= num_classes)]
        if len(unknown):
            raise ValueError(
                f"image {i} of the batch has labels {sorted(set(unknown.tolist()))}, but the model "
                f"has {num_classes} classes; labels must be in [0, {num_classes}). Set "
                "`model.num_classes` to the number of categories in the data."
            )
        cost = host.take(num_queries * num_objects).reshape(num_queries, num_objects)
        unusable = ~np.isfinite(cost)
        if unusable.all(axis=0).any():  # an object that no query can be compared with
            raise ValueError(
                f"image {i} of the batch: the target boxes of objects "
                f"{np.flatnonzero(unusable.all(axis=0)).tolist()} are not finite; boxes must be "
                "cxcywh in [0, 1]. Check the annotations."
            )
        if unusable.any():  # finite, but so large that comparing them overflows
            raise NonFinitePredictionError(request.name, i)
        pairs.append(_assign_image(cost, request.gt_copy))
    return pairs


def _assign_image(cost: np.ndarray, gt_copy: int) -> tuple[np.ndarray, np.ndarray]:
    """Best assignment for a (Q, N) cost matrix: query and object indices, sorted by object."""
    num_queries, num_objects = cost.shape
    if num_objects == 0:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    copies = max(1, min(gt_copy, num_queries // (2 * num_objects)))
    query_idx, column = linear_sum_assignment(np.tile(cost, (1, copies)))
    gt_idx = column % num_objects
    order = gt_idx.argsort(kind="stable")
    return query_idx[order], gt_idx[order]


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
