"""COCO's interpolated average precision from matched detections, with a weight for each image.

The numbers are those of pycocotools. Weights are for resampled images: an image that was drawn
twice counts as two equal ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

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
    precision, recall = precision_recall(true, false, num_objects)
    index = np.searchsorted(recall, RECALLS, side="left")
    return float(np.append(precision, 0.0)[index].mean())


def precision_recall(
    true: np.ndarray, false: np.ndarray, num_objects: float
) -> tuple[np.ndarray, np.ndarray]:
    """Two (D,): precision after each detection, raised to the highest that follows, and recall."""
    hits, misses = np.cumsum(true, dtype=float), np.cumsum(false, dtype=float)
    # pycocotools adds this to the number of detections, which may be 0.
    precision = hits / (hits + misses + np.spacing(1))
    return np.maximum.accumulate(precision[::-1])[::-1], hits / num_objects


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
    return _mean(aps), aps


@dataclass(frozen=True)
class _ClassMatches:
    """Detections of one class up to the last that finds anything: later ones cannot change AP."""

    images: np.ndarray
    true: np.ndarray
    false: np.ndarray
    object_images: np.ndarray


class WeightedAP:
    """AP of one set of matches under any number of weightings of its images."""

    def __init__(self, matches: Matches):
        self.num_images = matches.num_images
        self._classes = [_class_matches(matches, k) for k in range(matches.num_classes)]
        self._thresholds = len(matches.found)

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        """(T,): AP in [0, 1] at each IoU threshold, NaN where there is nothing to find.

        Args:
            weights: (images,), how often each image counts.
        """
        aps = []
        for own in self._classes:
            num_objects = weights[own.object_images].sum()
            if num_objects > 0:
                weight = weights[own.images]
                aps.append(
                    [
                        interpolated_ap(true * weight, false * weight, num_objects)
                        for true, false in zip(own.true, own.false)
                    ]
                )
        return np.mean(aps, axis=0) if aps else np.full(self._thresholds, np.nan)


def _class_matches(matches: Matches, label: int) -> _ClassMatches:
    own = np.flatnonzero(matches.classes == label)
    is_true = matches.is_true[:, own]
    own = own[: np.flatnonzero(is_true.any(axis=0)).max(initial=-1) + 1]
    return _ClassMatches(
        images=matches.images[own],
        true=matches.is_true[:, own],
        false=matches.is_false[:, own],
        object_images=matches.object_images[matches.object_classes == label],
    )


def _mean(values: Sequence[float] | np.ndarray) -> float:
    known = np.asarray(values)[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
