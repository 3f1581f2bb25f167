"""Images too large for the model at once: predicted in overlapping tiles, merged at the seams.

Neighbouring tiles overlap by a quarter of their edge, so an object of up to that size lies whole in
one of them. The image as a whole, made small, is looked at besides: for what is larger.
"""

import math
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TypeAlias

import numpy as np
from PIL import Image

from .detections import Detections
from .images import shrink

OVERLAP = 0.25
"""Of two neighbouring tiles, as a part of a tile's edge."""

SAME_OBJECT = 0.5
"""IoU from which two boxes are one object, taken within the region that both tiles see."""

MOSTLY_INSIDE = 0.7
"""A piece cut off by a tile's border belongs to an object that contains as much of its area."""

SECOND_CHOICE = 0.5
"""A piece, or what was found in the small whole image, counts with as much of its score."""

MIN_EDGE = 32
"""Of a tile, and of the small whole image: below it there is nothing to see."""

Region: TypeAlias = tuple[int, int, int, int]  # left, top, right, bottom


def tile_regions(width: int, height: int, tile: int) -> list[Region]:
    """Tiles at even distances that cover the image, each of `tile` pixels or the image's edge."""
    return [
        (x, y, min(x + tile, width), min(y + tile, height))
        for y in _starts(height, tile)
        for x in _starts(width, tile)
    ]


def _starts(length: int, tile: int) -> list[int]:
    if length <= tile:
        return [0]
    overlap = round(tile * OVERLAP)
    count = math.ceil((length - overlap) / (tile - overlap))
    return [round(start) for start in np.linspace(0, length - tile, count)]


def predict_in_tiles(
    predict: Callable[[list[Image.Image]], list[Detections]],
    image: Image.Image,
    tile: int,
    batch_size: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find objects in an image of any size.

    Args:
        predict: what is found in images of mode "RGB".
        image: of any mode that can be converted to "RGB"; this happens tile by tile.
        tile: edge of a tile in pixels.
        batch_size: tiles that are predicted at once.

    Returns:
        boxes (N, 4) float32, xyxy in pixels of `image`; scores (N,) float32; class ids (N,) int64;
        the most certain first.
    """
    regions = tile_regions(image.width, image.height, tile)
    tiles = (image.crop(region).convert("RGB") for region in regions)
    found = [part for batch in _batches(tiles, batch_size) for part in predict(batch)]
    corners = [np.array([*region[:2]] * 2, np.float32) for region in regions]
    boxes = [part.boxes + corner for part, corner in zip(found, corners)]
    factor = math.ceil(max(image.size) / tile)
    if min(image.size) // factor >= MIN_EDGE:
        found += predict([shrink(image, factor)])
        boxes.append(found[-1].boxes * np.float32(factor))
        regions.append((0, 0, *image.size))
    seen_by = np.repeat(np.arange(len(regions)), [len(part) for part in found])
    scores = np.concatenate([part.scores for part in found])
    class_ids = np.concatenate([part.class_ids for part in found])
    merged, kept = merge_at_seams(
        np.concatenate(boxes), scores, class_ids, seen_by, np.array(regions), image.size
    )
    return merged, scores[kept], class_ids[kept]


def _batches(images: Iterator[Image.Image], batch_size: int) -> Iterator[list[Image.Image]]:
    while batch := list(islice(images, batch_size)):
        yield batch


def merge_at_seams(
    boxes: np.ndarray,
    scores: np.ndarray,
    class_ids: np.ndarray,
    seen_by: np.ndarray,
    regions: np.ndarray,
    size: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """Keep each object once that several tiles have seen.

    Two boxes of a class from different tiles are one object where they agree on what both tiles
    see. The better box is kept: one that no border cuts, at full size, of the higher score. Pieces
    of an object that every tile cuts are joined. What one tile has found is never merged among
    itself, as the model needs no suppression.

    Args:
        boxes: (N, 4), xyxy in pixels of the image.
        scores, class_ids: (N,).
        seen_by: (N,), the region in which each was found.
        regions: (R, 4), xyxy; one that is the whole image has been looked at with less detail.
        size: (width, height) of the image.

    Returns:
        boxes (K, 4), and the indices (K,) of the detections whose scores and classes they have;
        the highest score first.
    """
    edges = np.array([0, 0, *size])
    views = regions[seen_by]
    margin = np.maximum(2, 0.01 * (regions[:, 2:] - regions[:, :2]).max(axis=1))[seen_by, None]
    at_border = np.abs(boxes - views) <= margin
    cut = (at_border & (views != edges)).any(axis=1)
    coarse = (regions == edges).all(axis=1)[seen_by] & (len(regions) > 1)
    order = np.argsort(-np.where(cut | coarse, SECOND_CHOICE * scores, scores), kind="stable")
    neighbours = _neighbours(seen_by, regions)
    left, merged, kept = np.ones(len(boxes), bool), boxes.copy(), []
    for index in order:
        if not left[index]:
            continue
        left[index] = False
        kept.append(index)
        pieces = [index]
        while pieces:
            piece = pieces.pop()
            others = neighbours[seen_by[piece]]
            others = others[left[others] & (class_ids[others] == class_ids[piece])]
            iou, inside = _agreement(boxes[piece], views[piece], boxes[others], views[others])
            same = iou >= SAME_OBJECT
            left[others[same | (cut[others] & (inside >= MOSTLY_INSIDE))]] = False
            if cut[piece]:
                for other in others[same]:
                    merged[index, :2] = np.minimum(merged[index, :2], boxes[other, :2])
                    merged[index, 2:] = np.maximum(merged[index, 2:], boxes[other, 2:])
                pieces.extend(others[same & cut[others]])
    indices = np.array(kept, dtype=np.int64)
    indices = indices[np.argsort(-scores[indices], kind="stable")]
    return merged[indices], indices


def _neighbours(seen_by: np.ndarray, regions: np.ndarray) -> list[np.ndarray]:
    """For each region, the detections of other regions that share pixels with it."""
    overlap = (regions[:, None, :2] < regions[None, :, 2:]).all(axis=-1)
    overlap &= overlap.T
    np.fill_diagonal(overlap, False)
    return [np.flatnonzero(row[seen_by]) for row in overlap]


def _agreement(
    box: np.ndarray, view: np.ndarray, others: np.ndarray, views: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """IoU of `box` with each of `others`, and how much of each of `others` is inside it; within
    the region that both see. 0 where nothing of one of them is in it."""
    top_left = np.maximum(view[:2], views[:, :2])
    bottom_right = np.minimum(view[2:], views[:, 2:])
    ours = _clip(box[None], top_left, bottom_right)
    theirs = _clip(others, top_left, bottom_right)
    shared = _clip(ours, theirs[:, :2], theirs[:, 2:])
    area, our_area, their_area = map(_area, (shared, ours, theirs))
    iou = area / np.maximum(our_area + their_area - area, 1e-9)
    return iou, area / np.maximum(their_area, 1e-9)


def _clip(boxes: np.ndarray, top_left: np.ndarray, bottom_right: np.ndarray) -> np.ndarray:
    return np.concatenate(
        [np.maximum(boxes[:, :2], top_left), np.minimum(boxes[:, 2:], bottom_right)], axis=1
    )


def _area(boxes: np.ndarray) -> np.ndarray:
    return np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(axis=1)
