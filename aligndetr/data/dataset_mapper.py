"""From an entry of a data set to what the model takes: image decoded, augmented, as tensors."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import BoxMode, Instances

from .checks import DatasetError

IMAGE_FORMATS = ("RGB", "BGR")


class DetrDatasetMapper:
    """Maps a dict in detectron2's standard format to the model's input, as DETR trains.

    Args:
        augmentation: detectron2 augmentations, applied in order.
        augmentation_with_crop: a second list; each image takes one of the two lists with
            probability 1/2. None: always `augmentation`.
        is_train: False leaves the annotations out.
        mask_on: keep segmentations as `gt_masks`.
        img_format: channel order of "image", "RGB" or "BGR". Grey images get three channels.
    """

    def __init__(
        self,
        augmentation: Iterable[T.Augmentation],
        augmentation_with_crop: Iterable[T.Augmentation] | None,
        is_train: bool = True,
        mask_on: bool = False,
        img_format: str = "RGB",
    ):
        if img_format not in IMAGE_FORMATS:
            raise ValueError(f"unknown img_format {img_format!r}; choose one of {IMAGE_FORMATS}")
        self.augmentation = T.AugmentationList(augmentation)
        self.augmentation_with_crop = (
            None if augmentation_with_crop is None else T.AugmentationList(augmentation_with_crop)
        )
        self.is_train = is_train
        self.mask_on = mask_on
        self.img_format = img_format

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Decode and augment one image. `dataset_dict` is left as it is.

        Randomness is numpy's global generator, which detectron2's loaders seed in each worker.

        Args:
            dataset_dict: file_name, image_id, height and width (both in pixels of the stored image
                after its EXIF rotation), annotations (optional).

        Returns:
            The same without annotations, and "image": (3, H, W), uint8. In training, if there were
            annotations, also "instances": `gt_boxes` (xyxy in pixels of "image", clipped to it,
            none empty), `gt_classes` (N,) int64, and `gt_masks` if `mask_on`; crowd left out.

        Raises:
            DatasetError: the image is missing, broken, or of another size than the dict says.
        """
        image = self._read_image(dataset_dict)
        sample = {key: value for key, value in dataset_dict.items() if key != "annotations"}
        sample.setdefault("height", image.shape[0])
        sample.setdefault("width", image.shape[1])

        aug_input = T.AugInput(image)
        transforms = self._choose_augmentation()(aug_input)
        image = aug_input.image
        sample["image"] = torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
        if self.is_train and "annotations" in dataset_dict:
            sample["instances"] = self._make_instances(dataset_dict, transforms, image.shape[:2])
        return sample

    def _choose_augmentation(self) -> T.AugmentationList:
        if self.augmentation_with_crop is None or np.random.rand() > 0.5:
            return self.augmentation
        return self.augmentation_with_crop

    def _read_image(self, dataset_dict: dict[str, Any]) -> np.ndarray:
        """(H, W, 3) uint8, turned as EXIF says."""
        try:
            image = utils.read_image(dataset_dict["file_name"], format=self.img_format)
        except FileNotFoundError as error:
            raise DatasetError(
                f"{_describe(dataset_dict)} does not exist; restore the file or check the image "
                "folder (dataset.train_images, dataset.val_images)"
            ) from error
        except Exception as error:  # broken bytes make Pillow's decoders raise almost anything
            raise DatasetError(
                f"{_describe(dataset_dict)} cannot be read ({type(error).__name__}: {error}); "
                "replace the file or take the image out of the json"
            ) from error
        height, width = image.shape[:2]
        expected = (dataset_dict.get("width", width), dataset_dict.get("height", height))
        if expected != (width, height):
            raise DatasetError(
                f"{_describe(dataset_dict)} is {width} x {height} pixels (width x height, turned "
                f"as its EXIF orientation says), but the json says {expected[0]} x {expected[1]}; "
                "correct width and height in the json, and its boxes if they refer to that size"
            )
        return image

    def _make_instances(
        self, dataset_dict: dict[str, Any], transforms: T.TransformList, image_size: tuple[int, int]
    ) -> Instances:
        """The objects of an image after `transforms`; `image_size` is (height, width) after."""
        annotations = [
            utils.transform_instance_annotations(
                self._select_fields(annotation, dataset_dict), transforms, image_size
            )
            for annotation in dataset_dict["annotations"]
            # A flip would turn a negative width into a positive one: empty boxes go before it.
            if not annotation.get("iscrowd", 0) and _has_area(annotation)
        ]
        polygons = all(isinstance(a.get("segmentation", []), list) for a in annotations)
        instances = utils.annotations_to_instances(
            annotations, image_size, mask_format="polygon" if polygons else "bitmask"
        )
        return utils.filter_empty_instances(instances)

    def _select_fields(self, annotation: dict[str, Any], dataset_dict: dict) -> dict[str, Any]:
        """A copy for detectron2's functions, which write to their input."""
        selected = {key: annotation[key] for key in ("bbox", "bbox_mode", "category_id")}
        if self.mask_on:
            mask = annotation.get("segmentation")
            if not mask:
                raise DatasetError(
                    f"an annotation of {_describe(dataset_dict)} has no segmentation "
                    f"(bbox {annotation['bbox']}); add it or set mask_on=False"
                )
            is_polygon = isinstance(mask, list)
            selected["segmentation"] = [np.array(p) for p in mask] if is_polygon else mask
        return selected


def _has_area(annotation: dict[str, Any]) -> bool:
    x0, y0, x1, y1 = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
    return x1 > x0 and y1 > y0


def _describe(dataset_dict: dict[str, Any]) -> str:
    return f"image {dataset_dict['file_name']!r} (image id {dataset_dict.get('image_id')})"
