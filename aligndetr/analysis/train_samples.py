"""What the model is trained on: images as they are in the data set and as the loader gives them."""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import instantiate
from detectron2.structures import Instances
from omegaconf import DictConfig
from PIL import Image

from aligndetr.data.image_reading import read_image
from aligndetr.engine.setup import dataset_class_names
from aligndetr.inference import DrawnBoxes, draw_boxes
from aligndetr.inference.drawing import put_side_by_side, write_sheet
from aligndetr.inference.predictions import boxes_of_record
from aligndetr.utils.files import atomic_path

RECORD = "record"
COLUMNS = 2


def write_train_samples(
    cfg: DictConfig, output: str | os.PathLike, count: int = 12, edge: int = 480
) -> list[Path]:
    """Draw the first images that a training would see, before and after augmentation.

    Args:
        output: `.png` for one sheet, or a folder for a file per image, numbered in the order of
            the training. It repeats the images of another call where `train.seed` is fixed.
        edge: pixels of the longer edge of each picture, so that small objects are enlarged.

    Returns:
        The files written.

    Raises:
        ValueError: another suffix, a count below 1, or something is wrong with the data.
        OSError: `output` cannot be written.
    """
    output = Path(output)
    if output.suffix.lower() not in ("", ".png"):
        raise ValueError(f"output {str(output)!r} must end in .png, or be a folder")
    if count < 1:
        raise ValueError(f"the number of images (={count}) must be at least 1")
    names = dataset_class_names(cfg)
    img_format = cfg.dataloader.train.mapper.get("img_format", "RGB")
    pictures = (
        (sample["file_name"], draw_sample(sample.pop(RECORD), sample, names, img_format, edge))
        for sample in itertools.islice(train_samples(cfg), count)
    )
    if output.suffix:
        heading = "left: data set   right: what the model is trained on"
        write_sheet([picture for _, picture in pictures], output, heading, COLUMNS)
        return [output]
    written = []
    for number, (file_name, picture) in enumerate(pictures):
        written.append(output / f"{number:04}_{Path(file_name).stem}.png")
        with atomic_path(written[-1]) as temporary:
            picture.save(temporary)
    return written


def train_samples(cfg: DictConfig) -> Iterator[dict[str, Any]]:
    """Samples of `cfg.dataloader.train` in its order, without end, each with the entry of the
    data set that it was made of as "record"."""
    arguments = dict(cfg.dataloader.train.items())
    arguments["mapper"] = _KeepRecord(instantiate(arguments["mapper"]))
    # It does not change what comes, and a few images are not worth its processes.
    loader = instantiate({**arguments, "num_workers": 0})
    return itertools.chain.from_iterable(loader)


class _KeepRecord:
    def __init__(self, mapper: Callable[[dict], dict]):
        self._mapper = mapper

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        return {**self._mapper(record), RECORD: record}


def draw_sample(
    record: dict[str, Any],
    sample: dict[str, Any],
    class_names: Sequence[str],
    img_format: str = "RGB",
    edge: int = 480,
) -> Image.Image:
    """The image of a data set beside what the mapper has made of it, both with their boxes.

    Args:
        record: entry of the data set; its crowd regions are grey, training leaves them out.
        sample: as a train loader gives it.
        img_format: channel order of `sample["image"]`.
        edge: pixels of the longer edge of each picture.
    """
    before = np.asarray(read_image(record["file_name"]))
    after = sample["image"].permute(1, 2, 0).numpy()
    after = np.ascontiguousarray(after[..., ::-1] if img_format == "BGR" else after)
    boxes = (boxes_of_record(record, class_names), _boxes(sample["instances"], class_names))
    texts = [
        f"{title}: {width} x {height}, {len(drawn.boxes) - sum(drawn.crowd)} objects"
        for title, drawn, (height, width) in zip(
            (Path(record["file_name"]).name, "augmented"),
            boxes,
            (before.shape[:2], after.shape[:2]),
        )
    ]
    pictures = [
        draw_boxes(image, drawn, edge / max(image.shape[:2]))
        for image, drawn in zip((before, after), boxes)
    ]
    return put_side_by_side(pictures, texts)


def _boxes(instances: Instances, class_names: Sequence[str]) -> DrawnBoxes:
    class_ids: list[int] = instances.gt_classes.tolist()
    # Where there is one class only, its name on every box would hide the picture.
    captions = [class_names[i] if len(class_names) > 1 else "" for i in class_ids]
    boxes = instances.gt_boxes.tensor.double().numpy()
    return DrawnBoxes(boxes, class_ids, captions, [False] * len(class_ids))
