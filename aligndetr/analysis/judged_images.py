"""How good each image of an evaluation is: what the report and the pictures of the worst share."""

from dataclasses import dataclass

import numpy as np

from aligndetr.evaluation.matching import Matches
from aligndetr.evaluation.operating_point import panoptic_quality


@dataclass(frozen=True)
class JudgedImage:
    """An image at one score threshold and IoU 0.5.

    Attributes:
        number: in `Evaluation.file_names`.
        quality: sum of the true positives' IoU / (TP + FP / 2 + FN / 2), in [0, 1]: F1 with each
            true positive weighted by its IoU, see `panoptic_quality`.
        true, false, missed: TP, FP and FN. Detections in crowd regions are neither.
    """

    number: int
    quality: float
    true: int
    false: int
    missed: int

    @property
    def caption(self) -> str:
        """Quality and counts in words."""
        counts = f"{self.true} right, {self.false} wrong, {self.missed} missed"
        return f"quality {self.quality:.3f}   {counts}"


def judge_images(matches: Matches, score: float) -> list[JudgedImage]:
    """From the lowest quality to the highest; equal ones with most mistakes first.

    Images without objects and without a detection of at least `score` are left out.
    """
    counted = matches.scores >= score
    true, false = matches.is_true[0] & counted, matches.is_false[0] & counted

    def count(images: np.ndarray) -> np.ndarray:
        return np.bincount(images, minlength=matches.num_images)

    hits, wrong = count(matches.images[true]), count(matches.images[false])
    missed = count(matches.object_images) - hits
    quality = panoptic_quality(matches, score)
    order = np.lexsort((-(wrong + missed), quality))
    return [
        JudgedImage(int(i), float(quality[i]), int(hits[i]), int(wrong[i]), int(missed[i]))
        for i in order
        if not np.isnan(quality[i])
    ]
