"""How sure a difference in AP is: a paired bootstrap over images."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .average_precision import WeightedAP
from .matching import Matches

METRICS = {"AP": slice(None), "AP50": 0, "AP75": 5}
"""Which of the IoU thresholds 0.50, 0.55, … 0.95 each is the mean over."""


@dataclass(frozen=True)
class Difference:
    """AP of one set of detections minus that of another on the same images, in percent points."""

    value: float
    low: float
    """2.5 % of the resampled differences are below it."""
    high: float
    """2.5 % of the resampled differences are above it."""
    p_better: float
    """Share of resampled differences above 0, of those at 0 half."""


def bootstrap_differences(
    runs: Sequence[Matches], num_resamples: int = 1000, seed: int = 0
) -> list[dict[str, Difference]]:
    """Compare each of several runs with the first, for each of `METRICS`.

    As many images as there are are drawn with replacement, the same for all runs, and AP is
    computed anew, `num_resamples` times. It is the images' share of the uncertainty: what another
    seed of the training would change is not in it.

    Args:
        runs: on the same ground truth; at least two.

    Returns:
        For each run but the first.

    Raises:
        ValueError: fewer than two runs or resamples, or runs on different data.
    """
    _check(runs, num_resamples)
    num_images = runs[0].num_images
    rng = np.random.default_rng(seed)
    weighted = [WeightedAP(run) for run in runs]
    full = _metrics(weighted, np.ones(num_images))
    draws = []
    for _ in range(num_resamples):
        drawn = rng.integers(0, num_images, num_images)
        draws.append(_metrics(weighted, np.bincount(drawn, minlength=num_images)))
    resampled = np.stack(draws)  # (resamples, runs, metrics)
    return [
        {
            name: _difference(full[run, m] - full[0, m], resampled[:, run, m] - resampled[:, 0, m])
            for m, name in enumerate(METRICS)
        }
        for run in range(1, len(runs))
    ]


def _check(runs: Sequence[Matches], num_resamples: int) -> None:
    if len(runs) < 2 or num_resamples < 2:
        raise ValueError(
            f"{len(runs)} runs and {num_resamples} resamples; a comparison needs 2 of each"
        )
    for run in runs[1:]:
        if not (
            run.num_images == runs[0].num_images
            and np.array_equal(run.object_boxes, runs[0].object_boxes)
            and np.array_equal(run.object_images, runs[0].object_images)
        ):
            raise ValueError("the runs were not evaluated on the same images and objects")


def _metrics(weighted: Sequence[WeightedAP], weights: np.ndarray) -> np.ndarray:
    """(runs, metrics) in percent; NaN where a draw has no object."""
    return np.array([ap_metrics(run, weights) for run in weighted])


def ap_metrics(weighted: WeightedAP, weights: np.ndarray) -> np.ndarray:
    """(metrics,): AP of each of `METRICS` in percent, with a weight for each image."""
    aps = 100 * weighted(weights)
    return np.array([np.mean(aps[which]) for which in METRICS.values()])


def _difference(value: float, resampled: np.ndarray) -> Difference:
    known = resampled[~np.isnan(resampled)]
    if not len(known):
        return Difference(*[float("nan")] * 4)
    low, high = np.percentile(known, [2.5, 97.5])
    better = np.mean(known > 0) + np.mean(known == 0) / 2
    return Difference(float(value), float(low), float(high), float(better))
