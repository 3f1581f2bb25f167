"""What an image looks like in a few bytes, to find it again in another split."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .image_reading import HighDepthError, read_image

MAX_BITS = 4
"""Of 64 bits that say where an image becomes brighter, so many may differ."""

MAX_DIFFERENCE = 8
"""Of 255, how far two thumbnails may differ on average: flat images have the same 64 bits."""

_BITS_OF = np.array([bin(value).count("1") for value in range(1 << 16)], dtype=np.uint8)


@dataclass(frozen=True)
class ImagePrint:
    """Width and height in pixels, a difference hash, and an 8 x 8 thumbnail."""

    size: tuple[int, int]
    bits: np.ndarray
    """(4,) uint16: whether each of 8 x 9 grey values is brighter than its left neighbour."""
    thumbnail: np.ndarray
    """(192,) uint8"""


def inspect_image(path: Path) -> ImagePrint | str:
    """The print of an image, decoded as for training; or what is wrong with the file."""
    try:
        image = read_image(path)
    except HighDepthError as error:
        return str(error)
    except Exception as error:  # broken bytes make Pillow's decoders raise almost anything
        return f"{type(error).__name__}: {error}"
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX)).astype(int)
    bits = np.packbits(grey[:, 1:] > grey[:, :-1]).view(np.uint16)
    thumbnail = np.asarray(image.resize((8, 8), Image.Resampling.BOX)).reshape(-1)
    return ImagePrint(image.size, bits, thumbnail)


def similar_pairs(
    first: Sequence[ImagePrint | None], second: Sequence[ImagePrint | None]
) -> list[tuple[int, int]]:
    """Indices of an image of `first` and one of `second` that look the same, whatever their size
    or compression; in order."""
    known = [(j, found) for j, found in enumerate(second) if found is not None]
    if not known:
        return []
    columns = [j for j, _ in known]
    bits = np.stack([found.bits for _, found in known])
    thumbnails = np.stack([found.thumbnail for _, found in known]).astype(int)
    pairs = []
    for i, found in enumerate(first):
        if found is None:
            continue
        near = np.flatnonzero(_BITS_OF[bits ^ found.bits].sum(axis=1) <= MAX_BITS)
        difference = np.abs(thumbnails[near] - found.thumbnail).mean(axis=1)
        pairs += [(i, columns[k]) for k in near[difference <= MAX_DIFFERENCE]]
    return pairs
