"""A sheet of pictures: what a detector finds beside what is there."""

import os
from collections.abc import Callable, Sequence

import numpy as np
import torch
from detectron2.structures import BoxMode, Instances
from torch import nn

from aligndetr.data.image_reading import read_image

from .drawing import DrawnBoxes, SheetRow, draw_sheet


def write_predictions(
    model: nn.Module,
    records: Sequence[dict],
    mapper: Callable[[dict], dict],
    class_names: Sequence[str],
    out_png: str | os.PathLike,
    score_threshold: float = 0.3,
    max_images: int = 12,
) -> None:
    """Run `model` on images of a data set and draw ground truth and predictions side by side.

    Args:
        model: detectron2's convention: list of dicts in, list of {"instances": Instances} out.
            It runs in eval mode without gradients, and is left in the mode it was in.
        records: detectron2's dataset dicts, boxes in `annotations`. Of more than `max_images`,
            as many are taken at even distances, so that the same data gives the same sheet.
        mapper: makes a model input of a record, as in the test loader.
        class_names: names in the order of the model's classes.
        out_png: where to write; appears complete or not at all.
        score_threshold: predictions below it are not drawn.

    Raises:
        ValueError: `records` is empty.
    """
    if not records:
        raise ValueError(f"no images to draw to {out_png}; the data set is empty")
    chosen = choose_evenly(records, max_images)
    rows = []
    for record, instances in zip(chosen, _predict(model, chosen, mapper)):
        row = SheetRow(
            title=os.path.basename(record["file_name"]),
            image=np.asarray(read_image(record["file_name"])),
            truth=boxes_of_record(record, class_names),
            predictions=boxes_of_instances(instances, class_names, score_threshold),
        )
        rows.append(row)
    heading = f"left: ground truth   right: predictions with score >= {score_threshold:g}"
    if len(class_names) == 1:
        heading = f"class {class_names[0]!r}   {heading}"
    draw_sheet(rows, out_png, heading)


def choose_evenly(items: Sequence, count: int) -> list:
    """`count` of the items at even distances, the first and the last among them; or all."""
    if len(items) <= count:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, count).round().astype(int)]


def boxes_of_record(record: dict, class_names: Sequence[str]) -> DrawnBoxes:
    """The annotations of one of detectron2's dataset dicts, crowd regions marked as such."""
    annotations = record.get("annotations", [])
    boxes = [
        BoxMode.convert(a["bbox"], BoxMode(a["bbox_mode"]), BoxMode.XYXY_ABS) for a in annotations
    ]
    class_ids = [a["category_id"] for a in annotations]
    return DrawnBoxes(
        boxes=np.array(boxes, dtype=float).reshape(-1, 4),
        class_ids=class_ids,
        captions=[_name(i, class_names) for i in class_ids],
        crowd=[bool(a.get("iscrowd", 0)) for a in annotations],
    )


def boxes_of_instances(
    instances: Instances, class_names: Sequence[str], score_threshold: float
) -> DrawnBoxes:
    """Predictions with at least `score_threshold`, the most certain on top."""
    kept = instances[instances.scores >= score_threshold].to("cpu")
    kept = kept[kept.scores.argsort(stable=True)]
    class_ids = kept.pred_classes.tolist()
    return DrawnBoxes(
        boxes=kept.pred_boxes.tensor.double().numpy(),
        class_ids=class_ids,
        captions=[
            f"{_name(i, class_names)} {score:.2f}".strip()
            for i, score in zip(class_ids, kept.scores.tolist())
        ],
        crowd=[False] * len(kept),
    )


def _name(class_id: int, class_names: Sequence[str]) -> str:
    # Where there is one class only, its name on every box would hide the picture.
    return class_names[class_id] if len(class_names) > 1 else ""


@torch.no_grad()
def _predict(
    model: nn.Module, records: Sequence[dict], mapper: Callable[[dict], dict]
) -> list[Instances]:
    was_training = model.training
    model.eval()
    try:
        return [model([mapper(record)])[0]["instances"] for record in records]
    finally:
        model.train(was_training)
