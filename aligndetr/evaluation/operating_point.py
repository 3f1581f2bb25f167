"""A detector at one score threshold: which threshold, what it confuses, and where it fails."""

from dataclasses import dataclass

import numpy as np

from .matching import Matches
from .objects import box_iou


@dataclass(frozen=True)
class OperatingPoint:
    """Detections of at least one score, at IoU 0.5."""

    score: float
    precision: float
    recall: float
    f1: float


def best_f1(matches: Matches) -> OperatingPoint:
    """The score threshold of the highest F1 over all classes; of equal ones the highest.

    Without a true positive there is none: NaN.
    """
    hits, misses = np.cumsum(matches.is_true[0]), np.cumsum(matches.is_false[0])
    f1 = 2 * hits / np.maximum(hits + misses + len(matches.object_images), 1)
    # A threshold takes all detections of its score.
    last = np.append(np.diff(matches.scores) != 0, True)[: len(f1)]
    f1 = np.where(last, f1, -1.0)
    if not hits.any():
        return OperatingPoint(*[float("nan")] * 4)
    best = int(f1.argmax())
    return OperatingPoint(
        score=float(matches.scores[best]),
        precision=float(hits[best] / (hits[best] + misses[best])),
        recall=float(hits[best] / len(matches.object_images)),
        f1=float(f1[best]),
    )


def confusion_matrix(matches: Matches, score: float) -> np.ndarray:
    """(K + 1, K + 1) counts at IoU 0.5: rows are the objects' classes, columns the detections'.

    The diagonal holds the true positives of COCO's matching. Of what is left, detections take from
    the highest score on the free object of another class that they overlap most, from IoU 0.5 on.
    The last column counts objects that are not found, the last row detections that find none. What
    lies in a crowd region is left out.

    Args:
        score: of the detections that count, at least this.
    """
    background = matches.num_classes
    counted = (matches.scores >= score) & ~matches.ignored[0]
    found = np.where(counted, matches.found[0], -1)
    free = np.ones(len(matches.object_images), dtype=bool)
    free[found[found >= 0]] = False
    starts = np.searchsorted(matches.object_images, np.arange(matches.num_images + 1))
    rest = np.flatnonzero(counted & (found < 0))
    for index in rest[matches.other_iou[rest] >= 0.5]:
        image = matches.images[index]
        here = np.arange(int(starts[image]), int(starts[image + 1]))
        here = here[free[here] & (matches.object_classes[here] != matches.classes[index])]
        iou = box_iou(matches.boxes[index : index + 1], matches.object_boxes[here], crowd=False)[0]
        if iou.max(initial=0.0) >= 0.5:
            found[index] = here[iou.argmax()]
            free[found[index]] = False
    matrix = np.zeros((background + 1, background + 1), dtype=int)
    rows = np.append(matches.object_classes, background)[found[counted]]  # -1 is the background
    np.add.at(matrix, (rows, matches.classes[counted]), 1)
    missed = matches.object_classes[free]
    np.add.at(matrix, (missed, np.full_like(missed, background)), 1)
    return matrix


def panoptic_quality(matches: Matches, score: float) -> np.ndarray:
    """(images,) sum of the true positives' IoU / (TP + FP / 2 + FN / 2), at IoU 0.5.

    One number for an image: whether the objects are found, no others, and how well they are placed
    (Kirillov et al., "Panoptic Segmentation", CVPR 2019, there of segments). NaN where there is
    nothing to find and nothing was found.

    Args:
        score: of the detections that count, at least this.
    """
    counted = matches.scores >= score
    true, false = matches.is_true[0] & counted, matches.is_false[0] & counted

    def per_image(images: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        return np.bincount(images, weights, minlength=matches.num_images)

    # The object found is that of the highest free IoU, which another may have taken from it.
    iou = per_image(matches.images[true], _iou_of_pairs(matches, np.flatnonzero(true)))
    hits, wrong = per_image(matches.images[true]), per_image(matches.images[false])
    all_there = per_image(matches.object_images)
    size = (hits + wrong + all_there) / 2  # = TP + FP / 2 + FN / 2
    return np.where(size > 0, iou / np.where(size > 0, size, 1), np.nan)


def _iou_of_pairs(matches: Matches, detections: np.ndarray) -> np.ndarray:
    """(N,): IoU of detections with the objects that they find."""
    a = matches.boxes[detections]
    b = matches.object_boxes[matches.found[0, detections]]
    low = np.maximum(a[:, :2], b[:, :2])
    high = np.minimum(a[:, :2] + a[:, 2:], b[:, :2] + b[:, 2:])
    inter = np.maximum(high - low, 0).prod(axis=1)
    return inter / (a[:, 2:].prod(axis=1) + b[:, 2:].prod(axis=1) - inter)
