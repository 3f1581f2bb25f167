"""Steps that must not be taken: what is known of them, where it is written, when a run ends.

A step is bad if a loss or a gradient is NaN or infinite on any rank. The optimizer does not take
it, the report goes to the log and to bad_steps.json, and training goes on with the next images:
one broken annotation must not end a week's work. Too many in a row do end it.
"""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.utils import comm
from torch import Tensor

from aligndetr.utils.errors import NonFinitePredictionError

logger = logging.getLogger(__name__)

REPORT_FILE = "bad_steps.json"

_REMEDY = {
    "loss": "Look at these images, or lower `optimizer.lr`, or switch `train.amp.enabled` off.",
    "gradient": "Lower `optimizer.lr`, or look for an operation whose derivative is infinite "
    "(torch.autograd.set_detect_anomaly finds it).",
}


class NonFiniteLossError(FloatingPointError):
    """The total loss was NaN or infinite on at least one rank; the optimizer did not step."""


class NonFiniteGradientError(FloatingPointError):
    """The losses were finite but a gradient was not; the optimizer did not step."""


class NonFiniteStepError(NonFinitePredictionError):
    """A NonFinitePredictionError completed by what the model cannot know.

    Attributes:
        layer, batch_index: see NonFinitePredictionError.
        iteration: counted from 0, as in metrics.json.
        batch: the (micro-)batch of this process.
    """

    def __init__(self, error: NonFinitePredictionError, iteration: int, batch: list[dict]):
        super().__init__(error.layer, error.batch_index)
        self.iteration = iteration
        self.batch = batch

    def __str__(self) -> str:
        affected = describe_batch(self.batch[self.batch_index : self.batch_index + 1])
        return (
            f"{super().__str__()} This happened at iteration {self.iteration} with {affected}; "
            f"in its batch: {describe_batch(self.batch)}."
        )


@dataclass(frozen=True)
class MicroBatch:
    """What one forward pass gave: losses, or the model's refusal to compute them."""

    batch: list[dict]
    losses: dict[str, Tensor]  # 0-d; {} after a failure
    total: Tensor  # their sum; NaN after a failure
    failure: NonFinitePredictionError | None = None

    def describe(self) -> dict[str, Any]:
        """Losses, images and failure as plain values."""
        report = {
            "finite": self.is_finite(),
            "losses": {name: loss.item() for name, loss in self.losses.items()},
            "images": [
                {"image_id": x.get("image_id"), "file_name": x.get("file_name")} for x in self.batch
            ],
        }
        return report if self.failure is None else {**report, "error": str(self.failure)}

    def is_finite(self) -> bool:
        return bool(self.total.isfinite())


@dataclass
class BadSteps:
    """Counts bad steps, reports them, and ends the run after too many in a row.

    Args:
        max_in_a_row: that many end the run; 1: the first does.
        folder: of bad_steps.json, one JSON object per line; None: not written.
    """

    max_in_a_row: int = 10
    folder: str | None = None
    in_a_row: int = field(default=0, init=False)
    total: int = field(default=0, init=False)

    def handle(
        self, iteration: int, parts: Sequence[MicroBatch], parameters: Sequence[str] = ()
    ) -> None:
        """Report a step that was not taken. A collective: every rank must call it.

        Args:
            parts: the micro-batches of this rank.
            parameters: names of those whose gradient is not finite, if the losses are.

        Raises:
            NonFiniteLossError, NonFiniteGradientError, NonFiniteStepError: it was one too many.
        """
        self.in_a_row += 1
        self.total += 1
        report = self._report(iteration, parts, parameters)
        text = _as_text(report)
        if comm.is_main_process():
            self._write(report)
            logger.error("Bad step %d in a row: %s", self.in_a_row, text)
        if self.in_a_row >= self.max_in_a_row:
            raise self._error(text, iteration, parts, parameters)

    def good_step(self) -> None:
        self.in_a_row = 0

    def state_dict(self) -> dict[str, int]:
        return {"in_a_row": self.in_a_row, "total": self.total}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.in_a_row, self.total = state["in_a_row"], state["total"]

    def _report(
        self, iteration: int, parts: Sequence[MicroBatch], parameters: Sequence[str]
    ) -> dict[str, Any]:
        """The same on all ranks. Where a loss is at fault, with the micro-batches of such only."""
        own = {
            "rank": comm.get_rank(),
            "micro_batches": [part.describe() for part in parts],
        }
        ranks = comm.all_gather(own)
        if not parameters:  # a loss it is: whose?
            for rank in ranks:
                rank["micro_batches"] = [p for p in rank["micro_batches"] if not p["finite"]]
        return {
            "iteration": iteration,
            "cause": "gradient" if parameters else "loss",
            "in_a_row": self.in_a_row,
            "parameters": list(parameters),
            "ranks": [rank for rank in ranks if rank["micro_batches"]],
        }

    def _write(self, report: dict[str, Any]) -> None:
        if self.folder is None:
            return
        path = Path(self.folder) / REPORT_FILE
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(_as_json(report), allow_nan=False, default=str) + "\n")
        except OSError as error:  # a full disk must not end the run
            logger.warning("could not write %s: %s", path, error)

    def _error(
        self,
        text: str,
        iteration: int,
        parts: Sequence[MicroBatch],
        parameters: Sequence[str],
    ) -> Exception:
        if self.max_in_a_row > 1:
            text += f"\nThese were {self.in_a_row} bad steps in a row (`train.max_bad_steps`)."
        for part in parts:
            if part.failure is not None:
                error = NonFiniteStepError(part.failure, iteration, part.batch)
                error.__cause__ = part.failure
                return error
        return NonFiniteGradientError(text) if parameters else NonFiniteLossError(text)


def describe_batch(batch: list[dict]) -> str:
    """The images of a batch for an error message: ids and file names."""
    images = [f"{x.get('image_id', '?')} ({x.get('file_name', 'no file name')})" for x in batch]
    return f"image{'s' * (len(images) != 1)} {', '.join(images)}"


def _as_text(report: dict[str, Any]) -> str:
    what = "the loss became NaN or infinite"
    if report["cause"] == "gradient":
        names = report["parameters"]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        what = (
            f"the losses are finite, but the gradients of {', '.join(names[:3])}{more} are NaN, "
            "infinite or too large for a norm"
        )
    lines = [
        f"rank {rank['rank']}: {part.get('error') or part['losses']} on "
        f"{describe_batch(part['images'])}"
        for rank in report["ranks"]
        for part in rank["micro_batches"]
    ]
    return (
        f"at iteration {report['iteration']} {what}; the step was not taken, the weights are those "
        f"of the iteration before. {_REMEDY[report['cause']]}\n" + "\n".join(lines)
    )


def _as_json(value: Any) -> Any:
    """NaN and infinity, which JSON lacks, as text."""
    if isinstance(value, dict):
        return {key: _as_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_json(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
