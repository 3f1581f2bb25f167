"""Does an exported file find what the model finds? On real images, at several sizes."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.structures import Instances
from scipy.optimize import linear_sum_assignment
from tabulate import tabulate
from torch import Tensor, nn

from .graph import MIN_PROGRAM_EDGE
from .ranking import RankingDifference, imposed

Detector = Callable[[list[dict]], list[dict]]

SCORE_THRESHOLD = 0.05
MIN_COMPARED = 10
# (size of the image against what the test mapper makes of it, images in the batch)
CASES = ((1.0, 1), (1.0, 2), (0.75, 1), (0.75, 3))


class ParityError(ValueError):
    """An exported file does not find what the model finds."""


@dataclass(frozen=True)
class Tolerance:
    """How far an exported file may be from the model.

    Attributes:
        box: a box's largest coordinate difference, in pixels of the model's input.
        score: a score's difference.
        gap: difference in score (a logit) of two tokens that may be ranked either way.
    """

    box: float
    score: float
    gap: float


@dataclass(frozen=True)
class Comparison:
    """The differences in one batch.

    Attributes:
        name: of the image.
        size: (height, width) of the model's input.
        batch: images in the batch, mirror images of the first.
        compared: number of detections, those of the model and those of the exported file.
        apart: number of those that differ by more than the tolerance.
        box, score: largest differences, see `Tolerance`.
        ranking: how far the file's ranking of tokens is from the model's own. The model found what
            is compared with the file's ranking, see `ranking.py`.
    """

    name: str
    size: tuple[int, int]
    batch: int
    compared: int
    apart: int
    box: float
    score: float
    ranking: RankingDifference


def compare(
    model: nn.Module,
    exported: Detector,
    images: Sequence[tuple[str, Tensor]],
    tolerance: Tolerance,
) -> list[Comparison]:
    """Run both on each image, at two sizes and in batches of 1, 2 and 3.

    Args:
        model, exported: list of dicts in, list of {"instances": Instances} out. If `exported` gives
            its "ranking" as well, the model is made to rank so.
        images: name and pixels (3, H, W) uint8, as the test mapper makes them.
        tolerance: what differs by more is apart.

    Returns:
        Differences of all detections with a score over 0.05 of either side, or of the ten best
        where there are fewer. They are paired within a class, so as to make the differences
        small; one that has no partner of its class differs by infinity.
    """
    return [
        _compare_batch(model, exported, name, _resize(pixels, scale), batch, tolerance)
        for name, pixels in images
        for scale, batch in CASES
    ]


@torch.no_grad()
def _compare_batch(
    model: nn.Module, exported: Detector, name: str, image: Tensor, batch: int, tolerance: Tolerance
) -> Comparison:
    mirrored = [image, image.flip(2), image.flip(1)][:batch]
    inputs = [{"image": picture.contiguous()} for picture in mirrored]
    theirs = exported(inputs)
    rankings = [output["ranking"] for output in theirs if "ranking" in output]
    with imposed(model, torch.stack(rankings)) if rankings else nullcontext() as ranked:
        ours = model(inputs)
    pairs = [
        differences
        for outputs in zip(ours, theirs, strict=True)
        for one, other in [[output["instances"].to("cpu") for output in outputs]]
        for differences in (_differences(one, other), _differences(other, one))
    ]
    box, score = np.concatenate(pairs, axis=1)
    apart = ~((box <= tolerance.box) & (score <= tolerance.score))  # so is NaN
    return Comparison(
        name,
        size=(image.shape[1], image.shape[2]),
        batch=batch,
        compared=len(apart),
        apart=int(apart.sum()),
        box=float(box.max(initial=0)),
        score=float(score.max(initial=0)),
        ranking=ranked[0] if ranked else RankingDifference(moved=0, gap=0.0),
    )


def agree(comparisons: Sequence[Comparison], tolerance: Tolerance) -> bool:
    """Whether no detection is apart, and no tokens are ranked differently whose scores differ by
    more than rounding."""
    return all(not c.apart and c.ranking.gap <= tolerance.gap for c in comparisons)


def render_table(comparisons: Sequence[Comparison], tolerance: Tolerance) -> str:
    """One line for each comparison."""
    rows = [
        (c.name, f"{c.size[1]} x {c.size[0]}", c.batch, c.compared, c.apart, f"{c.box:.4f}",
         f"{c.score:.6f}", c.ranking.moved, f"{c.ranking.gap:.1e}")
        for c in comparisons
    ]  # fmt: skip
    headers = ["image", "size", "batch", "compared", "apart", "box, px", "score", "ranks", "gap"]
    title = (
        "Detections of the exported file and of the model: none may be apart, by more than "
        f"{tolerance.box} px or {tolerance.score}.\nThe model ranked its tokens as the file did, "
        "whose ranks differ from its own between scores that\ndiffer by the gap, which may be "
        f"{tolerance.gap:.0e}."
    )
    return f"{title}\n{tabulate(rows, headers, disable_numparse=True)}"


def _resize(pixels: Tensor, scale: float) -> Tensor:
    if scale == 1:
        return pixels
    # Not so small that a .pt2 file would not take it.
    size = [max(min(edge, MIN_PROGRAM_EDGE), round(edge * scale)) for edge in pixels.shape[1:]]
    return F.interpolate(pixels[None], size, mode="bilinear", antialias=True)[0]


def _differences(found: Instances, others: Instances) -> np.ndarray:
    """(2, N) of box and score, for the N detections of `found` that count."""
    over = int((found.scores > SCORE_THRESHOLD).sum())
    found = found[: max(over, MIN_COMPARED)]  # the most certain come first
    boxes, scores, classes = _arrays(found)
    other_boxes, other_scores, other_classes = _arrays(others)
    box = np.abs(boxes[:, None] - other_boxes).max(-1, initial=0)
    score = np.abs(scores[:, None] - other_scores)
    same_class = classes[:, None] == other_classes
    # A pixel weighs as much as 0.002 in score: roughly what rounding makes of either.
    cost = np.where(same_class, np.minimum(box + 500 * score, 1e6), 1e7)
    rows, columns = linear_sum_assignment(np.nan_to_num(cost, nan=1e6))
    partners = same_class[rows, columns]
    rows, columns = rows[partners], columns[partners]
    differences = np.full((2, len(classes)), np.inf)
    differences[:, rows] = box[rows, columns], score[rows, columns]
    return differences


def _arrays(instances: Instances) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    boxes, scores = instances.pred_boxes.tensor, instances.scores
    return boxes.numpy(), scores.numpy(), instances.pred_classes.numpy()
