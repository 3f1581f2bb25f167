"""Changes of brightness, contrast and saturation: detectron2's, bit by bit, in less time."""

from functools import lru_cache

import cv2
import numpy as np
from detectron2.data import transforms as T
from fvcore.transforms.transform import BlendTransform, Transform

_LEVELS = np.arange(256, dtype=np.uint8)
_GREY = (0.299, 0.587, 0.114)  # of red, green and blue, in RandomSaturation


def blend(image: np.ndarray, transform: Transform) -> np.ndarray | None:
    """`transform.apply_image(image)` where it blends with one number or one grey image.

    Args:
        image: (H, W, C).

    Returns:
        None for any other transform, and unless the image is uint8.
    """
    if type(transform) is not BlendTransform or image.dtype != np.uint8:
        return None
    other = transform.src_image
    if np.ndim(other) == 0:  # each value has one result
        return cv2.LUT(image, transform.apply_image(_LEVELS))
    if np.shape(other) != (*image.shape[:2], 1):
        return None
    # (H, W, 1) with (H, W, C) makes numpy loop over the C values of a pixel.
    grey = transform.src_weight * other[..., 0]
    of_level = transform.dst_weight * _LEVELS.astype(np.float32)
    blended = np.empty_like(image)
    for channel in range(image.shape[2]):
        values = grey + cv2.LUT(np.ascontiguousarray(image[..., channel]), of_level)
        blended[..., channel] = np.clip(values, 0, 255, out=values)
    return blended


def random_saturation(augmentation: T.RandomSaturation, image: np.ndarray) -> Transform:
    """`augmentation.get_transform(image)`, with the same draw.

    Args:
        image: (H, W, 3).
    """
    if image.dtype != np.uint8 or not _adds_as_dot_does():
        return augmentation.get_transform(image)
    weight = np.random.uniform(augmentation.intensity_min, augmentation.intensity_max)
    return BlendTransform(_grey(image)[..., None], src_weight=1 - weight, dst_weight=weight)


def _grey(image: np.ndarray) -> np.ndarray:
    """(H, W) float64: `image.dot(_GREY)`, which calls a dot product for each pixel."""
    red, green, blue = (
        cv2.LUT(np.ascontiguousarray(image[..., channel]), weight * _LEVELS.astype(np.float64))
        for channel, weight in enumerate(_GREY)
    )
    return np.add(np.add(red, green, out=red), blue, out=red)


@lru_cache(maxsize=1)
def _adds_as_dot_does() -> bool:
    """Tried once: numpy's dot product may round once for a product and a sum."""
    noise = np.random.RandomState(0).randint(0, 256, (64, 64, 3), np.uint8)
    return np.array_equal(_grey(noise), noise.dot(_GREY))
