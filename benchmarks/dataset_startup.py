"""First and second start of training on a large annotation file, against detectron2's loader.

python benchmarks/dataset_startup.py --sizes coco objects365

Writes a json of COCO's and one of Objects365's size (random boxes, no masks) to a temporary
folder: 0.1 and 4 GB, and twice that for a while. A start goes from the json to the loader's first
batch, with a mapper that decodes nothing, in a process of its own whose imports are not counted;
its memory is what the process holds more after reading 5,000 images. At COCO's size records are
compared with detectron2's first, every one of them; a difference ends the run without a time.

detectron2's loader runs at COCO's size. Its figures for Objects365 are extrapolated in proportion
to the number of boxes, and named so: it would need some tens of gigabytes.
"""

import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs without being installed

import aligndetr.quiet  # noqa: F401 (before detectron2)

# isort: split

import numpy as np
import torch
from detectron2.data import DatasetCatalog, get_detection_dataset_dicts
from detectron2.data import build_detection_train_loader as build_theirs
from detectron2.data.datasets import load_coco_json, register_coco_instances

from aligndetr.data import (
    build_detection_train_loader,
    get_detection_dataset,
    register_dataset,
)
from benchmarks.timing import Report, command_line

# Numbers of images, boxes and classes.
SIZES = {
    "tenth of coco": (11_800, 86_000, 80),
    "coco": (118_000, 860_000, 80),
    "objects365": (1_700_000, 25_000_000, 365),
}
MAX_FILES = 118_000
"""Image files that are made (empty); images of a larger set share them."""

IMAGES_READ = 5000
BATCH = 2
THEIRS, OURS = "detectron2", "aligndetr"


def write_coco(folder: Path, size: str) -> None:
    """`annotations/instances_train.json` and the images it names, written as they are made."""
    num_images, num_boxes, num_classes = SIZES[size]
    (folder / "annotations").mkdir()
    (folder / "train").mkdir()
    for i in range(min(num_images, MAX_FILES)):
        (folder / "train" / f"{i:012d}.jpg").touch()
    categories = [{"id": i + 1, "name": f"class {i}"} for i in range(num_classes)]
    with open(folder / "annotations" / "instances_train.json", "w", encoding="utf-8") as file:
        file.write('{"images": [')
        file.writelines(_separated(_images(num_images)))
        file.write('], "annotations": [')
        file.writelines(_separated(_annotations(num_images, num_boxes, num_classes)))
        file.write(f'], "categories": {json.dumps(categories)}}}')


def _images(num_images: int) -> Iterator[str]:
    for i in range(num_images):
        name = f"{i % MAX_FILES:012d}.jpg"
        yield f'{{"id": {i}, "file_name": "{name}", "width": 640, "height": 480}}'


def _annotations(num_images: int, num_boxes: int, num_classes: int) -> Iterator[str]:
    """In no order of images, as in COCO."""
    generator = np.random.default_rng(0)
    block = 100_000
    for first in range(0, num_boxes, block):
        images = generator.integers(num_images, size=block).tolist()
        classes = generator.integers(1, num_classes + 1, size=block).tolist()
        corners = generator.uniform(0, [320, 240], size=(block, 2)).round(2).tolist()
        sizes = generator.uniform(1, [320, 240], size=(block, 2)).round(2).tolist()
        for i in range(min(block, num_boxes - first)):
            (x, y), (w, h) = corners[i], sizes[i]
            yield (
                f'{{"id": {first + i + 1}, "image_id": {images[i]}, "category_id": {classes[i]}, '
                f'"bbox": [{x}, {y}, {w}, {h}], "area": {w * h:.4f}, "iscrowd": 0}}'
            )


def _separated(entries: Iterator[str]) -> Iterator[str]:
    yield next(entries)
    for entry in entries:
        yield f",\n{entry}"


def verify(folder: Path) -> None:
    """Raise AssertionError unless the records are detectron2's."""
    name = register_dataset("train", root=str(folder))
    theirs = load_coco_json(_json(folder), str(folder / "train"), "verified")
    assert DatasetCatalog.get(name) == theirs, "the records differ from detectron2's"


