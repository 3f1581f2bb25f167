"""Data loading: images per second of our mapper and detectron2's, in one process: one worker.

    python benchmarks/data_loading.py --images DIR

DIR holds JPEGs of the size that training will meet, at any depth; by default those few of COCO
that come with the tests. Boxes and polygons are made up, as many as COCO has. Both mappers get the
same records, augmentations and random numbers. First every pixel and box is compared; a difference
ends the run without a time. Beside them run `fast_resize`, which is nearly but not quite the same,
and "no tensor", which only reads, flips, crops and resizes and makes no tensor: the limit for
equal pixels.
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs without being installed

import aligndetr.quiet  # noqa: F401 (before detectron2)

# isort: split

import numpy as np
import torch
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from PIL import Image

from aligndetr.data import DetrDatasetMapper
from aligndetr.data.image_reading import PillowInput, read_image
from benchmarks.timing import BASELINE, Report, command_line, interleave

TINY_COCO = Path(__file__).resolve().parents[1] / "tests" / "data_files" / "coco_tiny"
OBJECTS_PER_IMAGE = 7  # COCO's mean: 860,001 boxes in 117,266 images with boxes
POLYGON_POINTS = 25
TRAIN_EDGES = list(range(480, 801, 32))


def make_records(folder: Path, limit: int) -> list[dict]:
    """detectron2's dicts for the JPEGs under `folder`."""
    rng = np.random.default_rng(0)
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not files:
        raise SystemExit(f"no .jpg or .jpeg under {str(folder)!r}; give another folder to --images")
    return [make_record(path, number, rng) for number, path in enumerate(files[:limit])]


def make_record(path: Path, image_id: int, rng: np.random.Generator) -> dict:
    with Image.open(path) as image:
        width, height = image.size
    annotations = []
    for _ in range(rng.poisson(OBJECTS_PER_IMAGE - 1) + 1):
        x, y = rng.random(2) * 0.8 * (width, height)
        w, h = rng.random(2) * (width - x, height - y)
        polygon = (rng.random((POLYGON_POINTS, 2)) * (w, h) + (x, y)).round(2)
        annotations.append(
            {
                "bbox": [round(float(value), 2) for value in (x, y, w, h)],
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": int(rng.integers(80)),
                "iscrowd": int(rng.random() < 0.01),
                "segmentation": [polygon.flatten().tolist()],
            }
        )
    return {
        "file_name": str(path),
        "image_id": image_id,
        "width": width,
        "height": height,
        "annotations": annotations,
    }


def make_augmentations(work: str) -> list[T.Augmentation]:
    """Those of `aligndetr/config/common/data/coco.py`."""
    if work == "evaluation":
        return [T.ResizeShortestEdge(800, 1333)]
    resize = T.ResizeShortestEdge(TRAIN_EDGES, 1333, sample_style="choice")
    if work == "training":
        return [T.RandomFlip(), resize]
    small = T.ResizeShortestEdge([400, 500, 600], sample_style="choice")
    return [T.RandomFlip(), small, T.RandomCrop("absolute_range", (384, 600)), resize]


def make_mappers(work: str) -> dict:
    is_train = work != "evaluation"
    return {
        BASELINE: DatasetMapper(
            is_train, augmentations=make_augmentations(work), image_format="RGB"
        ),
        "aligndetr": DetrDatasetMapper(make_augmentations(work), None, is_train=is_train),
        "fast_resize": DetrDatasetMapper(
            make_augmentations(work), None, is_train=is_train, fast_resize=True
        ),
        "no tensor": partial(without_tensor, T.AugmentationList(make_augmentations(work))),
    }


def without_tensor(augmentations: T.AugmentationList, record: dict) -> None:
    PillowInput(read_image(record["file_name"])).augment(augmentations)


def map_one(mapper, record: dict, seed: int) -> dict:
    np.random.seed(seed)
    return mapper(record)


def load(mapper, records: list[dict]) -> None:
    """As a worker does: what is mapped leaves the process before the next image is read."""
    np.random.seed(0)
    for record in records:
        mapper(record)


def verify(mappers: dict, records: list[dict], seeds: int) -> None:
    """Raise AssertionError where a pixel, box or class differs."""
    for seed in range(seeds):
        for record in records:
            theirs, ours, nearly = (
                map_one(mappers[name], record, seed)
                for name in (BASELINE, "aligndetr", "fast_resize")
            )
            difference = (nearly["image"].int() - theirs["image"].int()).abs()
            assert difference.max() <= 2, record["file_name"]
            assert torch.equal(ours["image"], theirs["image"]), record["file_name"]
            if "instances" in theirs:
                a, b = ours["instances"], theirs["instances"]
                assert torch.equal(a.gt_boxes.tensor, b.gt_boxes.tensor), record["file_name"]
                assert torch.equal(a.gt_classes, b.gt_classes), record["file_name"]


def main() -> None:
    parser = command_line(__doc__, repeats=7)
    parser.add_argument("--images", type=Path, default=TINY_COCO)
    args = parser.parse_args()
    torch.set_num_threads(1)  # as in a worker
    records = make_records(args.images, limit=10 if args.quick else 100)
    report = Report(threads=1)
    for work in ("training", "training with crop", "evaluation"):
        mappers = make_mappers(work)
        verify(mappers, records, seeds=2)
        seconds = interleave(
            {name: partial(load, mapper, records) for name, mapper in mappers.items()},
            args.repeats,
        )
        report.compare(f"{work}, {len(records)} images", seconds)
        for name, times in seconds.items():
            rate = len(records) / float(np.median(times))
            report.note(f"{work}, {name}", images_per_second_and_worker=rate)
    report.save(args.json)


if __name__ == "__main__":
    main()
