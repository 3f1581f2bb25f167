"""The demo's data: trees in aerial images of Yellowstone, cut into tiles, as a COCO data set.

The images and their boxes come inside the wheel `deepforest==2.1.0` (MIT licence,
https://github.com/weecology/DeepForest). The wheel is fetched with pip and read as a zip; it is
neither installed nor imported. Train and val are two different places on the ground, because
overlapping tiles of one image would leak from one split into the other.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image

REQUIREMENT = "deepforest==2.1.0"
WHEEL_SHA256 = "8c2798d8e9be7f0004b194fe207b76c1d9fff6e711b3db67b9508dcd5d00ae54"
SOURCES = {
    "train": "deepforest/data/2019_YELL_2_528000_4978000_image_crop2",
    "val": "deepforest/data/2019_YELL_2_541000_4977000_image_crop",
}
LICENCE = "deepforest-2.1.0.dist-info/licenses/LICENSE"
CATEGORY = {"id": 1, "name": "tree", "supercategory": "plant"}

TRAIN_TILE, TRAIN_STRIDE = 256, 128
VAL_COLUMNS, VAL_ROWS = 5, 4
MIN_VISIBLE = 0.4
"""A box with less than this share of its area inside a tile is a crowd region there."""

Window = tuple[int, int, int, int]
"""x0, y0, x1, y1 in pixels of the source image; x1 and y1 are outside."""


@dataclass(frozen=True)
class SplitSummary:
    """What one split holds, counted from its json."""

    images: int
    images_with_trees: int
    boxes: int
    crowd_regions: int


def prepare_trees(root: str | Path, wheel: str | Path | None = None) -> bool:
    """Write the data set to `root`, or check the one that is there.

    The result is in COCO layout: `{train,val}/*.png`, `annotations/instances_{train,val}.json`
    and the source's LICENSE. All of it appears at once: it is written beside `root` and renamed.

    Args:
        root: the folder to make, e.g. "datasets/trees".
        wheel: the wheel, if it has been downloaded already; else pip downloads it.

    Returns:
        True if the data was written, False if it was there and complete.

    Raises:
        FileExistsError: `root` holds something else, or a data set with files missing. It is
            left as it is.
        RuntimeError: pip cannot download the wheel.
        ValueError: the wheel is not the one whose sha256 is written here.
    """
    root = Path(root)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        check_trees(root)
        return False
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}.") as folder:
        wheel = download_wheel(folder) if wheel is None else Path(wheel)
        check_wheel(wheel)
        finished = Path(folder) / "finished"
        write_trees(wheel, finished)
        try:
            os.rename(finished, root)
        except OSError:  # another process wrote it in the meantime; an empty `root` is replaced
            check_trees(root)
            return False
    return True


def summarise_trees(root: str | Path) -> dict[str, SplitSummary]:
    """Count what the json files of a prepared data set hold, by split."""
    return {split: _summarise(_read_json(Path(root), split)) for split in SOURCES}


# ---------------------------------------------------------------------------------------------
# the wheel


def download_wheel(folder: str | Path) -> Path:
    """Download the wheel into `folder` with pip; nothing is built, installed or run."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input"]
    # The wheel is pure Python and only read as a zip, so this Python's version does not matter.
    command += ["--only-binary=:all:", "--ignore-requires-python", "--disable-pip-version-check"]
    command += ["--dest", str(folder), REQUIREMENT]
    # Nobody would see it ask for an index's password.
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    wheels = sorted(Path(folder).glob("deepforest-*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        raise RuntimeError(
            f"cannot download {REQUIREMENT}, which holds the demo's images; "
            f"`{' '.join(command)}` said:\n{result.stderr.strip() or result.stdout.strip()}\n"
            "Check the connection and pip's settings, or fetch the wheel elsewhere and pass its "
            "path with `--wheel`."
        )
    return wheels[0]


def check_wheel(wheel: Path) -> None:
    """Raise ValueError unless `wheel` is byte for byte the one these tiles are defined on."""
    if not wheel.is_file():
        raise FileNotFoundError(f"no wheel at {wheel}; expected the file of {REQUIREMENT}")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != WHEEL_SHA256:
        raise ValueError(
            f"{wheel} has sha256 {digest}; expected {WHEEL_SHA256} ({REQUIREMENT}). "
            "It is another file or a damaged download: delete it and download it again."
        )


def read_source(archive: zipfile.ZipFile, stem: str) -> tuple[np.ndarray, np.ndarray]:
    """Read one image and its boxes.

    Returns:
        (H, W, 3) uint8, RGB, and (N, 4) float64, xyxy in pixels. The xml's numbers are taken as
        they stand, as DeepForest's own reader does.
    """
    with archive.open(f"{stem}.png") as file:
        image = np.asarray(Image.open(file).convert("RGB"))
    boxes = [
        [float(box.findtext(corner, "")) for corner in ("xmin", "ymin", "xmax", "ymax")]
        for box in ElementTree.fromstring(archive.read(f"{stem}.xml")).iter("bndbox")
    ]
    return image, np.array(boxes).reshape(-1, 4)


# ---------------------------------------------------------------------------------------------
# tiles


def overlapping_windows(width: int, height: int, tile: int, stride: int) -> Iterator[Window]:
    """All whole tiles of `tile` x `tile` pixels at every `stride` pixels, row by row."""
    for y in range(0, height - tile + 1, stride):
        for x in range(0, width - tile + 1, stride):
            yield x, y, x + tile, y + tile


def grid_windows(width: int, height: int, columns: int, rows: int) -> Iterator[Window]:
    """The image cut into `columns` x `rows` tiles that touch and leave nothing out, row by row."""
    xs = [round(i * width / columns) for i in range(columns + 1)]
    ys = [round(i * height / rows) for i in range(rows + 1)]
    for y0, y1 in pairwise(ys):
        for x0, x1 in pairwise(xs):
            yield x0, y0, x1, y1


def clip_boxes(boxes: np.ndarray, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """The boxes that touch a window, in the window's coordinates.

    Args:
        boxes: (N, 4), xyxy in pixels of the source image.

    Returns:
        (M, 4), xyxy in pixels of the window, clipped to it; and (M,) bool, True where less than
        `MIN_VISIBLE` of the box's area is inside.
    """
    x0, y0, x1, y1 = window
    clipped = boxes.clip([x0, y0, x0, y0], [x1, y1, x1, y1])
    inside = _areas(clipped)
    touching = inside > 0
    crowd = inside[touching] < MIN_VISIBLE * _areas(boxes[touching])
    return clipped[touching] - [x0, y0, x0, y0], crowd


def write_trees(wheel: Path, out: Path) -> None:
    """Cut both sources of `wheel` into tiles and write the data set to the new folder `out`."""
    (out / "annotations").mkdir(parents=True)
    with zipfile.ZipFile(wheel) as archive:
        (out / "LICENSE").write_bytes(archive.read(LICENCE))
        for split, stem in SOURCES.items():
            image, boxes = read_source(archive, stem)
            height, width = image.shape[:2]
            if split == "train":
                windows = overlapping_windows(width, height, TRAIN_TILE, TRAIN_STRIDE)
            else:
                windows = grid_windows(width, height, VAL_COLUMNS, VAL_ROWS)
            (out / split).mkdir()
            dataset = _write_split(image, boxes, windows, out / split)
            dataset["info"] = _info(split)
            _json_path(out, split).write_text(json.dumps(dataset), encoding="utf-8")


def _write_split(
    image: np.ndarray, boxes: np.ndarray, windows: Iterator[Window], folder: Path
) -> dict:
    images, annotations = [], []
    for image_id, window in enumerate(windows, start=1):
        x0, y0, x1, y1 = window
        name = f"x{x0:04d}_y{y0:04d}.png"
        # Noisy as they are, compression saves a tenth, and is most of the time to read them.
        Image.fromarray(image[y0:y1, x0:x1]).save(folder / name, compress_level=0)
        images.append({"id": image_id, "file_name": name, "width": x1 - x0, "height": y1 - y0})
        for box, crowd in zip(*clip_boxes(boxes, window), strict=True):
            left, top, right, bottom = box.tolist()
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": CATEGORY["id"],
                    "bbox": [left, top, right - left, bottom - top],
                    "area": (right - left) * (bottom - top),
                    "iscrowd": int(crowd),
                }
            )
    return {"images": images, "annotations": annotations, "categories": [CATEGORY]}


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


