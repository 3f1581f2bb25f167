"""The objects of each image as arrays, and their IoU with boxes as COCO computes it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as coco_mask

from .box_ap import GroundTruth

SIZES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, np.inf)}
"""COCO's, by the annotated area in square pixels of the original image; an area on a limit is of
both sizes."""


@dataclass(frozen=True)
class ImageObjects:
    """M objects and C crowd regions of one image. A class is a number from 0, in the order of the
    category ids; boxes are XYWH in pixels of the original image, float64."""

    boxes: np.ndarray
    """(M, 4)"""
    classes: np.ndarray
    """(M,)"""
    areas: np.ndarray
    """(M,) as annotated"""
    countable: np.ndarray
    """(M,) bools: COCO's evaluation counts it when it is found, which it never does for id 0."""
    crowd_boxes: np.ndarray
    """(C, 4)"""
    crowd_classes: np.ndarray
    """(C,)"""

    def same_class(self, classes: np.ndarray) -> np.ndarray:
        """(D, M): whether a detection and an object are of one class."""
        return classes[:, None] == self.classes[None]

    def iou(self, boxes: np.ndarray) -> np.ndarray:
        """(D, M): IoU of boxes (D, 4), XYWH, with the objects."""
        return box_iou(boxes, self.boxes, crowd=False)

    def crowd_cover(self, boxes: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """(D,): the largest share of a box that one crowd region of its class covers."""
        cover = box_iou(boxes, self.crowd_boxes, crowd=True)
        return (cover * (classes[:, None] == self.crowd_classes)).max(axis=1, initial=0.0)


def of_size(areas: np.ndarray, size: str) -> np.ndarray:
    """(M,) bools: which areas (M,) are of one of `SIZES`."""
    low, high = SIZES[size]
    return (areas >= low) & (areas <= high)


def objects_by_image(truth: GroundTruth) -> list[ImageObjects]:
    """For each image of a data set, by its number in `truth`."""
    annotations = sorted(truth.content["annotations"], key=lambda a: a["image_id"])  # stable
    images = np.array([a["image_id"] for a in annotations], dtype=int)
    starts = np.searchsorted(images, np.arange(len(truth.number_of) + 1))
    label_of = {category_id: label for label, category_id in enumerate(truth.category_ids)}
    return [
        _objects(annotations[start:end], label_of) for start, end in zip(starts[:-1], starts[1:])
    ]


def _objects(annotations: Sequence[dict], label_of: dict[int, int]) -> ImageObjects:
    boxes = np.array([a["bbox"] for a in annotations], dtype=float).reshape(-1, 4)
    classes = np.array([label_of[a["category_id"]] for a in annotations], dtype=int)
    areas = np.array([a["area"] for a in annotations], dtype=float)
    ids = np.array([a["id"] for a in annotations], dtype=int)
    crowd = np.array([a["iscrowd"] for a in annotations], dtype=bool)
    return ImageObjects(
        boxes=boxes[~crowd],
        classes=classes[~crowd],
        areas=areas[~crowd],
        countable=ids[~crowd] != 0,
        crowd_boxes=boxes[crowd],
        crowd_classes=classes[crowd],
    )


def box_iou(boxes: np.ndarray, others: np.ndarray, crowd: bool) -> np.ndarray:
    """(D, M) in float64: pycocotools' IoU of XYWH boxes (D, 4) and (M, 4).

    Args:
        crowd: divide by the area of the first box instead of the union.
    """
    if not len(boxes) or not len(others):
        return np.zeros((len(boxes), len(others)))
    boxes, others = (np.ascontiguousarray(b, dtype=float) for b in (boxes, others))
    return np.asarray(coco_mask.iou(boxes, others, [int(crowd)] * len(others)))
