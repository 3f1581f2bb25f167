"""An image from its file to a tensor, with as few copies as its pixels allow.

detectron2 goes through numpy between any two steps (decode, flip, resize, crop), and each step
that Pillow does copies the image in and out. Here it stays in Pillow from the file to the last
step, and an augmentation that asks for no more than its size is not given a copy of its pixels.
The pixels are those of detectron2, bit by bit: the same steps of Pillow, in the same order.

What then remains is decoding (`jpeg.py`) and, above all, Pillow's resizing. `fast_resize` does the
latter by torch, whose weights have fewer bits: some values differ by 1 or rarely 2 of 255, 0.1 to
0.4 % of them as COCO's images are enlarged for training, up to a fifth where an image is shrunk.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import cv2
import numpy as np
import pyarrow
import torch
import torch.nn.functional as F
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from detectron2.utils.file_io import PathManager
from fvcore.transforms.transform import NoOpTransform
from PIL import Image

from .blending import blend, random_saturation
from .jpeg import decode_jpeg

# All that these ask of an image is its size. (Exact types: a subclass may ask for more.)
SIZE_IS_ENOUGH = (T.FixedSizeCrop, T.RandomCrop, T.RandomFlip, T.Resize, T.ResizeShortestEdge)


# Pillow finds the format by the content, whatever the name says, and some of those it knows are
# parsed by other programs (PostScript by Ghostscript) or by hardly tested code.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")

HIGH_DEPTH_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
"""Pillow's modes of more than 8 bits, which its conversion to RGB cuts off at 255."""

MAX_PIXELS = 89_000_000
"""About 9400 x 9400, where Pillow begins to warn: decoded, 270 MB, and a few times that at work."""


class HighDepthError(ValueError):
    """An image has more than 8 bits per channel, of which nobody has said what they mean."""


@contextmanager
def open_image(file_name: str | os.PathLike) -> Iterator[Image.Image]:
    """An image of one of the `FORMATS` of which no pixel is decoded yet.

    Raises:
        FileNotFoundError: there is no such file.
        Exception: the bytes are broken; Pillow's decoders raise almost anything.
    """
    with PathManager.open(str(file_name), "rb") as file, open_formats(file) as image:
        yield image


def open_formats(file: str | os.PathLike | BinaryIO) -> Image.Image:
    """Pillow's `Image.open` for the `FORMATS` that it knows here."""
    Image.init()
    return Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])


def read_image(file_name: str | os.PathLike) -> Image.Image:
    """Decode an image, in mode "RGB", turned as its EXIF orientation says.

    Raises:
        FileNotFoundError: there is no such file.
        HighDepthError: it has more than 8 bits per channel.
        Exception: the bytes are broken; Pillow's decoders raise almost anything.
    """
    with open_image(file_name) as image:
        return decode(image)


def decode(image: Image.Image) -> Image.Image:
    """As `to_rgb`, by the quickest decoder that gives the same pixels."""
    return decode_jpeg(image) or to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """Decode an opened image, in mode "RGB", turned as its EXIF orientation says.

    Raises:
        HighDepthError: its mode is one of the `HIGH_DEPTH_MODES`: it would come out all white.
    """
    if image.mode in HIGH_DEPTH_MODES:
        raise HighDepthError(
            f"it has more than 8 bits per channel (Pillow mode {image.mode!r}); scale its values "
            "to 0 … 255 and save it with 8 bits"
        )
    image = upright(image)
    return image if image.mode == "RGB" else image.convert("RGB")  # convert() would copy


def upright(image: Image.Image) -> Image.Image:
    """Decode an opened image, in its own mode, turned as its EXIF orientation says."""
    image = detection_utils._apply_exif_orientation(image)
    image.load()
    return image


