"""The report of an evaluation: one HTML file with everything in it, and its numbers as json."""

import html
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from aligndetr.evaluation.alignment import Alignment
from aligndetr.evaluation.error_analysis import KINDS
from aligndetr.evaluation.matching import Matches
from aligndetr.utils.files import atomic_path
from aligndetr.utils.html import embedded, number_cell, page, table, text_cell

from .charts import alignment_chart, as_picture, confusion_chart, curve_chart, error_chart
from .evaluations import Evaluation
from .image_pictures import draw_image
from .judged_images import judge_images
from .numbers import analyse

REPORT_FILE = "report.html"
NUMBERS_FILE = "report.json"
ALIGNMENT_COLUMNS = {
    "pearson": "Pearson",
    "spearman": "Spearman",
    "best_regressed_recall_1": "recall, top N",
    "best_regressed_recall_2": "recall, top 2N",
    "best_iou": "best IoU",
    "assigned_iou": "assigned IoU",
}


def write_report(
    evaluation: Evaluation,
    output_dir: str | os.PathLike,
    layers: Mapping[str, Alignment] | None = None,
    max_pictures: int = 6,
) -> dict[str, Any]:
    """Write report.html and report.json; each appears complete or not at all.

    Args:
        layers: of an `AlignmentEvaluator`; None measures the alignment of the detections.
        max_pictures: of the best images, and of the worst.

    Returns:
        The content of the json, see `analyse`.
    """
    content, matches, layers = analyse(evaluation, layers)
    text = page(
        f"Report of {evaluation.name}", _parts(content, evaluation, matches, layers, max_pictures)
    )
    folder = Path(output_dir)
    with atomic_path(folder / NUMBERS_FILE) as temporary:
        temporary.write_text(json.dumps(content, allow_nan=False), encoding="utf-8")
    with atomic_path(folder / REPORT_FILE) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return content


def _parts(
    content: dict[str, Any],
    evaluation: Evaluation,
    matches: Matches,
    layers: Mapping[str, Alignment],
    max_pictures: int,
) -> Iterator[str]:
    yield table(
        ["images", "objects", "detections", *content["metrics"]],
        [
            [number_cell(content, key) for key in ("images", "objects", "detections")]
            + [number_cell(content, f"metrics.{name}") for name in content["metrics"]]
        ],
    )
    yield from _sizes_and_classes(content)
    yield from _errors(content)
    yield from _confusion(content)
    yield from _alignment(content, layers)
    yield from _images(content, evaluation, matches, max_pictures)


def _sizes_and_classes(content: dict[str, Any]) -> Iterator[str]:
    yield "<h2>Precision and recall</h2>"
    yield embedded(as_picture(curve_chart(content["curves"], content["classes"])))
    columns = ["objects", "AP", "AP50", "AP75", "AR"]
    for kind, names in (("sizes", columns), ("classes", [*columns, "APs", "APm", "APl"])):
        rows = (
            [text_cell(row["name"]), *(number_cell(content, f"{kind}.{i}.{n}") for n in names)]
            for i, row in enumerate(content[kind])
        )
        yield f"<h3>By {'size' if kind == 'sizes' else 'class'}</h3>" + table([kind, *names], rows)


def _errors(content: dict[str, Any]) -> Iterator[str]:
    yield "<h2>What AP50 is lost to</h2>"
    yield (
        "<p>Kinds of error as TIDE defines them (Bolya et al., ECCV 2020). Each is repaired alone; "
        "the gains do not add up, since errors hide each other.</p>"
    )
    yield embedded(as_picture(error_chart(content["errors"])))
    rows = [
        [
            text_cell(row["name"]),
            text_cell(KINDS[row["name"]]),
            number_cell(content, f"errors.kinds.{i}.count"),
            number_cell(content, f"errors.kinds.{i}.gain", 2),
        ]
        for i, row in enumerate(content["errors"]["kinds"])
    ]
    for name in ("false_positives", "false_negatives"):
        label = name.replace("_", " ")
        gain = number_cell(content, f"errors.gain_without_{name}", 2)
        rows.append([text_cell(f"all {label}"), text_cell("as if there were none"), "<td>", gain])
    yield table(["error", "is", "count", "gain in AP50"], rows)


def _confusion(content: dict[str, Any]) -> Iterator[str]:
    yield "<h2>Confusion at the best F1</h2>"
    names = ("score", "precision", "recall", "f1")
    yield table(names, [[number_cell(content, f"operating_point.{name}", 3) for name in names]])
    yield embedded(as_picture(confusion_chart(content["confusion"])))
    pairs = content["confusion"]["most_frequent"]
    if pairs:
        rows = (
            [
                text_cell(pair["is"]),
                text_cell(pair["taken_for"]),
                number_cell(content, f"confusion.most_frequent.{i}.count"),
            ]
            for i, pair in enumerate(pairs)
        )
        yield table(["is", "taken for", "count"], rows)


def _alignment(content: dict[str, Any], layers: Mapping[str, Alignment]) -> Iterator[str]:
    summary = content["alignment"]
    yield "<h2>Alignment of score and IoU</h2>"
    yield embedded(as_picture(alignment_chart(layers, summary)))
    of_layers = ALIGNMENT_COLUMNS | {
        "pearson_all": "Pearson, all",
        "spearman_all": "Spearman, all",
        "calibration_error": "calibration error",
    }
    for kind, columns in (
        ("layers", of_layers),
        ("sizes", ALIGNMENT_COLUMNS),
        ("classes", ALIGNMENT_COLUMNS),
    ):
        rows = (
            [
                text_cell(row["name"]),
                number_cell(content, f"alignment.{kind}.{i}.objects"),
                *(number_cell(content, f"alignment.{kind}.{i}.{key}", 3) for key in columns),
            ]
            for i, row in enumerate(summary[kind])
        )
        yield table([kind, "objects", *columns.values()], rows)


def _images(
    content: dict[str, Any], evaluation: Evaluation, matches: Matches, count: int
) -> Iterator[str]:
    yield "<h2>Worst and best images</h2>"
    yield (
        "<p>By panoptic quality at the best F1's score: the sum of the IoUs of what is found, over "
        "the true positives and half of the errors. Left ground truth, right detections; green is "
        "found or right, vermilion missed or wrong.</p>"
    )
    if evaluation.image_root is None:
        yield "<p>The images were not at hand.</p>"
        return
    score = content["operating_point"]["score"] or 0.0
    images = judge_images(matches, score)
    worst, rest = images[:count], images[count:]
    for title, chosen in (("Worst", worst), ("Best", rest[: -count - 1 : -1])):
        yield f"<h3>{title}</h3>"
        for judged in chosen:
            name = evaluation.file_names[judged.number]
            try:
                picture = draw_image(evaluation, matches, judged.number, score)
            except (OSError, ValueError) as error:
                yield f"<p>{html.escape(f'{name}: {error}')}</p>"
            else:
                yield embedded(picture, f"{name}   {judged.caption}", "jpeg")
