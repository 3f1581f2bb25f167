"""Alignment in numbers: of all, of each size and of each class, ready to be written as json."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .alignment import Alignment, best_regressed_recall, calibration, correlations
from .objects import SIZES, of_size


def summarise_alignment(
    layers: Mapping[str, Alignment], class_names: Sequence[str]
) -> dict[str, Any]:
    """Every number of docs/alignment.md, layer by layer, and of the last by size and class.

    Args:
        layers: by name, in the order of the model.
        class_names: in the order of the category ids.

    Returns:
        {"layers": [{"name", …}], "sizes": [{"name", …}], "classes": [{"name", …}], "calibration":
        {…}}: numbers, lists and texts; NaN where there is nothing to say.
    """
    *_, last = layers.values()
    sizes = {size: of_size(last.object_areas, size) for size in SIZES}
    classes = {name: last.object_classes == label for label, name in enumerate(class_names)}
    bins = calibration(last.scores, last.assigned_iou)
    return {
        "layers": [{"name": name} | _of_layer(layer) for name, layer in layers.items()],
        "sizes": [{"name": n} | _of_objects(last.of_objects(c)) for n, c in sizes.items()],
        "classes": [{"name": n} | _of_objects(last.of_objects(c)) for n, c in classes.items()],
        "calibration": {
            "counts": bins.counts.tolist(),
            "mean_scores": bins.mean_scores.tolist(),
            "mean_ious": bins.mean_ious.tolist(),
        },
    }


def _of_layer(layer: Alignment) -> dict[str, float]:
    pearson, spearman = correlations(layer.scores, layer.nearest_iou)
    matched = layer.assigned_iou > 0
    return _of_objects(layer) | {
        "candidates": len(layer.scores),
        "pearson_all": pearson,
        "spearman_all": spearman,
        "calibration_error": calibration(layer.scores, layer.assigned_iou).error,
        "calibration_error_matched": calibration(
            layer.scores[matched], layer.assigned_iou[matched]
        ).error,
    }


def _of_objects(layer: Alignment) -> dict[str, float]:
    matched = layer.object_ious > 0
    pearson, spearman = correlations(layer.object_scores[matched], layer.object_ious[matched])
    return {
        "objects": len(layer.object_classes),
        "matched": int(matched.sum()),
        "pearson": pearson,
        "spearman": spearman,
        "best_regressed_recall_1": best_regressed_recall(layer, 1),
        "best_regressed_recall_2": best_regressed_recall(layer, 2),
        "best_iou": _mean(layer.best_iou),
        "assigned_iou": _mean(layer.object_ious),
    }


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
