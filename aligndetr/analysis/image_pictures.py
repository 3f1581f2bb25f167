"""Images with what was found, what was missed and what is wrong."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from aligndetr.data.image_reading import read_image
from aligndetr.evaluation.matching import Matches
from aligndetr.inference import DrawnBoxes, draw_boxes

from .evaluations import Evaluation

EDGE = 420
GAP = 8
# Places in the palette of `inference.drawing`: bluish green and vermilion.
RIGHT, WRONG = 4, 5


def draw_image(
    evaluation: Evaluation, matches: Matches, number: int, score: float, edge: int = EDGE
) -> Image.Image:
    """Ground truth (green: found) beside detections (green: right), vermilion for the rest.

    Args:
        number: of the image.
        score: of the detections that count, at least this; what is found follows them.
        edge: pixels of the longer edge of each of the two pictures.

    Raises:
        OSError: the image cannot be read.
    """
    assert evaluation.image_root is not None, "who asks for pictures has looked"
    pixels = np.asarray(read_image(evaluation.image_root / evaluation.file_names[number]))
    shown = np.flatnonzero((matches.images == number) & (matches.scores >= score))
    shown = shown[~matches.ignored[0, shown]][::-1]  # the most certain on top
    found = set(matches.found[0, shown].tolist())
    there = np.flatnonzero(matches.object_images == number)
    names = evaluation.class_names if len(evaluation.class_names) > 1 else [""]
    truth = _drawn(
        matches.object_boxes[there],
        [RIGHT if index in found else WRONG for index in there.tolist()],
        [names[label] for label in matches.object_classes[there]],
    )
    detections = _drawn(
        matches.boxes[shown],
        [RIGHT if matches.found[0, index] >= 0 else WRONG for index in shown],
        [f"{names[matches.classes[i]]} {matches.scores[i]:.2f}".strip() for i in shown],
    )
    scale = edge / max(pixels.shape[:2])
    left, right = (draw_boxes(pixels, boxes, scale) for boxes in (truth, detections))
    pair = Image.new("RGB", (2 * left.width + GAP, left.height), "white")
    pair.paste(left, (0, 0))
    pair.paste(right, (left.width + GAP, 0))
    return pair


def _drawn(boxes: np.ndarray, colors: Sequence[int], captions: Sequence[str]) -> DrawnBoxes:
    corners = boxes.copy()
    corners[:, 2:] = corners[:, :2] + np.maximum(boxes[:, 2:], 0)
    return DrawnBoxes(corners, colors, captions, [False] * len(boxes))
