"""What average precision is lost to which kind of error, as TIDE defines it.

Bolya, Foley, Hays, Hoffman, "TIDE: A General Toolbox for Identifying Object Detection Errors",
ECCV 2020. Each false positive has one kind, each error kind is repaired alone, and what AP then
gains is what the kind costs. The costs do not add up to 100 - AP: errors hide each other.
"""

from dataclasses import dataclass

import numpy as np

from .average_precision import mean_ap
from .matching import IOU_THRESHOLDS, Matches

FOREGROUND_IOU = float(IOU_THRESHOLDS[0])
BACKGROUND_IOU = 0.1

KINDS = {
    "classification": "right place, wrong class",
    "localisation": "right class, IoU between 0.1 and 0.5",
    "both": "wrong class, IoU between 0.1 and 0.5",
    "duplicate": "a second detection of an object that was found",
    "background": "no object, IoU below 0.1",
    "missed": "object that no detection comes near",
}
"""In the order of the paper; the first five are of detections, the last of objects."""
CLASSIFICATION, LOCALISATION, BOTH, DUPLICATE, BACKGROUND = range(5)
NO_ERROR = -1


@dataclass(frozen=True)
class ErrorAnalysis:
    """AP at IoU 0.5 and what it would gain; all in percent."""

    ap: float
    gains: dict[str, float]
    """By kind (`KINDS`): AP with this kind repaired, minus `ap`."""
    counts: dict[str, int]
    """Detections, for "missed" objects, of each kind."""
    gain_without_false_positives: float
    gain_without_false_negatives: float


def error_kinds(matches: Matches) -> np.ndarray:
    """(D,): place in `KINDS` of the error that a detection is, NO_ERROR for true positives and
    for those in crowd regions.

    Where several kinds apply, the order is that of the authors' tool: localisation,
    classification, duplicate, background, both.
    """
    same, other = matches.same_iou, matches.other_iou
    rules = [
        (~matches.is_false[0], NO_ERROR),
        ((same >= BACKGROUND_IOU) & (same <= FOREGROUND_IOU), LOCALISATION),
        (other >= FOREGROUND_IOU, CLASSIFICATION),
        (same >= FOREGROUND_IOU, DUPLICATE),
        (np.maximum(same, other) <= BACKGROUND_IOU, BACKGROUND),
    ]
    return np.select([rule for rule, _ in rules], [kind for _, kind in rules], default=BOTH)


def analyse_errors(matches: Matches) -> ErrorAnalysis:
    """Count the errors at IoU 0.5 and repair each kind in turn.

    Repaired, a classification or localisation error finds the object that it is about, if no
    detection has found it and none of a higher score is about it (as in the authors' tool, of
    either kind); else it is removed, as both, duplicates and background always are. Missed objects
    are those that are not found and that no such error is about; they are taken out of the count.
    """
    kinds = error_kinds(matches)
    num_objects = matches.objects_per_class()
    true, false = matches.is_true[0], matches.is_false[0]
    target = np.select(
        [kinds == LOCALISATION, kinds == CLASSIFICATION],
        [matches.same_object, matches.other_object],
        default=-1,
    )
    found = matches.is_found()
    repaired = _first_of_each(target, found)
    base, _ = mean_ap(matches.classes, true, false, num_objects)

    gains, counts = {}, {}
    for kind, name in enumerate(list(KINDS)[: BACKGROUND + 1]):
        of_kind = kinds == kind
        made_true = of_kind & repaired
        classes = matches.classes.copy()
        if kind == CLASSIFICATION:
            classes[made_true] = matches.object_classes[target[made_true]]
        ap, _ = mean_ap(classes, true | made_true, false & ~of_kind, num_objects)
        gains[name], counts[name] = 100 * (ap - base), int(of_kind.sum())

    missed = ~found
    missed[target[target >= 0]] = False
    gains["missed"] = 100 * (_ap_without(matches, missed) - base)
    counts["missed"] = int(missed.sum())
    clean, _ = mean_ap(matches.classes, true, np.zeros_like(false), num_objects)
    return ErrorAnalysis(
        ap=100 * base,
        gains=gains,
        counts=counts,
        gain_without_false_positives=100 * (clean - base),
        gain_without_false_negatives=100 * (_ap_without(matches, ~found) - base),
    )


def _first_of_each(target: np.ndarray, found: np.ndarray) -> np.ndarray:
    """(D,) bools: of the detections about one object that was not found, the first."""
    about = np.flatnonzero(target >= 0)
    _, first = np.unique(target[about], return_index=True)  # detections come by falling score
    first = about[first]
    chosen = np.zeros(len(target), dtype=bool)
    chosen[first[~found[target[first]]]] = True
    return chosen


def _ap_without(matches: Matches, objects: np.ndarray) -> float:
    """AP in [0, 1] if some objects (G,) did not count.

    A class that loses its last object in this way stays a class, with AP 0: what is repaired must
    not change what the mean is over.
    """
    num_objects = matches.objects_per_class()
    left = num_objects - np.bincount(matches.object_classes[objects], minlength=matches.num_classes)
    _, aps = mean_ap(matches.classes, matches.is_true[0], matches.is_false[0], left)
    aps = np.where((num_objects > 0) & (left == 0), 0.0, aps)
    return float(np.nanmean(aps)) if (num_objects > 0).any() else float("nan")
