"""The images of a COCO json in detectron2's standard format, each made when it is asked for."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from detectron2.structures import BoxMode
from torch.utils.data import Dataset

from .coco_index import CocoIndex


class CocoDataset(Dataset):
    """Map-style data set: one dict per image, in the order of the image ids.

    It holds no images and no annotations, so it costs a process the same few megabytes for any
    number of annotations, and pickles as two paths.

    Args:
        index: of the json.
        image_root: folder that `file_name` in the json starts from.
        filter_empty: leave out images without an annotation to train on.
    """

    def __init__(self, index: CocoIndex, image_root: str | os.PathLike, filter_empty: bool = False):
        self.index = index
        self.image_root = str(image_root)
        self.filter_empty = filter_empty
        self.label_of = {number: label for label, (number, _) in enumerate(index.info.categories)}
        self._rows = index.rows_with_objects() if filter_empty else None

    def __reduce__(self) -> tuple:
        return _reopen, (self.index.path, self.image_root, self.filter_empty)

    def __len__(self) -> int:
        return len(self.index) if self._rows is None else len(self._rows)

    def orientations(self) -> np.ndarray:
        """(N,) bool: the image is wider than high."""
        orientations = self.index.orientations()
        return orientations if self._rows is None else orientations[self._rows]

    def __getitem__(self, position: int) -> dict[str, Any]:
        """The dict of one image, a new one each time.

        Returns:
            file_name, height, width, image_id, annotations (bbox in XYWH pixels, bbox_mode,
            iscrowd, category_id from 0, and segmentation where the json has a valid one).
        """
        if not -len(self) <= position < len(self):
            raise IndexError(f"image {position} of {len(self)}")
        position = position % len(self)
        row = position if self._rows is None else int(self._rows[position])
        file_name, height, width, image_id = self.index.image(row)
        return {
            "file_name": os.path.join(self.image_root, file_name),
            "height": height,
            "width": width,
            "image_id": image_id,
            "annotations": [
                self._annotation(*annotation) for annotation in self.index.annotations(row)
            ],
        }

    def _annotation(
        self, bbox: list[float], iscrowd: int, category_id: int, segmentation: Any = None
    ) -> dict[str, Any]:
        annotation = {
            "bbox": bbox,
            "bbox_mode": BoxMode.XYWH_ABS,
            "iscrowd": iscrowd,
            "category_id": self.label_of[category_id],
        }
        segmentation = _valid_segmentation(segmentation)
        if segmentation:
            annotation["segmentation"] = segmentation
        return annotation


def _valid_segmentation(segmentation: Any) -> dict | list | None:
    """Run lengths, compressed, or polygons; what is neither is nothing a detector must have."""
    if isinstance(segmentation, dict):
        if not {"counts", "size"} <= segmentation.keys() or not _is_mask(**segmentation):
            return None
        if isinstance(segmentation["counts"], list):
            height, width = segmentation["size"]
            run_lengths: Any = segmentation  # of which the stub does not know
            return mask_util.frPyObjects(run_lengths, height, width)
        return segmentation
    if isinstance(segmentation, list):
        polygons = [p for p in segmentation if isinstance(p, list)]
        return [p for p in polygons if len(p) >= 6 and len(p) % 2 == 0]
    return None


def _is_mask(counts: Any, size: Any, **_: Any) -> bool:
    """Whether run lengths fill the mask they are of; of compressed ones, whether it has a size."""
    is_size = isinstance(size, list) and [type(side) for side in size] == [int, int]
    if not is_size or min(size) < 1:
        return False
    if isinstance(counts, list):
        whole = all(type(count) is int and count >= 0 for count in counts)
        return whole and sum(counts) == size[0] * size[1]
    return isinstance(counts, str)


def _reopen(index_file: Path, image_root: str, filter_empty: bool) -> CocoDataset:
    """In a worker that is spawned: maps the same file, copies nothing."""
    return CocoDataset(CocoIndex(index_file), image_root, filter_empty)
