"""From an entry of a data set to what the model takes: image decoded, augmented, as tensors."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks
from omegaconf import OmegaConf
from PIL import Image

from .checks import DatasetError
from .corrupt_images import CorruptImageError
from .image_reading import HighDepthError, PillowInput, decode, open_image

IMAGE_FORMATS = ("RGB", "BGR")
# Transforms that leave boxes where they are, which to find out takes numpy several steps.
UNMOVING = (T.BlendTransform, T.NoOpTransform)


class DetrDatasetMapper:
    """Maps a dict in detectron2's standard format to the model's input, as DETR trains.

    Args:
        augmentation: detectron2 augmentations, applied in order.
        augmentation_with_crop: a second list; each image takes one of the two lists with
            probability 1/2. None: always `augmentation`.
        is_train: False leaves the annotations out.
        mask_on: keep segmentations as `gt_masks`.
        img_format: channel order of "image", "RGB" or "BGR". Grey images get three channels.
        fast_resize: let torch resize in place of Pillow, which takes less time. Some values then
            differ from those that detectron2 gives, by 1 or rarely 2 of 255.
    """

    def __init__(
        self,
        augmentation: Iterable[T.Augmentation],
        augmentation_with_crop: Iterable[T.Augmentation] | None,
        is_train: bool = True,
        mask_on: bool = False,
        img_format: str = "RGB",
        fast_resize: bool = False,
    ):
        if img_format not in IMAGE_FORMATS:
            raise ValueError(f"unknown img_format {img_format!r}; choose one of {IMAGE_FORMATS}")
        self.augmentation = _as_list(augmentation)
        self.augmentation_with_crop = (
            None if augmentation_with_crop is None else _as_list(augmentation_with_crop)
        )
        self.is_train = is_train
        self.mask_on = mask_on
        self.img_format = img_format
        self.fast_resize = fast_resize

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
            CorruptImageError: the image is missing, broken, of another size than the dict says, or
                of more than 8 bits per channel.
        """
        return self.map_image(_read_image(dataset_dict), dataset_dict)

    def map_image(self, image: Image.Image, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """As calling it, for an image that is decoded already: mode "RGB", EXIF rotation done."""
        sample = {key: value for key, value in dataset_dict.items() if key != "annotations"}
        sample.setdefault("height", image.height)
        sample.setdefault("width", image.width)

        augmented = PillowInput(image, self.img_format, self.fast_resize)
        transforms = augmented.augment(self._choose_augmentation())
        sample["image"] = augmented.to_tensor()
        if self.is_train and "annotations" in dataset_dict:
            sample["instances"] = self._make_instances(dataset_dict, transforms, augmented.size)
        return sample

    def _choose_augmentation(self) -> T.AugmentationList:
        if self.augmentation_with_crop is None or np.random.rand() > 0.5:
            return self.augmentation
        return self.augmentation_with_crop

    def _make_instances(
        self, dataset_dict: dict[str, Any], transforms: T.TransformList, image_size: tuple[int, int]
    ) -> Instances:
        """The objects of an image after `transforms`; `image_size` is (height, width) after."""
        annotations = [a for a in dataset_dict["annotations"] if not a.get("iscrowd", 0)]
        boxes = _xyxy(annotations)
        # A flip would turn a negative width into a positive one: empty boxes go before it.
        has_area = np.all(boxes[:, 2:] > boxes[:, :2], axis=1)
        annotations = [a for a, keep in zip(annotations, has_area, strict=True) if keep]
        height, width = image_size
        moving = T.TransformList([t for t in transforms.transforms if type(t) not in UNMOVING])
        moved = moving.apply_box(boxes[has_area]).clip(0, [width, height, width, height])

        instances = Instances(image_size)
        instances.gt_boxes = Boxes(torch.from_numpy(moved))
        instances.gt_classes = torch.tensor(
            [int(a["category_id"]) for a in annotations], dtype=torch.int64
        )
        if self.mask_on and annotations:
            instances.gt_masks = _make_masks(dataset_dict, annotations, transforms, image_size)
        return utils.filter_empty_instances(instances)


def _as_list(augmentations: Iterable[T.Augmentation]) -> T.AugmentationList:
    """With Python's lists for those of a config, which numpy draws from by way of exceptions."""
    result = T.AugmentationList(augmentations)
    for augmentation in result.augs:
        for name, value in vars(augmentation).items():
            if OmegaConf.is_config(value):
                setattr(augmentation, name, OmegaConf.to_container(value, resolve=True))
    return result


def _read_image(dataset_dict: dict[str, Any]) -> Image.Image:
    """The image in mode "RGB", turned as EXIF says."""
    try:
        with open_image(dataset_dict["file_name"]) as opened:
            # Before it is decoded: a file may say that it has more pixels than there is memory.
            if sorted(_expected_size(opened, dataset_dict)) != sorted(opened.size):
                raise _wrong_size(opened, dataset_dict)
            image = decode(opened)
    except CorruptImageError:
        raise
    except FileNotFoundError as error:
        raise CorruptImageError(
            f"{_describe(dataset_dict)} does not exist; restore the file or check the image "
            "folder (dataset.train_images, dataset.val_images)"
        ) from error
    except HighDepthError as error:
        raise CorruptImageError(f"{_describe(dataset_dict)} cannot be used: {error}") from error
    except Exception as error:  # broken bytes make Pillow's decoders raise almost anything
        raise CorruptImageError(
            f"{_describe(dataset_dict)} cannot be read ({type(error).__name__}: {error}); "
            "replace the file or take the image out of the json"
        ) from error
    if _expected_size(image, dataset_dict) != image.size:
        raise _wrong_size(image, dataset_dict)
    return image


def _expected_size(image: Image.Image, dataset_dict: dict[str, Any]) -> tuple[int, int]:
    """Width and height as the dict says, where it does."""
    return dataset_dict.get("width", image.width), dataset_dict.get("height", image.height)


def _wrong_size(image: Image.Image, dataset_dict: dict[str, Any]) -> CorruptImageError:
    expected = _expected_size(image, dataset_dict)
    return CorruptImageError(
        f"{_describe(dataset_dict)} is {image.width} x {image.height} pixels (width x height, "
        f"turned as its EXIF orientation says), but the json says {expected[0]} x "
        f"{expected[1]}; correct width and height in the json, and its boxes if they refer to "
        "that size"
    )


def _xyxy(annotations: list[dict[str, Any]]) -> np.ndarray:
    """(N, 4) float64, rounded to float32 as detectron2 does with a list of floats.

    (A list of ints it would transform as ints, which moves boxes by up to a pixel.)
    """
    boxes = np.zeros((len(annotations), 4))
    modes = [a["bbox_mode"] for a in annotations]
    for mode in set(modes):
        rows = [row for row, its_mode in enumerate(modes) if its_mode == mode]
        given = torch.tensor([annotations[row]["bbox"] for row in rows], dtype=torch.float32)
        boxes[rows] = BoxMode.convert(given, mode, BoxMode.XYXY_ABS)
    return boxes


def _make_masks(
    dataset_dict: dict[str, Any],
    annotations: list[dict[str, Any]],
    transforms: T.TransformList,
    image_size: tuple[int, int],
) -> PolygonMasks | BitMasks:
    """Polygons if all of `annotations` are given as such."""
    copies = []
    for annotation in annotations:
        mask = annotation.get("segmentation")
        if not mask:
            raise DatasetError(
                f"an annotation of {_describe(dataset_dict)} has no segmentation "
                f"(bbox {annotation['bbox']}); add it or set mask_on=False"
            )
        # Copies, for detectron2's functions write to their input.
        copy = {key: annotation[key] for key in ("bbox", "bbox_mode", "category_id")}
        is_polygon = isinstance(mask, list)
        copy["segmentation"] = [np.array(part) for part in mask] if is_polygon else mask
        copies.append(utils.transform_instance_annotations(copy, transforms, image_size))
    polygons = all(isinstance(copy["segmentation"], list) for copy in copies)
    return utils.annotations_to_instances(
        copies, image_size, mask_format="polygon" if polygons else "bitmask"
    ).gt_masks


def _describe(dataset_dict: dict[str, Any]) -> str:
    return f"image {dataset_dict['file_name']!r} (image id {dataset_dict.get('image_id')})"
