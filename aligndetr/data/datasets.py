"""COCO data sets by path: registered under a name, checked and loaded when a loader asks.

Configs call `register_dataset` in the place of a name, so that a data set of one's own needs
overrides and no Python:

    dataset.train_json=… dataset.train_images=… dataset.val_json=… dataset.val_images=…
"""

import functools
import hashlib
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import pycocotools.mask as mask_util
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from .checks import DatasetError, check_images_exist, find_unusable_boxes, read_coco_json

SPLITS = ("train", "val")


def register_dataset(
    split: str,
    root: str | None = None,
    json_file: str | None = None,
    image_root: str | None = None,
) -> str:
    """Make a COCO data set known to detectron2's catalogs and return its name.

    Calling it again with the same arguments gives the same name and reads the classes anew if the
    json has changed. With no path at all it is COCO 2017 where detectron2 expects it:
    `$DETECTRON2_DATASETS/coco`, `datasets/coco` if the variable is not set. Other data sets that
    detectron2 knows are used by their name in place of this call, for example
    `dataloader.test.dataset.names=coco_2017_test-dev`.

    Args:
        split: "train" or "val".
        root: a folder in COCO layout: `annotations/instances_{split}2017.json` and `{split}2017/`,
            or the same without the year.
        json_file: COCO annotation file; goes before what `root` holds.
        image_root: folder that `file_name` in the json starts from; goes before what `root` holds.

    Returns:
        "coco_2017_{split}", or a name made of folder, split and a hash of both paths. Its metadata
        has `thing_classes`, `thing_dataset_id_to_contiguous_id`, `json_file`, `image_root` and
        `evaluator_type`, which is what `COCOEvaluator` needs. Category ids, which may have gaps,
        become 0 ... K-1 in the order of the ids.

    Raises:
        DatasetError: a path is missing, or (own data) the json fails `read_coco_json` or names
            an image that is not there.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; choose one of {list(SPLITS)}")
    if root or json_file or image_root:
        json_path, image_path = _find_paths(split, root, json_file, image_root)
        _check_paths(split, json_path, image_path, remedy="Correct")
        name = _name_of(split, json_path, image_path)
        _set_metadata(name, json_path, image_path)
    else:
        name = f"coco_2017_{split}"
        known = MetadataCatalog.get(name)
        remedy = (
            f"None of dataset.root, dataset.{split}_json and dataset.{split}_images is given, so "
            "COCO 2017 is expected under $DETECTRON2_DATASETS "
            f"(now {os.getenv('DETECTRON2_DATASETS')!r}; unset means 'datasets'). Set it to the "
            "folder that holds coco/, or give dataset.root or"
        )
        _check_paths(split, Path(known.json_file), Path(known.image_root), remedy)
    # Also for detectron2's own name: ours returns the same records, after the checks.
    DatasetCatalog[name] = functools.partial(load_coco, name, split)
    return name


def class_names(dataset_name: str) -> list[str]:
    """Names of the classes of a registered data set; the i-th belongs to label i."""
    if dataset_name not in DatasetCatalog:
        raise DatasetError(
            f"unknown data set {dataset_name!r}; register it with register_dataset or detectron2's "
            "register_coco_instances"
        )
    if MetadataCatalog.get(dataset_name).get("thing_classes") is None:
        DatasetCatalog.get(dataset_name)  # detectron2's own registration learns them by loading
    return list(MetadataCatalog.get(dataset_name).thing_classes)


def load_coco(dataset_name: str, split: str) -> list[dict[str, Any]]:
    """Check a registered data set and give its images in detectron2's standard format.

    Boxes that are no use for training are left out (`find_unusable_boxes` logs them). Annotations
    with a true `ignore` are marked `iscrowd`: neither is trained on.

    Returns:
        One dict per image, in the order of the image ids: file_name, height, width, image_id,
        annotations (bbox in XYWH pixels, bbox_mode, iscrowd, category_id from 0, and segmentation
        where the json has a valid one).

    Raises:
        DatasetError: bad json, missing image files, or a train split without a single object.
    """
    metadata = MetadataCatalog.get(dataset_name)
    json_file, image_root = metadata.json_file, metadata.image_root
    content = read_coco_json(json_file)
    names, class_of = _contiguous_classes(content["categories"])
    if names != metadata.thing_classes or class_of != metadata.thing_dataset_id_to_contiguous_id:
        raise DatasetError(
            f"{json_file!r} has {len(names)} categories, which are not the "
            f"{len(metadata.thing_classes)} that {dataset_name!r} stands for. If this is a data "
            "set of your own, give it by dataset.root or dataset.{train,val}_{json,images}."
        )
    check_images_exist(content["images"], image_root)

    unusable = find_unusable_boxes(content, json_file)
    annotations_of = defaultdict(list)
    for annotation in content["annotations"]:
        if annotation["id"] not in unusable:
            record = _annotation_record(annotation, class_of)
            annotations_of[annotation["image_id"]].append(record)
    if split == "train" and all(a["iscrowd"] for of in annotations_of.values() for a in of):
        raise DatasetError(
            f"{json_file!r} has {len(content['annotations'])} annotations, none of which can be "
            "trained on (an object with a positive size inside its image, not crowd)"
        )
    return [
        {
            "file_name": os.path.join(image_root, image["file_name"]),
            "height": image["height"],
            "width": image["width"],
            "image_id": image["id"],
            "annotations": annotations_of[image["id"]],
        }
        for image in sorted(content["images"], key=lambda image: image["id"])
    ]


def _annotation_record(annotation: dict[str, Any], class_of: dict[int, int]) -> dict[str, Any]:
    record = {
        "bbox": annotation["bbox"],
        "bbox_mode": BoxMode.XYWH_ABS,
        "iscrowd": int(bool(annotation.get("iscrowd") or annotation.get("ignore"))),
        "category_id": class_of[annotation["category_id"]],
    }
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, dict):
        if isinstance(segmentation["counts"], list):  # uncompressed run lengths
            segmentation = mask_util.frPyObjects(segmentation, *segmentation["size"])
    elif segmentation:
        segmentation = [p for p in segmentation if len(p) >= 6 and len(p) % 2 == 0]
    if segmentation:
        record["segmentation"] = segmentation
    return record


def _find_paths(
    split: str, root: str | None, json_file: str | None, image_root: str | None
) -> tuple[Path, Path]:
    """Absolute paths of the json and the images; what is not given is looked for under `root`."""
    if root:
        folder = Path(root).expanduser()
        json_choices = [folder / "annotations" / f"instances_{split}{y}.json" for y in (2017, "")]
        image_choices = [folder / f"{split}{year}" for year in (2017, "")]
        json_file = json_file or _first_existing(json_choices, root)
        image_root = image_root or _first_existing(image_choices, root)
    if not (json_file and image_root):
        given, missing = ("json", "images") if json_file else ("images", "json")
        raise DatasetError(
            f"dataset.{split}_{given} is given but dataset.{split}_{missing} is not; a data set "
            f"needs both. Add dataset.{split}_{missing}=… or give dataset.root."
        )
    return tuple(Path(p).expanduser().absolute() for p in (json_file, image_root))


def _first_existing(choices: list[Path], root: str) -> Path:
    for path in choices:
        if path.exists():
            return path
    raise DatasetError(
        f"dataset.root={str(root)!r} is not in COCO layout: looked for "
        f"{' and '.join(repr(str(path)) for path in choices)}"
    )


def _check_paths(split: str, json_file: Path, image_root: Path, remedy: str) -> None:
    """Raise unless both are there; the message ends with `remedy` and the config key."""
    if not json_file.is_file():
        raise DatasetError(
            f"the {split} annotation file {str(json_file)!r} does not exist. "
            f"{remedy} dataset.{split}_json."
        )
    if not image_root.is_dir():
        raise DatasetError(
            f"the {split} image folder {str(image_root)!r} does not exist. "
            f"{remedy} dataset.{split}_images."
        )


def _name_of(split: str, json_file: Path, image_root: Path) -> str:
    folder = json_file.parent
    if folder.name == "annotations":
        folder = folder.parent
    digest = hashlib.sha256(f"{json_file}\0{image_root}".encode()).hexdigest()[:8]
    return f"{folder.name}_{split}_{digest}"


def _set_metadata(name: str, json_file: Path, image_root: Path) -> None:
    status = json_file.stat()
    names, class_of = _read_classes(json_file, image_root, status.st_mtime_ns, status.st_size)
    values = {
        "json_file": str(json_file),
        "image_root": str(image_root),
        "evaluator_type": "coco",
        "thing_classes": list(names),
        "thing_dataset_id_to_contiguous_id": dict(class_of),
    }
    known = MetadataCatalog.get(name)
    if any(known.get(key, value) != value for key, value in values.items()):
        MetadataCatalog.remove(name)  # the json has changed; metadata refuses a second value
    MetadataCatalog.get(name).set(**values)


@functools.lru_cache(maxsize=16)
def _read_classes(
    json_file: Path, image_root: Path, _mtime_ns: int, _size: int
) -> tuple[list[str], dict[int, int]]:
    """Read once per version of the file: loaders, evaluator and model all ask for the classes.

    The images are looked for here as well as in `load_coco`, which runs once a model is built.
    """
    content = read_coco_json(json_file)
    check_images_exist(content["images"], image_root)
    return _contiguous_classes(content["categories"])


def _contiguous_classes(categories: list[dict]) -> tuple[list[str], dict[int, int]]:
    """Class names in the order of their category ids, and the map from category id to class."""
    in_order = sorted(categories, key=lambda category: category["id"])
    names = [category["name"] for category in in_order]
    return names, {category["id"]: label for label, category in enumerate(in_order)}