def _json(folder: Path) -> str:
    return str(folder / "annotations" / "instances_train.json")


def open_ours(folder: Path) -> Iterable:
    dataset = get_detection_dataset(register_dataset("train", root=str(folder)))
    return build_detection_train_loader(dataset, mapper=identity, total_batch_size=BATCH)


def open_theirs(folder: Path) -> Iterable:
    register_coco_instances("theirs", {}, _json(folder), str(folder / "train"))
    dataset = get_detection_dataset_dicts("theirs")
    return build_theirs(dataset, mapper=identity, total_batch_size=BATCH)


def identity(record: dict) -> dict:
    return record


def start(open_loader: Callable[[Path], Iterable], folder: Path) -> dict[str, float]:
    """Seconds until the first batch; MB held then, held of it by this process alone, and at most.

    At most: from the start to the end of reading.
    """
    gc.collect()
    before = _memory()
    begin = time.perf_counter()
    loader = iter(open_loader(folder))
    next(loader)
    seconds = time.perf_counter() - begin
    for _ in islice(loader, IMAGES_READ // BATCH):
        pass
    after = _memory()
    return {
        "seconds": seconds,
        "resident_mb": after["VmRSS"] - before["VmRSS"],
        "private_mb": after["RssAnon"] - before["RssAnon"],
        "peak_mb": after["VmHWM"] - before["VmRSS"],
    }


def _memory() -> dict[str, float]:
    """MB by the names of /proc (Linux alone has them)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    fields = (line.split() for line in lines if line.endswith(" kB"))
    return {name.rstrip(":"): int(kib) * 1024 / 1e6 for name, kib, _ in fields}


def in_new_process(function: Callable, *args: object) -> object:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(function, *args).result()


def measure(size: str, folder: Path, repeats: int, report: Report) -> dict[str, float] | None:
    """Print the figures of one size; medians of detectron2's where it ran."""
    report.note(f"{size}: json", gb=Path(_json(folder)).stat().st_size / 1e9)
    report.note(f"{size}: first start (builds)", **in_new_process(start, open_ours, folder))
    candidates = {THEIRS: open_theirs, OURS: open_ours}
    if size == "objects365":
        del candidates[THEIRS]
    else:
        in_new_process(verify, folder)
        report.note(f"{size}: records", equal_to_detectron2s=True)
    turns = [
        {name: in_new_process(start, run, folder) for name, run in candidates.items()}
        for _ in range(repeats)
    ]
    seconds = {name: [turn[name]["seconds"] for turn in turns] for name in candidates}
    report.compare(f"{size}: second start", seconds, against=next(iter(candidates)))
    medians = {name: _medians([turn[name] for turn in turns]) for name in candidates}
    for name, figures in medians.items():
        report.note(f"{size}: a rank of {name}", **figures)
    return medians.get(THEIRS, medians[OURS])


def _medians(figures: list[dict[str, float]]) -> dict[str, float]:
    return {key: float(np.median([figure[key] for figure in figures])) for key in figures[0]}


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["coco", "objects365"])
    args = parser.parse_args()
    sizes, repeats = (["tenth of coco"], 2) if args.quick else (args.sizes, args.repeats)
    torch.set_num_threads(args.threads)
    report = Report(args.threads)
    medians = {}
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            write_coco(Path(folder), size)
            medians[size] = measure(size, Path(folder), repeats, report)
    if {"coco", "objects365"} <= medians.keys():
        factor = SIZES["objects365"][1] / SIZES["coco"][1]
        theirs = {key: value * factor for key, value in medians["coco"].items()}
        report.note("objects365: a rank of detectron2, EXTRAPOLATED from coco", **theirs)
        ratio = theirs["seconds"] / medians["objects365"]["seconds"]
        report.note("objects365: second start", times_faster_than_extrapolated_detectron2=ratio)
    report.save(args.json)


if __name__ == "__main__":
    main()
