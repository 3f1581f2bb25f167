"""Putting a state dict into a model, and saying plainly what fitted and what did not."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from torch import Tensor, nn

from .bare_backbones import with_backbone_names
from .decoder_depth import with_proposal_head
from .errors import CheckpointError
from .recognising import without_ddp_prefix
from .report import LoadReport
from .settings import READERS, as_overrides, differing_settings

logger = logging.getLogger(__name__)

MIN_SHARE = 0.5
"""Of a file's tensors that must have a place in the model, and of the tensors of the model's parts
that the file is about (the backbone alone, for a backbone's file) that must be in it."""


def load_weights(model: nn.Module, checkpoint: Mapping, source: str, *, strict: bool) -> LoadReport:
    """Copy a checkpoint's weights into a model.

    Args:
        model: not wrapped by DDP. A tensor that stands under several names is loaded if one of
            them is in the checkpoint.
        checkpoint: as `read_checkpoint` returns it. With "matching_heuristics" (files of the
            model zoo) a name matches the model's names that end with it: `res2.0.conv1.weight`
            becomes `backbone.res2.0.conv1.weight`. Names of a backbone alone (Swin's, MAE's,
            timm's) are taken for those of the model's backbone. The proposals' head is found
            in a file of another number of decoder layers as well.
        source: the file's name, for messages.
        strict: every tensor of the model and of the file must correspond. Otherwise tensors
            whose first dimension alone differs (heads made for another number of classes),
            and those the file lacks, keep their initial value, and the report says so.

    Raises:
        CheckpointError: strict and not complete; less than MIN_SHARE corresponds; a shape differs
            beyond its first dimension; a weight is NaN or infinite; or the model is built with
            other settings than the weights were trained with. The model is untouched then.
    """
    state = without_ddp_prefix(checkpoint["model"])
    if checkpoint.get("matching_heuristics"):
        state = align_and_update_state_dicts(model.state_dict(), state, c2_conversion=False)
    if not state.keys() & model.state_dict().keys():  # a backbone of timm's, perhaps
        their_names = checkpoint.get("their_names", {})
        state = {their_names.get(name, name): tensor for name, tensor in state.items()}
    state = with_backbone_names(state, model.state_dict())
    state = with_proposal_head(state, model.state_dict())
    report = _compare(model, state, checkpoint)
    if strict and not report.complete:
        raise CheckpointError(
            f"checkpoint {source!r} does not fit the model. Every tensor must fit here: give the "
            f"checkpoint of this model and its config. {report.describe()}"
        )
    _refuse_other_architecture(report, source)
    _refuse_other_settings(model, checkpoint.get("settings", {}), source)
    _require_finite(report, state, source)
    model.load_state_dict({name: state[name] for name in report.loaded}, strict=False)
    # A backbone never fills a detector, which is no cause for alarm.
    backbone = checkpoint.get("matching_heuristics") or not _odd(report)
    expected = report.complete or backbone
    level = logging.INFO if expected else logging.WARNING
    kind = f" ({checkpoint['source']})" if checkpoint.get("source") else ""
    logger.log(level, "Weights of %s%s: %s", source, kind, report.describe())
    return report


def _compare(model: nn.Module, state: Mapping[str, Tensor], checkpoint: Mapping) -> LoadReport:
    own = model.state_dict(keep_vars=True)
    filled = set(checkpoint.get("filled", ()))
    report = LoadReport(
        unexpected=[name for name in state if name not in own and name not in filled],
        dropped=list(checkpoint.get("dropped", ())),
    )
    for name in [name for name in own if name in state]:
        shapes = tuple(state[name].shape), tuple(own[name].shape)
        if shapes[0] == shapes[1]:
            report.loaded.append(name)
        else:
            report.mismatched[name] = shapes
    report.filled = [name for name in report.loaded if name in filled]
    # Heads stand under two names; a file with one of them is complete.
    present = {id(own[name]) for name in own.keys() & state.keys()}
    report.missing = [name for name, tensor in own.items() if id(tensor) not in present]
    return report


def _odd(report: LoadReport) -> bool:
    """Whether something else is wrong than that whole parts of the model are missing."""
    return bool(report.mismatched or report.unexpected or report.covered_share() < 1)


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
            "numbers of classes and layers may differ; use the config that the checkpoint was "
            "trained with."
        )
    used, covered = report.used_share(), report.covered_share()
    if min(used, covered) < MIN_SHARE:
        raise CheckpointError(
            f"checkpoint {source!r} fits the model too little: {used:.0%} of its tensors have a "
            f"place in the model, and it has {covered:.0%} of the model's parts that it is about; "
            f"at least {MIN_SHARE:.0%} of both must fit, or training would start from mostly "
            f"random weights. {report.describe()}"
        )


def _refuse_other_settings(model: nn.Module, settings: Mapping[str, Any], source: str) -> None:
    differing = differing_settings(model, settings)
    # The order of channels is the data loader's, and a model does not know it.
    unseen = {key: value for key, value in settings.items() if key not in READERS}
    if differing:
        needed = {key: settings[key] for key in differing} | unseen
        raise CheckpointError(
            f"the weights of {source!r} were trained with other settings than the config's "
            f"({', '.join(as_overrides(differing))}): they would load, and find little. Change the "
            f"config, or add {' '.join(as_overrides(needed))}"
        )
    if unseen:
        logger.warning("%s needs %s", source, " ".join(as_overrides(unseen)))


def _require_finite(report: LoadReport, state: Mapping[str, Tensor], source: str) -> None:
    for name in report.loaded:
        if state[name].is_floating_point() and not state[name].isfinite().all():
            raise CheckpointError(
                f"checkpoint {source!r}: weight {name!r} has values that are NaN or infinite, so "
                "the model cannot predict anything. Take an earlier checkpoint."
            )


def _sample(names: Iterable[str]) -> str:
    names = list(names)
    return f"{', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
