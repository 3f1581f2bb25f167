"""COCO's interpolated average precision from matched detections, with a weight for each image.

The numbers are those of pycocotools. Weights are for resampled images: an image that was drawn
twice counts as two equal ones.
"""

from dataclasses import dataclass

import numpy as np

from aligndetr.utils.numbers import known_mean

from .matching import Matches

RECALLS = np.linspace(0, 1, 101)


def interpolated_ap(true: np.ndarray, false: np.ndarray, num_objects: float) -> float:
    """Mean over 101 recalls of the highest precision at that recall or beyond.

    Args:
        true, false: (D,), from the highest score to the lowest: how much each detection counts as
            a true and as a false positive; at most one of them is not 0.
        num_objects: that there are to find, more than 0.

    Returns:
        In [0, 1].
    """
    hits = np.cumsum(true, dtype=float)
    return _interpolated(hits, hits + np.cumsum(false, dtype=float), num_objects)


def _interpolated(hits: np.ndarray, counted: np.ndarray, num_objects: float) -> float:
    """From the true positives and the detections up to each of some places (N,)."""
    # pycocotools adds this to the number of detections, which may be 0.
    precision = hits / (counted + np.spacing(1))
    highest_to_come = np.maximum.accumulate(precision[::-1])[::-1]
    index = np.searchsorted(hits / num_objects, RECALLS, side="left")
    return float(np.append(highest_to_come, 0.0)[index].mean())


def mean_ap(
    classes: np.ndarray, true: np.ndarray, false: np.ndarray, num_objects: np.ndarray
) -> tuple[float, np.ndarray]:
    """AP at one IoU threshold.

    Args:
        classes, true, false: (D,), from the highest score to the lowest.
        num_objects: (K,) of each class; one without objects has no AP.

    Returns:
        Mean over classes, NaN where no class has objects; and (K,) of each, NaN for no AP.
    """
    order = np.argsort(classes, kind="stable")
    starts = np.searchsorted(classes[order], np.arange(len(num_objects) + 1))
    aps = np.full(len(num_objects), np.nan)
    for label in np.flatnonzero(num_objects > 0):
        own = order[starts[label] : starts[label + 1]]
        aps[label] = interpolated_ap(true[own], false[own], num_objects[label])
    return known_mean(aps), aps


class WeightedAP:
    """AP of one set of matches under any number of weightings of its images."""

    def __init__(self, matches: Matches):
        self.num_images = matches.num_images
        self._thresholds = len(matches.found)
        self._classes = [_ClassMatches.of(matches, k) for k in range(matches.num_classes)]

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        """(T,): AP in [0, 1] at each IoU threshold, NaN where there is nothing to find.

        Args:
            weights: (images,), how often each image counts.
        """
        aps = []
        for own in self._classes:
            num_objects = weights[own.object_images].sum()
            if num_objects > 0:
                aps.append(own.aps(weights, num_objects))
        return np.mean(aps, axis=0) if aps else np.full(self._thresholds, np.nan)


@dataclass(frozen=True)
class _ClassMatches:
    """Detections (D,) of one class, kept so that a new weighting costs little.

    The highest precision at some recall is always met right after a true positive, so only these
    places are looked at, and their share of all detections so far is one running sum.
    """

    images: np.ndarray
    """(D,)"""
    ignored: np.ndarray | None
    """(T, D); None where no detection is ignored."""
    true: list[np.ndarray]
    """Of each threshold, which detections are true positives, rising."""
    object_images: np.ndarray

    @classmethod
    def of(cls, matches: Matches, label: int) -> "_ClassMatches":
        own = np.flatnonzero(matches.classes == label)
        true = [np.flatnonzero(row) for row in matches.is_true[:, own]]
        ignored = matches.ignored[:, own]
        return cls(
            images=matches.images[own],
            ignored=ignored if ignored.any() else None,
            true=true,
            object_images=matches.object_images[matches.object_classes == label],
        )

    def aps(self, weights: np.ndarray, num_objects: float) -> list[float]:
        """AP at each threshold."""
        weight = weights[self.images]
        counted = np.cumsum(weight, dtype=float)
        aps = []
        for threshold, true in enumerate(self.true):
            if self.ignored is not None:
                counted = np.cumsum(weight * ~self.ignored[threshold], dtype=float)
            hits = np.cumsum(weight[true], dtype=float)
            aps.append(_interpolated(hits, counted[true], num_objects))
        return aps
