"""Putting a state dict into a model, and saying plainly what fitted and what did not."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from fvcore.common.checkpoint import (
    get_missing_parameters_message,
    get_unexpected_parameters_message,
)
from torch import Tensor, nn

from .reading import CheckpointError

logger = logging.getLogger(__name__)


@dataclass
class LoadReport:
    """How the tensors of a file and those of a model correspond."""

    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: dict[str, tuple[tuple, tuple]] = field(default_factory=dict)
    """Name to (shape in the file, shape in the model)."""

    @property
    def complete(self) -> bool:
        return not (self.missing or self.unexpected or self.mismatched)

    def describe(self) -> str:
        lines = [f"{len(self.loaded)} tensors loaded"]
        if self.mismatched:
            lines.append(
                f"{len(self.mismatched)} of another shape, which keep their initial value:"
            )
            lines += [f"  {n}: {a} in the file, {b} here" for n, (a, b) in self.mismatched.items()]
        absent, partly = self._missing_by_part()
        if absent:
            parts = ", ".join(f"{part} ({count})" for part, count in absent.items())
            lines.append(f"not in the file, so they keep their initial value: {parts}")
        if partly:
            lines.append(get_missing_parameters_message(partly))
        if self.unexpected:
            lines.append(get_unexpected_parameters_message(self.unexpected))
        return "\n".join(lines)

    def _missing_by_part(self) -> tuple[dict[str, int], list[str]]:
        """Parts (top-level modules) of which nothing is in the file, with their number of
        tensors, and the names missing from other parts."""
        present = {_part(name) for name in (*self.loaded, *self.mismatched)}
        absent = Counter(_part(name) for name in self.missing if _part(name) not in present)
        return dict(absent), [name for name in self.missing if _part(name) in present]


def load_weights(model: nn.Module, checkpoint: Mapping, source: str, *, strict: bool) -> LoadReport:
    """Copy a checkpoint's weights into a model.

    Args:
        model: not wrapped by DDP. A tensor that stands under several names is loaded if one of
            them is in the checkpoint.
        checkpoint: as `read_checkpoint` returns it. With "matching_heuristics" (files of the
            model zoo) a name matches the model's names that end with it: `res2.0.conv1.weight`
            becomes `backbone.res2.0.conv1.weight`.
        source: the file's name, for messages.
        strict: every tensor of the model and of the file must correspond. Otherwise tensors
            whose first dimension alone differs (heads made for another number of classes),
            and those the file lacks, keep their initial value, and the report says so.

    Raises:
        CheckpointError: strict and not complete; nothing corresponds; a shape differs beyond its
            first dimension; or a weight is NaN or infinite. The model is untouched then.
    """
    state = _without_ddp_prefix(checkpoint["model"])
    if checkpoint.get("matching_heuristics"):
        state = align_and_update_state_dicts(model.state_dict(), dict(state), c2_conversion=False)
    report = _compare(model, state)
    if strict and not report.complete:
        raise CheckpointError(
            f"checkpoint {source!r} does not fit the model: {report.describe()}\n"
            "Every tensor must fit here; give the checkpoint of this model and its config."
        )
    _refuse_other_architecture(report, source)
    _require_finite(report, state, source)
    model.load_state_dict({name: state[name] for name in report.loaded}, strict=False)
    # A backbone of the model zoo never fills a detector, which is no cause for alarm.
    expected = report.complete or checkpoint.get("matching_heuristics")
    level = logging.INFO if expected else logging.WARNING
    logger.log(level, "Weights of %s: %s", source, report.describe())
    return report


def _compare(model: nn.Module, state: Mapping[str, Tensor]) -> LoadReport:
    own = model.state_dict(keep_vars=True)
    report = LoadReport(unexpected=[name for name in state if name not in own])
    for name in [name for name in own if name in state]:
        shapes = tuple(state[name].shape), tuple(own[name].shape)
        if shapes[0] == shapes[1]:
            report.loaded.append(name)
        else:
            report.mismatched[name] = shapes
    # Heads stand under two names; a file with one of them is complete.
    present = {id(own[name]) for name in own.keys() & state.keys()}
    report.missing = [name for name, tensor in own.items() if id(tensor) not in present]
    return report


def _refuse_other_architecture(report: LoadReport, source: str) -> None:
    if not report.loaded:
        raise CheckpointError(
            f"no tensor of checkpoint {source!r} fits the model, which would start from random "
            f"weights. The file has {_sample(report.unexpected or report.mismatched)}, the model "
            f"{_sample(report.missing or report.mismatched)}."
        )
    other = {n: s for n, s in report.mismatched.items() if s[0][1:] != s[1][1:]}
    if other:
        name, (in_file, in_model) = next(iter(other.items()))
        raise CheckpointError(
            f"checkpoint {source!r} is of a model with other dimensions: {name!r} has shape "
            f"{in_file} in the file and {in_model} here ({len(other)} such tensors). Only the "
            "number of classes may differ; use the config that the checkpoint was trained with."
        )


def _require_finite(report: LoadReport, state: Mapping[str, Tensor], source: str) -> None:
    for name in report.loaded:
        if state[name].is_floating_point() and not state[name].isfinite().all():
            raise CheckpointError(
                f"checkpoint {source!r}: weight {name!r} has values that are NaN or infinite, so "
                "the model cannot predict anything. Take an earlier checkpoint."
            )


def _part(name: str) -> str:
    return name.partition(".")[0]


def _sample(names: Iterable[str]) -> str:
    names = list(names)
    return f"{', '.join(names[:3])}{', …' if len(names) > 3 else ''}"


def _without_ddp_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if all(name.startswith("module.") for name in state):
        return {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return dict(state)
