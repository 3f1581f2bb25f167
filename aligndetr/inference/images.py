"""Whatever a user may give as an image, as a Pillow image in mode "RGB"; or one clear error."""

import os
import warnings
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from aligndetr.data.image_reading import FORMATS, MAX_PIXELS, open_formats, to_rgb

ImageLike: TypeAlias = str | os.PathLike | Image.Image | np.ndarray | torch.Tensor

HIGH_DEPTH_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
"""Pillow's modes of more than 8 bits, which its conversion to RGB cuts off at 255."""


class ImageError(ValueError):
    """Something given as an image cannot be used as one. The message names it and the remedy."""


def load_image(source: ImageLike, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image as the data set mapper does.

    Args:
        source: name of a file; a Pillow image; an array (H, W, 3), (H, W, 1) or (H, W), uint8,
            RGB or grey; a tensor (3, H, W) or (1, H, W), uint8, or float in [0, 1]. Files and
            Pillow images are turned as their EXIF orientation says; grey and CMYK become RGB,
            transparency is left out.
        max_pixels: a larger image is refused, before it is decoded.

    Returns:
        In mode "RGB".

    Raises:
        FileNotFoundError: no such file.
        ImageError: a folder or no image, cut off, too large, empty, of several frames, or of more
            than 8 bits.
        TypeError: `source` is something else.
    """
    if isinstance(source, (str, os.PathLike)):
        return _load_file(Path(source), max_pixels)
    if isinstance(source, Image.Image):
        return _to_rgb(source, "the image", max_pixels)
    if isinstance(source, torch.Tensor):
        return _from_array(_array_of(source), "the tensor", max_pixels)
    if isinstance(source, np.ndarray):
        return _from_array(source, "the array", max_pixels)
    raise TypeError(
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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `max_pixels` decides
            image = open_formats(path)
        with image:
            return _to_rgb(image, name, max_pixels)
    except (ImageError, PermissionError):
        raise
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{name} is not an image that Pillow knows, or not of {', '.join(FORMATS)}"
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} is too large: {error}; cut it into tiles") from error
    except Exception as error:  # broken bytes make Pillow's decoders raise almost anything
        raise ImageError(
            f"image {name} cannot be decoded ({type(error).__name__}: {error}); is it complete?"
        ) from error


def _to_rgb(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
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
    return to_rgb(image)


def _check_size(width: int, height: int, name: str, max_pixels: int) -> None:
    if not width or not height:
        raise ImageError(f"{name} is empty: {width} x {height} pixels (width x height)")
    if width * height > max_pixels:
        raise ImageError(
            f"{name} has {width} x {height} pixels (width x height), more than the {max_pixels} "
            "that are allowed; cut it into tiles, or give Predictor a larger `max_pixels`"
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
    return Image.fromarray(np.ascontiguousarray(array)).convert("RGB")
