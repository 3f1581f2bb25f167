"""Whatever a user may give as an image, as a Pillow image in mode "RGB"; or one clear error."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from aligndetr.data.image_reading import (
    FORMATS,
    HIGH_DEPTH_MODES,
    MAX_PIXELS,
    open_formats,
    upright,
)

ImageLike: TypeAlias = str | os.PathLike | Image.Image | np.ndarray | torch.Tensor

MAX_TILED_PIXELS = 500_000_000
"""About 22000 x 22000. Predicted in tiles, an image is decoded once and copied in parts: 2 GB, or
0.5 GB if it is grey."""


class ImageError(ValueError):
    """Something given as an image cannot be used as one. The message names it and the remedy."""


_pillow_limit = threading.Lock()


def load_image(
    source: ImageLike, max_pixels: int = MAX_PIXELS, keep_mode: bool = False
) -> Image.Image:
    """Decode an image as the data set mapper does.

    Args:
        source: name of a file; a Pillow image; an array (H, W, 3), (H, W, 1) or (H, W), uint8,
            RGB or grey; a tensor (3, H, W) or (1, H, W), uint8, or float in [0, 1]. Files and
            Pillow images are turned as their EXIF orientation says; grey and CMYK become RGB,
            transparency is left out.
        max_pixels: a larger image is refused, before it is decoded.
        keep_mode: leave an image of another mode in it, for whoever converts parts of it: a grey
            one takes a quarter of the memory.

    Returns:
        In mode "RGB", unless `keep_mode`.

    Raises:
        FileNotFoundError: no such file.
        ImageError: a folder or no image, cut off, too large, empty, of several frames, or of more
            than 8 bits.
        TypeError: `source` is something else.
    """
    if isinstance(source, (str, os.PathLike)):
        image = _load_file(Path(source), max_pixels)
    elif isinstance(source, Image.Image):
        image = _decode(source, "the image", max_pixels)
    elif isinstance(source, torch.Tensor):
        image = _from_array(_array_of(source), "the tensor", max_pixels)
    elif isinstance(source, np.ndarray):
        image = _from_array(source, "the array", max_pixels)
    else:
        raise _no_image(source)
    return image if keep_mode or image.mode == "RGB" else image.convert("RGB")


def shrink(image: Image.Image, factor: int) -> Image.Image:
    """1 / `factor` as wide and high, in mode "RGB", by averages; converted part by part. Up to
    `factor` - 1 columns at the right and rows at the bottom are left out."""
    if factor == 1:
        return image.convert("RGB")
    width, height = image.width // factor, image.height // factor
    small = Image.new("RGB", (width, height))
    num_rows = max(1, 1024 // factor)
    for top in range(0, height, num_rows):
        bottom = min(top + num_rows, height)
        part = image.crop((0, top * factor, width * factor, bottom * factor))
        small.paste(part.convert("RGB").reduce(factor), (0, top))
    return small


def _no_image(source: object) -> TypeError:
    return TypeError(
        f"got {type(source).__name__} as an image; give a file name, a Pillow image, a numpy array "
        "(H, W, 3) or a tensor (3, H, W)"
    )


def _load_file(path: Path, max_pixels: int) -> Image.Image:
    name = repr(str(path))
    if path.is_dir():
        raise ImageError(f"{name} is a folder; give its files, for example by Path.glob('*.jpg')")
    if not path.is_file():
        raise FileNotFoundError(f"image {name} does not exist (looked in {str(path.absolute())!r})")
    try:
        with _open_whatever_size(path) as image:
            return _decode(image, name, max_pixels)
    except (ImageError, PermissionError):
        raise
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{name} is not an image that Pillow knows, or not of {', '.join(FORMATS)}"
        ) from error
    except Exception as error:  # broken bytes make Pillow's decoders raise almost anything
        raise ImageError(
            f"image {name} cannot be decoded ({type(error).__name__}: {error}); is it complete?"
        ) from error


@contextmanager
def _open_whatever_size(path: Path) -> Iterator[Image.Image]:
    """Pillow's own limit of pixels is global; here `max_pixels` decides, before decoding."""
    with _pillow_limit:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = open_formats(path)
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    with image:
        yield image


def _decode(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    _check_size(image.width, image.height, name, max_pixels)
    # Phones write MPO: a JPEG with previews behind it, of which the first is the photograph.
    num_frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if num_frames > 1:
        raise ImageError(
            f"{name} has {num_frames} frames or pages; choose one: image = PIL.Image.open(…), "
            'image.seek(i), then give image.convert("RGB")'
        )
    if image.mode in HIGH_DEPTH_MODES:
        raise ImageError(
            f"{name} has more than 8 bits per channel (Pillow mode {image.mode!r}); scale it to "
            "0 … 255, as the training images were, and give it as uint8"
        )
    return upright(image)


def _check_size(width: int, height: int, name: str, max_pixels: int) -> None:
    if not width or not height:
        raise ImageError(f"{name} is empty: {width} x {height} pixels (width x height)")
    if width * height > max_pixels:
        raise ImageError(
            f"{name} has {width} x {height} pixels (width x height), more than the {max_pixels} "
            "that are allowed; predict it in tiles (tile=1024), which allows "
            f"{MAX_TILED_PIXELS}, or give Predictor a larger `max_pixels`"
        )


def _array_of(tensor: torch.Tensor) -> np.ndarray:
    """(H, W, C) uint8 of a tensor (C, H, W)."""
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3):
        raise ImageError(
            f"the tensor has shape {tuple(tensor.shape)}; expected (3, H, W) or (1, H, W). Give "
            "several images as a list, for example list(tensor)"
        )
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point():
        low, high = (tensor.min().item(), tensor.max().item()) if tensor.numel() else (0, 0)
        if not (low >= 0 and high <= 1):  # also for NaN
            raise ImageError(
                f"the tensor has values from {low:g} to {high:g}; floats must be in [0, 1], not "
                "normalised. Give uint8 for values from 0 to 255"
            )
        tensor = (tensor.float() * 255).round().to(torch.uint8)
    return tensor.permute(1, 2, 0).numpy()


def _from_array(array: np.ndarray, name: str, max_pixels: int) -> Image.Image:
    if array.dtype != np.uint8:
        raise ImageError(
            f"{name} has dtype {array.dtype}; expected uint8 with values from 0 to 255. Scale it "
            "as the training images were, and convert it by .astype(np.uint8)"
        )
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] == 3):
        raise ImageError(
            f"{name} has shape {array.shape}; expected (H, W, 3) in the order RGB, or (H, W). Of "
            "RGBA give image[..., :3]; several images are a list, for example list(images)"
        )
    _check_size(array.shape[1], array.shape[0], name, max_pixels)
    return Image.fromarray(np.ascontiguousarray(array))
