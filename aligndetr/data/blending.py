"""Changes of brightness, contrast and saturation: fvcore's blending, bit by bit, in less time."""

import cv2
import numpy as np
from fvcore.transforms.transform import BlendTransform, Transform

_LEVELS = np.arange(256, dtype=np.uint8)


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
    blended = np.empty_like(image)
    of_channel = BlendTransform(other[..., 0], transform.src_weight, transform.dst_weight)
    for channel in range(image.shape[2]):
        blended[..., channel] = of_channel.apply_image(image[..., channel])
    return blended
