"""How well scores say how good boxes are: the measures of docs/alignment.md, image by image.

Shapes: C candidates (queries of one layer, or detections) and M objects of one image; over many
images C and M are sums. A class is a number from 0, in the order of the category ids. Boxes are
XYWH in pixels of the original image.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from .objects import ImageObjects

MIN_IOU = 0.1
"""From here on a candidate can be assigned to an object; below it is background, as in TIDE."""
CROWD_COVER = 0.5
"""An unassigned candidate that a crowd region of its class covers so far is left out."""


@dataclass(frozen=True)
class Alignment:
    """Candidates and objects, the same measured for one image or for many."""

    scores: np.ndarray
    """(C,) s: the score of a candidate."""
    nearest_iou: np.ndarray
    """(C,) u: the highest IoU with an object of its class."""
    assigned_iou: np.ndarray
    """(C,) t: IoU with the object assigned to it, 0 for none."""
    object_classes: np.ndarray
    """(M,)"""
    object_areas: np.ndarray
    """(M,)"""
    object_counts: np.ndarray
    """(M,) N: how many objects the image of this one has."""
    best_iou: np.ndarray
    """(M,): the highest IoU of any candidate, of whichever class."""
    best_rank: np.ndarray
    """(M,): how many candidates of the image have a higher score than the one of `best_iou`; the
    number of candidates where none overlaps the object."""
    object_scores: np.ndarray
    """(M,): score of the candidate assigned to it, 0 for none."""
    object_ious: np.ndarray
    """(M,): IoU of the candidate assigned to it, 0 for none."""

    @classmethod
    def of_image(
        cls, scores: np.ndarray, classes: np.ndarray, boxes: np.ndarray, objects: ImageObjects
    ) -> "Alignment":
        """Measure the candidates (C,), (C,), (C, 4) of one image; of equal scores the first is
        taken for the higher."""
        order = np.argsort(-scores, kind="stable")
        scores, classes, boxes = scores[order], classes[order], boxes[order]
        iou = objects.iou(boxes)
        same_iou = iou * objects.same_class(classes)
        assigned = assign(same_iou)
        assigned_iou = np.zeros(len(scores))
        taken = assigned >= 0
        assigned_iou[assigned[taken]] = same_iou[assigned[taken], taken]
        in_crowd = (assigned_iou == 0) & (objects.crowd_cover(boxes, classes) >= CROWD_COVER)
        best_iou = iou.max(axis=0, initial=0.0)
        best_rank = iou.argmax(axis=0) if len(iou) else np.zeros(len(best_iou), dtype=int)
        return cls(
            scores=scores[~in_crowd],
            nearest_iou=same_iou.max(axis=1, initial=0.0)[~in_crowd],
            assigned_iou=assigned_iou[~in_crowd],
            object_classes=objects.classes,
            object_areas=objects.areas,
            object_counts=np.full(len(objects.classes), len(objects.classes)),
            best_iou=best_iou,
            best_rank=np.where(best_iou > 0, best_rank, len(scores)),
            object_scores=np.where(taken, np.append(scores, 0.0)[assigned], 0.0),
            object_ious=np.where(taken, np.append(assigned_iou, 0.0)[assigned], 0.0),
        )

    @classmethod
    def concatenate(cls, parts: Sequence["Alignment"]) -> "Alignment":
        """Of several images, at least one."""
        return cls(
            *(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls))
        )

    def of_objects(self, chosen: np.ndarray) -> "Alignment":
        """Some of the objects (M,) and all candidates."""
        names = [f.name for f in fields(self)]
        return Alignment(
            *(getattr(self, n)[chosen if n.startswith(("object_", "best_")) else slice(None)]
              for n in names)
        )  # fmt: skip


def assign(iou: np.ndarray) -> np.ndarray:
    """(M,): the candidate of each object, -1 for none.

    From the first on, a candidate takes the free object that it overlaps most, from MIN_IOU on.

    Args:
        iou: (C, M) from the highest score to the lowest, 0 where the classes differ.
    """
    free = iou.copy()
    assigned = np.full(iou.shape[1], -1)
    for _ in range(iou.shape[1]):
        candidates = np.flatnonzero((free >= MIN_IOU).any(axis=1))
        if not len(candidates):
            break
        first = candidates[0]
        index = free[first].argmax()
        assigned[index] = first
        free[:, index] = 0.0
        free[first] = 0.0
    return assigned


def best_regressed_recall(alignment: Alignment, factor: float) -> float:
    """Share of the objects whose best regressed candidate is among the `factor` * N of the highest
    score, N the objects of its image. NaN without objects."""
    limit = factor * alignment.object_counts
    hit = (alignment.best_rank < limit) & (alignment.best_iou > 0)
    return float(hit.mean()) if len(hit) else float("nan")


def correlations(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Pearson's and Spearman's coefficient; NaN for fewer than three pairs and for constants."""
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan"), float("nan")
    from scipy import stats  # here: it takes a second that no training needs

    return float(np.corrcoef(x, y)[0, 1]), float(stats.spearmanr(x, y).statistic)


@dataclass(frozen=True)
class Calibration:
    """Score as a promise of IoU, in B bins of equal width over [0, 1]."""

    counts: np.ndarray
    """(B,)"""
    mean_scores: np.ndarray
    """(B,) NaN in empty bins"""
    mean_ious: np.ndarray
    """(B,) NaN in empty bins"""
    error: float
    """Mean over the pairs of |mean score - mean IoU| of their bin; NaN without pairs."""


def calibration(scores: np.ndarray, ious: np.ndarray, num_bins: int = 20) -> Calibration:
    """Compare scores (N,) with IoUs (N,), bin by bin."""
    bins = np.minimum((scores * num_bins).astype(int), num_bins - 1)
    counts = np.bincount(bins, minlength=num_bins)
    some = np.maximum(counts, 1)
    mean_score, mean_iou = (
        np.where(counts > 0, np.bincount(bins, values, minlength=num_bins) / some, np.nan)
        for values in (scores, ious)
    )
    gaps = counts * np.nan_to_num(np.abs(mean_score - mean_iou))
    error = float(gaps.sum() / counts.sum()) if len(scores) else float("nan")
    return Calibration(counts, mean_score, mean_iou, error)
