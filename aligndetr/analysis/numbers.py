"""All numbers of an evaluation, as the report's json holds them."""

import contextlib
import io
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from aligndetr.evaluation.alignment import Alignment
from aligndetr.evaluation.alignment_summary import summarise_alignment
from aligndetr.evaluation.average_precision import RECALLS
from aligndetr.evaluation.bootstrap import METRICS
from aligndetr.evaluation.box_ap import evaluate_boxes
from aligndetr.evaluation.error_analysis import KINDS, analyse_errors
from aligndetr.evaluation.matching import Matches, match_boxes
from aligndetr.evaluation.objects import SIZES, objects_by_image, of_size
from aligndetr.evaluation.operating_point import best_f1, confusion_matrix
from aligndetr.utils.numbers import known_mean, without_nan

from .evaluations import Evaluation
from .judged_images import judge_images

MAX_CONFUSIONS = 20


def analyse(
    evaluation: Evaluation, layers: Mapping[str, Alignment] | None = None
) -> tuple[dict[str, Any], Matches, Mapping[str, Alignment]]:
    """Measure everything that docs/alignment.md and docs/analysis.md describe.

    Args:
        layers: of an `AlignmentEvaluator`; None measures the alignment of the detections.

    Returns:
        What the json holds (percent for AP and AR, shares in [0, 1] for the rest, None for what
        has no value); the matches; the alignment, `layers` if it was given.
    """
    matches = match_boxes(evaluation.truth, evaluation.results, evaluation.max_detections)
    layers = layers or {"detections": _alignment_of_detections(evaluation, matches)}
    point = best_f1(matches)
    score = 0.0 if np.isnan(point.score) else point.score
    content = {
        "name": evaluation.name,
        "images": matches.num_images,
        "objects": len(matches.object_images),
        "detections": len(matches.scores),
        **_coco(evaluation),
        "errors": _errors(matches),
        "operating_point": asdict(point),
        "confusion": _confusion(matches, score, evaluation.class_names),
        "alignment": summarise_alignment(layers, evaluation.class_names),
        "image_quality": _qualities(evaluation, matches, score),
    }
    return without_nan(content), matches, layers


def metrics_of(stats: np.ndarray, max_detections: int) -> dict[str, float]:
    """COCO's twelve in the order of its summary, in percent; NaN where COCO says -1."""
    precisions = ("AP", "AP50", "AP75", "APs", "APm", "APl")
    recalls = ("AR1", "AR10", f"AR{max_detections}", "ARs", "ARm", "ARl")
    return dict(zip(precisions + recalls, _percent(stats).tolist(), strict=True))


def _coco(evaluation: Evaluation) -> dict[str, Any]:
    """AP and AR of all, by size and by class, and precision over recall."""
    # It numbers the results' images in place.
    results = [dict(result) for result in evaluation.results]
    with contextlib.redirect_stdout(io.StringIO()):
        summary = evaluate_boxes(
            evaluation.truth, results, max_detections=evaluation.max_detections
        )
    precision = _percent(summary.eval["precision"][..., -1])  # (T, R, K, A)
    recall = _percent(summary.eval["recall"][..., -1])  # (T, K, A)
    areas = ("all", *SIZES)
    counts = _count_objects(evaluation, areas)
    names = evaluation.class_names

    def row(name: str, classes: slice | int, area: int) -> dict[str, Any]:
        return {
            "name": name,
            "objects": int(counts[classes, area].sum()),
            "AP": known_mean(precision[:, :, classes, area]),
            "AP50": known_mean(precision[0, :, classes, area]),
            "AP75": known_mean(precision[METRICS["AP75"], :, classes, area]),
            "AR": known_mean(recall[:, classes, area]),
        }

    by_class = []
    for label, name in enumerate(names):
        sizes = {
            f"AP{size[0]}": known_mean(precision[:, :, label, i])
            for i, size in enumerate(SIZES, start=1)
        }
        by_class.append(row(name, label, 0) | sizes)
    return {
        "metrics": metrics_of(summary.stats, evaluation.max_detections),
        "sizes": [row(name, slice(None), area) for area, name in enumerate(areas)],
        "classes": by_class,
        "curves": {
            "recall": (100 * RECALLS).tolist(),
            "0.50": _mean_over(precision[0, :, :, 0]),
            "0.75": _mean_over(precision[METRICS["AP75"], :, :, 0]),
            "0.50:0.95": _mean_over(precision[:, :, :, 0].transpose(1, 2, 0).reshape(101, -1)),
            "classes_at_0.50": precision[0, :, :, 0].T.tolist(),
        },
    }


def _count_objects(evaluation: Evaluation, areas: tuple[str, ...]) -> np.ndarray:
    """(K, areas)"""
    objects = objects_by_image(evaluation.truth)
    labels = np.concatenate([o.classes for o in objects])
    sizes = np.concatenate([o.areas for o in objects])
    every = np.ones(len(sizes), dtype=bool)
    inside = [of_size(sizes, area) if area in SIZES else every for area in areas]
    count = len(evaluation.class_names)
    return np.stack([np.bincount(labels[chosen], minlength=count) for chosen in inside], axis=1)


def _errors(matches: Matches) -> dict[str, Any]:
    found = analyse_errors(matches)
    return {
        "AP50": found.ap,
        "kinds": [
            {"name": name, "gain": found.gains[name], "count": found.counts[name]} for name in KINDS
        ],
        "gain_without_false_positives": found.gain_without_false_positives,
        "gain_without_false_negatives": found.gain_without_false_negatives,
    }


def _confusion(matches: Matches, score: float, names: list[str]) -> dict[str, Any]:
    matrix = confusion_matrix(matches, score)
    between = matrix[:-1, :-1] * (1 - np.eye(len(names), dtype=int))
    order = np.argsort(-between, axis=None, kind="stable")[:MAX_CONFUSIONS]
    pairs = [np.unravel_index(index, between.shape) for index in order]
    return {
        "names": [*names, "background"],
        "matrix": matrix.tolist(),
        "most_frequent": [
            {"is": names[i], "taken_for": names[j], "count": int(between[i, j])}
            for i, j in pairs
            if between[i, j]
        ],
    }


def _qualities(evaluation: Evaluation, matches: Matches, score: float) -> list[dict[str, Any]]:
    """From the worst image to the best; images without a quality are left out."""
    return [
        {
            "file_name": evaluation.file_names[judged.number],
            "quality": judged.quality,
            "right": judged.true,
            "wrong": judged.false,
            "missed": judged.missed,
        }
        for judged in judge_images(matches, score)
    ]


def _alignment_of_detections(evaluation: Evaluation, matches: Matches) -> Alignment:
    order = np.argsort(matches.images, kind="stable")  # keeps the scores falling
    starts = np.searchsorted(matches.images[order], np.arange(matches.num_images + 1))
    parts = []
    for here, start, end in zip(objects_by_image(evaluation.truth), starts[:-1], starts[1:]):
        own = order[start:end]
        found = (matches.scores[own], matches.classes[own], matches.boxes[own])
        parts.append(Alignment.of_image(*found, here))
    return Alignment.concatenate(parts)


def _percent(values: np.ndarray) -> np.ndarray:
    return np.where(values == -1, np.nan, 100 * values)


def _mean_over(rows: np.ndarray) -> list[float]:
    return [known_mean(row) for row in rows]