class PillowInput(T.AugInput):
    """detectron2's input of augmentations for an image that Pillow holds.

    Args:
        image: in mode "RGB".
        img_format: channel order of the arrays and tensors made of it, "RGB" or "BGR".
        fast_resize: let torch do bilinear resizing, nearly as Pillow does it.
    """

    boxes = None
    sem_seg = None

    def __init__(self, image: Image.Image, img_format: str = "RGB", fast_resize: bool = False):
        self._pillow: Image.Image | None = image
        self._array: np.ndarray | None = None
        self._reversed = img_format == "BGR"
        self._fast_resize = fast_resize
        self._size_is_enough = False

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)"""
        if self._pillow is None:
            height, width = self.image.shape[:2]
        else:
            width, height = self._pillow.size
        return height, width

    @property
    def image(self) -> np.ndarray:
        """(H, W, 3) uint8. Without content while an augmentation runs that takes the size only."""
        if self._array is not None:
            return self._array
        if self._size_is_enough:
            return np.broadcast_to(np.uint8(0), (*self.size, 3))
        array = np.asarray(self._pillow)
        self._array = array[:, :, ::-1] if self._reversed else array
        return self._array

    @image.setter
    def image(self, array: np.ndarray) -> None:
        self._pillow, self._array = None, array

    def augment(self, augmentations: T.AugmentationList) -> T.TransformList:
        """Apply `augmentations` in order; returns what they did."""
        transforms = []
        for augmentation in augmentations.augs:
            self._size_is_enough = type(augmentation) in SIZE_IS_ENOUGH
            if type(augmentation) is T.RandomSaturation:
                transforms.append(random_saturation(augmentation, self.image))
                self.transform(transforms[-1])
            else:
                transforms.append(augmentation(self))
        self._size_is_enough = False
        return T.TransformList(transforms)

    def transform(self, transform: T.Transform) -> None:
        self._size_is_enough = False
        if self._fast_resize and _is_bilinear(transform):
            self.image = _resize_fast(self._view(), transform.new_h, transform.new_w)
            return
        pillow = None if self._pillow is None else _apply_in_pillow(self._pillow, transform)
        if pillow is None:
            blended = blend(self.image, transform)
            self.image = transform.apply_image(self.image) if blended is None else blended
        else:
            self._pillow, self._array = pillow, None

    def to_tensor(self) -> torch.Tensor:
        """(3, H, W), contiguous, of the image's type (uint8, unless a transform changed it)."""
        if self._pillow is None:
            return torch.from_numpy(np.ascontiguousarray(self.image.transpose(2, 0, 1)))
        pixels = _memory_of(self._pillow)
        planes = np.empty((3, *pixels.shape[:2]), np.uint8)
        order: Any = [*(planes[::-1] if self._reversed else planes)]
        if pixels.shape[2] == 3:
            cv2.split(pixels, order)
        else:
            cv2.split(pixels, [*order, np.empty_like(planes[0])])
        return torch.from_numpy(planes)

    def _view(self) -> np.ndarray:
        """(H, W, 3), which may be read-only and have any strides: nothing is copied to get it."""
        if self._pillow is None:
            return self.image
        pixels = _memory_of(self._pillow)[:, :, :3]
        return pixels[:, :, ::-1] if self._reversed else pixels


def _apply_in_pillow(image: Image.Image, transform: T.Transform) -> Image.Image | None:
    """`transform` by Pillow's own means, None where it has none that give the same pixels."""
    kind = type(transform)
    if kind is NoOpTransform:
        return image
    if kind is T.HFlipTransform:
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if kind is T.VFlipTransform:
        return image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    if kind is T.ResizeTransform and image.size == (transform.w, transform.h):
        return image.resize((transform.new_w, transform.new_h), transform.interp)
    if kind is T.CropTransform:
        left, top = transform.x0, transform.y0
        right, bottom = left + transform.w, top + transform.h
        # numpy's slices end at the border, where Pillow goes on in black.
        if 0 <= left < right <= image.width and 0 <= top < bottom <= image.height:
            return image.crop((left, top, right, bottom))
    return None


def _is_bilinear(transform: T.Transform) -> bool:
    return type(transform) is T.ResizeTransform and transform.interp == Image.Resampling.BILINEAR


def _resize_fast(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H, W, C) to (height, width, C), uint8."""
    if image.dtype != np.uint8:
        raise ValueError(
            f"`fast_resize` is for uint8, but a transform made the image {image.dtype}"
        )
    if min(image.strides) < 0:  # of a flip; torch has no such thing
        image = np.ascontiguousarray(image)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # only read
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    resized = F.interpolate(pixels, (height, width), mode="bilinear", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def _memory_of(image: Image.Image) -> np.ndarray:
    """(H, W, 3 or 4), read-only; the memory of the image itself where Pillow gives access to it."""
    if not hasattr(image, "__arrow_c_array__"):  # Pillow < 11.2
        return np.asarray(image)
    try:
        pixels = pyarrow.array(image)
    except ValueError:  # 4 million pixels and more lie in several blocks
        return np.asarray(image)
    assert pixels.type.list_size == 4, pixels.type
    return pixels.values.to_numpy().reshape(image.height, image.width, 4)
