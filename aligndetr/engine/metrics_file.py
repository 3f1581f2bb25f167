"""metrics.json of a run that was interrupted: what it says, and where it is taken up again."""

import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.json"


def has_evaluation(metrics_json: Path, num_done: int) -> bool:
    """Whether the weights after `num_done` iterations were evaluated: a line has a "task/metric".

    A periodic evaluation stands at the iteration before, that at the end of a run at `num_done`.
    """
    return any(
        scalars["iteration"] in (num_done - 1, num_done) and _is_evaluated(scalars)
        for _, scalars in _lines(metrics_json)
    )


def cut_at(metrics_json: Path, start_iter: int) -> None:
    """Drop the lines of iterations that a resumed run does again, and a half-written last one.

    The file itself is shortened, so that a writer may have it open; what it was is kept beside it.
    """
    end = 0
    for end_of_line, scalars in _lines(metrics_json):
        # A run that finds its last evaluation missing makes up for it at `start_iter`.
        only_evaluated = _is_evaluated(scalars) and "total_loss" not in scalars
        if scalars["iteration"] >= start_iter and not only_evaluated:
            break
        end = end_of_line
    if not metrics_json.exists() or end == metrics_json.stat().st_size:
        return
    copy = metrics_json.with_suffix(f".before_{start_iter}.json")
    shutil.copyfile(metrics_json, copy)
    os.truncate(metrics_json, end)
    logger.info("%s goes on at iteration %d; %s is what it was", metrics_json, start_iter, copy)


def _is_evaluated(scalars: dict) -> bool:
    return any("/" in key for key in scalars)


def _lines(metrics_json: Path) -> Iterator[tuple[int, dict]]:
    """(where it ends in bytes, content) of each whole line, up to the first that is not."""
    if not metrics_json.exists():
        return
    end = 0
    for line in metrics_json.read_bytes().splitlines(keepends=True):
        end += len(line)
        try:
            scalars = json.loads(line)
        except ValueError:
            return
        if not line.endswith(b"\n") or not isinstance(scalars, dict) or "iteration" not in scalars:
            return
        yield end, scalars
