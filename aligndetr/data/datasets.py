"""COCO data sets by path: registered under a name, checked and loaded when a loader asks.

Configs call `register_dataset` in the place of a name, so that a data set of one's own needs
overrides and no Python:

    dataset.root=…
    dataset.train_json=… dataset.train_images=… dataset.val_json=… dataset.val_images=…
"""

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.data import (
    DatasetCatalog,
    DatasetFromList,
    MetadataCatalog,
    get_detection_dataset_dicts,
)
from detectron2.data.detection_utils import check_metadata_consistency
from torch.utils.data import ConcatDataset, Dataset

from .checks import DatasetError, log_box_problems, tell_box_problems
from .coco_dataset import CocoDataset
from .index_build import IndexInfo
from .index_files import open_index
from .layouts import find_dataset
from .records import Records

SPLITS = ("train", "val")

logger = logging.getLogger(__name__)


def register_dataset(
    split: str,
    root: str | None = None,
    json_file: str | None = None,
    image_root: str | None = None,
) -> str:
    """Make a COCO data set known to detectron2's catalogs and return its name.

    Own data gets an index (`index_files`) when it is registered for the first time, and is read
    again once the json has changed. Calling it again with the same arguments gives the same name.
    With no path at all it is COCO 2017 where detectron2 expects it:
    `$DETECTRON2_DATASETS/coco`, `datasets/coco` if the variable is not set. Other data sets that
    detectron2 knows are used by their name in place of this call, for example
    `dataloader.test.dataset.names=coco_2017_test-dev`.

    Args:
        split: "train" or "val".
        root: a folder in COCO layout: `annotations/instances_{split}2017.json` and `{split}2017/`,
            or the same without the year; or as Roboflow exports COCO, or in YOLO's layout
            (see `layouts`).
        json_file: COCO annotation file; goes before what `root` holds.
        image_root: folder that `file_name` in the json starts from; goes before what `root` holds.

    Returns:
        "coco_2017_{split}", or a name made of folder, split and a hash of both paths. Its metadata
        has `thing_classes`, `thing_dataset_id_to_contiguous_id`, `json_file`, `image_root` and
        `evaluator_type`, which is what `COCOEvaluator` needs. Category ids, which may have gaps,
        become 0 ... K-1 in the order of the ids.

    Raises:
        DatasetError: a path is missing, or (own data) the json fails `build_index`'s
            checks, names an image that is not there, or has nothing to train on.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; choose one of {list(SPLITS)}")
    if root or json_file or image_root:
        json_path, image_path = find_dataset(split, root, json_file, image_root)
        _check_paths(split, json_path, image_path, remedy="Correct")
        name = _name_of(split, json_path, image_path)
        info = open_index(json_path, image_path).info
        _check_contents(split, info, json_path)
        _set_metadata(name, info, json_path, image_path)
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
    DatasetCatalog[name] = _RegisteredCoco(name, split)
    return name


def class_names(dataset_name: str) -> list[str]:
    """Names of the classes of a registered data set; the i-th belongs to label i."""
    _check_registered(dataset_name)
    if MetadataCatalog.get(dataset_name).get("thing_classes") is None:
        DatasetCatalog.get(dataset_name)  # detectron2's own registration learns them by loading
    return list(MetadataCatalog.get(dataset_name).thing_classes)


def get_detection_dataset(names: str | Sequence[str], filter_empty: bool = True) -> Records:
    """The images of one or several data sets, for detectron2's loaders.

    It takes the place of detectron2's `get_detection_dataset_dicts` and gives the same records in
    the same order, but none is made before it is asked for, and start and memory do not depend on
    the number of annotations. Data sets that others have registered work too, as lists.

    Args:
        names: of data sets in detectron2's catalog, all with the same classes.
        filter_empty: leave out images without an annotation to train on.

    Raises:
        DatasetError: no name, an unknown one, no image is left, or see `load_coco`.
        ValueError: the data sets have different classes.
    """
    names = [names] if isinstance(names, str) else list(names)
    if not names:
        raise DatasetError("no data set is named; give dataset.names one name or a list of them")
    datasets = [_open_dataset(name, filter_empty) for name in names]
    if len(names) > 1:
        check_metadata_consistency("thing_classes", names)
    for name, dataset in zip(names, datasets, strict=True):
        if not len(dataset):
            raise DatasetError(f"data set {name!r} holds no image that can be used")
    return datasets[0] if len(datasets) == 1 else ConcatDataset(datasets)


def load_coco(dataset_name: str, split: str) -> list[dict[str, Any]]:
    """All images of a registered data set at once, as detectron2's catalog gives them.

    Raises:
        DatasetError: see `open_coco`.
    """
    dataset = open_coco(dataset_name, split)
    return [dataset[index] for index in range(len(dataset))]


def open_coco(dataset_name: str, split: str, filter_empty: bool = False) -> CocoDataset:
    """Check a registered data set and give its images in detectron2's standard format.

    Boxes that are no use for training are left out and logged (`checks.BOX_PROBLEMS`). Annotations
    with a true `ignore` are marked `iscrowd`: neither is trained on.

    Args:
        filter_empty: leave out images without an annotation to train on.

    Raises:
        DatasetError: bad json, missing image files, or a train split without a single object.
    """
    metadata = MetadataCatalog.get(dataset_name)
    json_file, image_root = Path(metadata.json_file), metadata.image_root
    index = open_index(json_file, Path(image_root))
    info = index.info
    names, class_of = _contiguous_classes(info.categories)
    if names != metadata.thing_classes or class_of != metadata.thing_dataset_id_to_contiguous_id:
        raise DatasetError(
            f"{str(json_file)!r} has {len(names)} categories, which are not the "
            f"{len(metadata.thing_classes)} that {dataset_name!r} stands for. If this is a data "
            "set of your own, give it by dataset.root or dataset.{train,val}_{json,images}."
        )
    log_box_problems(info.box_problems, info.box_examples, info.num_annotations, json_file)
    _check_contents(split, info, json_file)
    dataset = CocoDataset(index, image_root, filter_empty)
    _log_contents(dataset_name, dataset)
    return dataset


@dataclass(frozen=True)
class _RegisteredCoco:
    """What the catalog calls for the images; `get_detection_dataset` knows it by its type."""

    name: str
    split: str

    def __call__(self) -> list[dict[str, Any]]:
        return load_coco(self.name, self.split)


def _open_dataset(name: str, filter_empty: bool) -> Any:
    _check_registered(name)
    registered = DatasetCatalog[name]
    if isinstance(registered, _RegisteredCoco):
        return open_coco(registered.name, registered.split, filter_empty)
    records = get_detection_dataset_dicts(name, filter_empty=filter_empty)
    return records if isinstance(records, Dataset) else DatasetFromList(records, copy=False)


def _check_registered(name: str) -> None:
    if name not in DatasetCatalog:
        raise DatasetError(
            f"unknown data set {name!r}; register it with register_dataset or detectron2's "
            "register_coco_instances"
        )


def _log_contents(name: str, dataset: CocoDataset) -> None:
    info = dataset.index.info
    table = zip((label for _, label in info.categories), info.objects_per_class, strict=True)
    logger.info(
        "%s: %d of %d images, %d objects to train on: %s",
        name,
        len(dataset),
        info.num_images,
        sum(info.objects_per_class),
        ", ".join(f"{label} {count}" for label, count in table),
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
    if folder.name in ("annotations", ".aligndetr"):
        folder = folder.parent
    digest = hashlib.sha256(os.fsencode(f"{json_file}\0{image_root}")).hexdigest()[:8]
    return f"{folder.name}_{split}_{digest}"


def _check_contents(split: str, info: IndexInfo, json_file: Path) -> None:
    """Raise for a train split without an object; warn of classes that share a name."""
    if split == "train" and not any(info.objects_per_class):
        problems = tell_box_problems(
            info.box_problems, info.box_examples, info.num_annotations, json_file
        )
        raise DatasetError(
            f"{str(json_file)!r} has {info.num_annotations} annotations, none of which can be "
            "trained on (an object with a positive size inside its image, not crowd); give "
            "another json by dataset.train_json or dataset.root"
            + "".join(f". {problem}" for problem in problems)
        )
    names = [name for _, name in info.categories]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        logger.warning(
            "%r has several categories of the name %s; tables and metrics show one of them only",
            str(json_file),
            ", ".join(map(repr, repeated)),
        )


def _set_metadata(name: str, info: IndexInfo, json_file: Path, image_root: Path) -> None:
    names, class_of = _contiguous_classes(info.categories)
    values = {
        "json_file": str(json_file),
        "image_root": str(image_root),
        "evaluator_type": "coco",
        "thing_classes": names,
        "thing_dataset_id_to_contiguous_id": class_of,
    }
    known = MetadataCatalog.get(name)
    if any(known.get(key, value) != value for key, value in values.items()):
        MetadataCatalog.remove(name)  # the json has changed; metadata refuses a second value
    MetadataCatalog.get(name).set(**values)


def _contiguous_classes(categories: list[list]) -> tuple[list[str], dict[int, int]]:
    """Class names in the order of their category ids, and the map from category id to class."""
    labels = {number: label for label, (number, _) in enumerate(categories)}
    return [name for _, name in categories], labels
