"""Where a data set of one's own keeps its annotations and images, from one folder.

Three layouts are known, in this order:

    COCO       annotations/instances_train2017.json, train2017/ (or without the year), the same
               for val
    Roboflow   train/_annotations.coco.json with the images beside it, valid/ or val/ likewise
    YOLO       data.yaml, images and labels where it says (`yolo.py`)

All are read as COCO jsons. What has to be written for that goes to a folder `.aligndetr`, as the
index of a json does, under a name that changes with the data.
"""

import functools
import json
import os
from pathlib import Path
from typing import Any

from .checks import DatasetError
from .converted import converted_json, state_of
from .yolo import YAML_NAME, yolo_as_coco

ROBOFLOW_NAME = "_annotations.coco.json"
ROBOFLOW_FOLDERS = {"train": ("train",), "val": ("valid", "val")}


def find_dataset(
    split: str,
    root: str | None,
    json_file: str | Path | None,
    image_root: str | Path | None,
) -> tuple[Path, Path]:
    """Absolute paths of the json and of the images; what is not given is looked for under `root`.

    Raises:
        DatasetError: `root` has none of the layouts, half of a pair is missing, or (YOLO,
            Roboflow) the annotations cannot be read.
    """
    if root and not (json_file or image_root):
        found = _find_other_layout(split, Path(os.path.abspath(Path(root).expanduser())))
        if found:
            return found
    if root:
        folder = Path(root).expanduser()
        json_choices = [folder / "annotations" / f"instances_{split}{y}.json" for y in (2017, "")]
        image_choices = [folder / f"{split}{year}" for year in (2017, "")]
        json_file = json_file or _first_existing(json_choices, folder, split)
        image_root = image_root or _first_existing(image_choices, folder, split)
    if not (json_file and image_root):
        given, missing = ("json", "images") if json_file else ("images", "json")
        raise DatasetError(
            f"dataset.{split}_{given} is given but dataset.{split}_{missing} is not; a data set "
            f"needs both. Add dataset.{split}_{missing}=… or give dataset.root."
        )
    json_file = Path(json_file).expanduser().absolute()
    if json_file.name == ROBOFLOW_NAME and json_file.is_file():
        json_file = _without_placeholder(json_file, json_file.parent.parent)
    return json_file, Path(image_root).expanduser().absolute()


def _find_other_layout(split: str, root: Path) -> tuple[Path, Path] | None:
    """As Roboflow exports it, or YOLO; None where the folder is in COCO layout, or in none."""
    if any(root.glob("annotations/instances_*.json")):
        return None
    for name in ROBOFLOW_FOLDERS[split]:
        json_file = root / name / ROBOFLOW_NAME
        if json_file.is_file():
            return _without_placeholder(json_file, root), json_file.parent
    if (root / YAML_NAME).is_file():
        return yolo_as_coco(root, split)
    return None


def _first_existing(choices: list[Path], root: Path, split: str) -> Path:
    for path in choices:
        if path.exists():
            return path
    if not root.is_dir():
        raise DatasetError(
            f"dataset.root={str(root)!r} is no folder (looked in {os.path.abspath(root)!r}); "
            "correct it, or give json and images by their own keys"
        )
    others = [f"{name}/{ROBOFLOW_NAME}" for name in ROBOFLOW_FOLDERS[split]] + [YAML_NAME]
    raise DatasetError(
        f"dataset.root={str(root)!r} is not in COCO layout: looked for "
        f"{' and '.join(repr(str(path)) for path in choices)}. Nor is it in Roboflow's or YOLO's: "
        f"there is no {' or '.join(others)}"
    )


def _without_placeholder(json_file: Path, root: Path) -> Path:
    """`json_file`, or a copy without the category that Roboflow puts before the classes.

    Its exports begin with a category that stands for the group of all classes and that no object
    has; as a class it would cost an output and a line in every table. It counts as such only if
    no split has an object of it, for all splits must have the same classes.
    """
    splits = sorted(root.glob(f"*/{ROBOFLOW_NAME}"))
    summaries = {path: _summarise(path, *state_of(path)) for path in splits}
    categories, _ = summaries[json_file]
    used = {category_id for _, its_used in summaries.values() for category_id in its_used}
    groups = {group for _, _, group in categories}
    dropped = {
        category_id
        for category_id, name, group in categories
        if group == "none" and name in groups and category_id not in used
    }
    if not dropped:
        return json_file

    def convert() -> dict[str, Any]:
        content = json.loads(json_file.read_bytes())
        kept = [c for c in content["categories"] if c["id"] not in dropped]
        return {**content, "categories": kept}

    return converted_json(root, f"roboflow_{json_file.parent.name}", splits, convert)


@functools.lru_cache
def _summarise(json_file: Path, *_state: int) -> tuple[list[tuple], set[int]]:
    """(id, name, supercategory) of the categories, and the ids that objects have."""
    try:
        content = json.loads(json_file.read_bytes())
        categories = [(c["id"], c["name"], c.get("supercategory")) for c in content["categories"]]
        return categories, {a["category_id"] for a in content["annotations"]}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DatasetError(
            f"{str(json_file)!r} is not a COCO json as Roboflow exports it "
            f"({type(error).__name__}: {error}); export the data anew"
        ) from error
