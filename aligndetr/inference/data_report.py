"""The report of a data set: findings, numbers, charts and pictures, in one HTML file."""

import html
import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from aligndetr.data.coco_reading import is_crowd
from aligndetr.data.image_reading import read_image
from aligndetr.data.survey import Finding, SplitSurvey
from aligndetr.utils.files import atomic_path
from aligndetr.utils.html import embedded, page

from .drawing import DrawnBoxes, draw_boxes
from .predictions import choose_evenly

MAX_CLASSES = 40
PICTURE_EDGE = 400


def summarise(survey: SplitSurvey) -> str:
    """One line: images, objects, classes, and the middle of what varies."""
    per_image, edges = survey.objects_per_image(), survey.box_edges()
    line = (
        f"{survey.split}: {len(per_image)} images, {len(edges)} objects of "
        f"{len(survey.categories)} classes, "
        f"{len(survey.annotations) - len(survey.objects)} crowd regions"
    )
    if len(edges):
        line += (
            f"; objects per image {np.median(per_image):g} (median) to {per_image.max()}, "
            f"box edge {edges.min():.0f} to {edges.max():.0f} px, median {np.median(edges):.0f}"
        )
    return line


def write_data_report(
    surveys: Sequence[SplitSurvey],
    findings: Sequence[Finding],
    path: str | os.PathLike,
    max_pictures: int = 6,
) -> None:
    """Write the report; it appears complete or not at all, and needs no other file.

    Args:
        max_pictures: images with their boxes, per split, at even distances.
    """
    parts = [_table(findings)]
    for survey in surveys:
        parts.append(f"<h2>{survey.split}</h2><p>{html.escape(summarise(survey))}</p>")
        parts.append(f"<p>{html.escape(str(survey.json_file))}</p>")
        if survey.objects:
            parts.append(embedded(_charts(survey)))
        parts += [embedded(picture) for picture in _pictures(survey, max_pictures)]
    with atomic_path(path) as temporary:
        temporary.write_text(page("Data report", parts), encoding="utf-8")


def _table(findings: Sequence[Finding]) -> str:
    if not findings:
        return "<p>Nothing is wrong or odd.</p>"
    rows = (
        f"<tr class='{f.level}'><td>{f.level}<td>{f.split}<td>{html.escape(f.text)}"
        for f in findings
    )
    return f"<table>{''.join(rows)}</table>"


def _charts(survey: SplitSurvey) -> Image.Image:
    """Objects per class (the most frequent and the rarest), objects per image, box edges."""
    classes = sorted(survey.objects_per_class().items(), key=lambda item: -item[1])
    if len(classes) > MAX_CLASSES:
        half = MAX_CLASSES // 2
        classes = [*classes[:half], ("…", 0), *classes[-half:]]
    figure = Figure(figsize=(15, max(4, 0.2 * len(classes))), layout="constrained")
    by_class, by_image, by_edge = figure.subplots(1, 3)
    rows = range(len(classes))
    by_class.barh(rows, [count for _, count in classes])
    by_class.set_yticks(rows, [name for name, _ in classes])
    by_class.invert_yaxis()
    by_class.set_title("objects per class")
    by_image.hist(survey.objects_per_image(), bins=30)
    by_image.set_title("images by their number of objects")
    edges = np.maximum(survey.box_edges(), 1)
    by_edge.hist(edges, bins=np.geomspace(1, max(edges.max(), 2), 30))
    by_edge.set_xscale("log")
    by_edge.set_title("objects by box edge (square root of the area, px)")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer)


def _pictures(survey: SplitSurvey, count: int) -> list[Image.Image]:
    """Images that can be read, with their boxes."""
    label_of = {number: label for label, number in enumerate(sorted(survey.categories))}
    readable = [image for image, found in zip(survey.images, survey.prints) if found is not None]
    pictures = []
    for image in choose_evenly(readable, count):
        own = [a for a in survey.annotations if a["image_id"] == image["id"]]
        boxes = np.array([a["bbox"] for a in own], dtype=float).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        drawn = DrawnBoxes(
            boxes=boxes,
            class_ids=[label_of[a["category_id"]] for a in own],
            captions=[survey.categories[a["category_id"]] for a in own],
            crowd=[is_crowd(a) for a in own],
        )
        pixels = np.asarray(read_image(Path(survey.image_root, image["file_name"])))
        pictures.append(draw_boxes(pixels, drawn, PICTURE_EDGE / max(pixels.shape[:2])))
    return pictures