# ---------------------------------------------------------------------------------------------
# what is there already


def check_trees(root: Path) -> None:
    """Raise FileExistsError unless `root` holds the whole data set, cut as this file cuts it."""
    problem = _find_problem(root)
    if problem is not None:
        raise FileExistsError(
            f"{root} exists but is not the demo's data set: {problem}. "
            "Delete the folder to have it written anew, or choose another one with `--root`."
        )


def _find_problem(root: Path) -> str | None:
    for split in SOURCES:
        try:
            dataset = _read_json(root, split)
        except (OSError, ValueError) as error:
            return f"{_json_path(root, split)} cannot be read ({error})"
        if dataset.get("info") != _info(split):
            return f"{_json_path(root, split)} was written from other data or by other rules"
        for entry in dataset["images"]:
            path = root / split / entry["file_name"]
            try:
                with Image.open(path) as tile:
                    size = tile.size
            except OSError as error:
                return f"{path} cannot be read ({error})"
            if size != (entry["width"], entry["height"]):
                return f"{path} is {size[0]} x {size[1]} pixels, its json says otherwise"
    return None


def _info(split: str) -> dict[str, str]:
    cut = (
        f"{TRAIN_TILE}-pixel tiles, stride {TRAIN_STRIDE}"
        if split == "train"
        else f"{VAL_COLUMNS} x {VAL_ROWS} tiles"
    )
    return {
        "description": f"{SOURCES[split]}.png in {cut}; crowd below {MIN_VISIBLE:.0%} visible",
        "url": "https://github.com/weecology/DeepForest",
        "source": f"{REQUIREMENT} sha256:{WHEEL_SHA256}",
        "licence": "MIT, see LICENSE",
    }


def _summarise(dataset: dict) -> SplitSummary:
    trees = [a for a in dataset["annotations"] if not a["iscrowd"]]
    return SplitSummary(
        images=len(dataset["images"]),
        images_with_trees=len({a["image_id"] for a in trees}),
        boxes=len(trees),
        crowd_regions=len(dataset["annotations"]) - len(trees),
    )


def _read_json(root: Path, split: str) -> dict:
    return json.loads(_json_path(root, split).read_text(encoding="utf-8"))


def _json_path(root: Path, split: str) -> Path:
    return root / "annotations" / f"instances_{split}.json"
