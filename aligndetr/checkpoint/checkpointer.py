"""Saving and loading checkpoints: data only, whole files only."""

import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from fvcore.common.checkpoint import Checkpointer as FvcoreCheckpointer
from safetensors import SafetensorError
from torch import nn

from aligndetr.utils.files import atomic_path

from .errors import CheckpointError, DamagedCheckpointError
from .loading import load_weights
from .reading import check_intact, local_checkpoint, read_checkpoint
from .report import LoadReport
from .safetensors_files import write_safetensors

logger = logging.getLogger(__name__)

PLAIN_TYPES = (torch.Tensor, str, int, float, bool, type(None))


class CheckpointWriteError(OSError):
    """A checkpoint could not be written: disk full, folder not writable. Earlier ones are whole."""


class Checkpointer(FvcoreCheckpointer):
    """fvcore's Checkpointer with files that are data: tensors, strings, numbers, lists, dicts.

    A file holds "model", the state of each checkpointable (such as "trainer": iteration, hooks,
    optimizer, gradient scaler), "iteration", and `extra`. It is written under a temporary name
    and renamed, so that a run killed while saving leaves the earlier files whole.

    Args:
        model: may be wrapped by DDP; its weights are saved and loaded without the wrapping.
        save_dir: where checkpoints go, and `last_checkpoint`, which names the newest.
        extra: plain values that every file takes along, such as "config" (YAML text) and
            "class_names" (list of str).
        checkpointables: objects with `state_dict` and `load_state_dict`.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        extra: dict[str, Any] | None = None,
        **checkpointables: Any,
    ):
        super().__init__(model, save_dir, save_to_disk=comm.is_main_process(), **checkpointables)
        self.path_manager = PathManager
        self.extra = dict(extra or {})

    def save(self, name: str, *, is_newest: bool = True, **kwargs: Any) -> None:
        """Write `<save_dir>/<name>.pth`; main process only.

        Args:
            is_newest: name the file in `last_checkpoint`, from where a run is resumed.
            kwargs: plain values that this file takes along.

        Raises:
            CheckpointWriteError: the folder or the disk does not take it.
            FloatingPointError: a weight is NaN or infinite; nothing is written.
            TypeError: something is neither tensor nor plain value; nothing is written.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        state = {key: obj.state_dict() for key, obj in self.checkpointables.items()}
        data = {"model": dict(self.model.state_dict()), **state, **self.extra, **kwargs}
        _require_finite(data["model"])
        _require_plain(data, "checkpoint")
        path = Path(self.save_dir) / f"{name}.pth"
        logger.info("Saving checkpoint to %s", path)
        try:
            _write_atomically(path, lambda file: torch.save(data, file))
            if is_newest:
                self.tag_last_checkpoint(path.name)
        except (OSError, RuntimeError) as error:  # torch.save turns the former into the latter
            raise CheckpointWriteError(
                f"{str(path)!r} could not be written ({error}; {_free_space(path.parent)})"
            ) from error

    def share(self, name: str) -> None:
        """Write `<save_dir>/<name>.safetensors`: weights and `extra`, no training state; main
        process only.

        Raises:
            CheckpointWriteError: the folder or the disk does not take it.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        path = Path(self.save_dir) / f"{name}.safetensors"
        try:
            write_safetensors(path, {**self.extra, "model": self.model.state_dict()})
        except (OSError, SafetensorError) as error:
            raise CheckpointWriteError(
                f"{str(path)!r} could not be written ({error}; {_free_space(path.parent)})"
            ) from error

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Let `last_checkpoint` name this file."""
        text = last_filename_basename.encode()
        _write_atomically(Path(self.save_dir) / "last_checkpoint", lambda file: file.write(text))

    def load(
        self, path: str, checkpointables: Sequence[str] | None = None, *, strict: bool = True
    ) -> dict[str, Any]:
        """Load weights, and the state of the checkpointables.

        Args:
            path: local file, `detectron2://…` or `http(s)://…`; "" loads nothing.
            checkpointables: names of those to load; None: all that the file has.
            strict: as in `load_weights`.

        Returns:
            What the file holds besides.

        Raises:
            FileNotFoundError, CheckpointError: see `local_checkpoint`, `read_checkpoint`,
                `load_weights`.
        """
        if not path:
            logger.info("No checkpoint given: the model keeps its random initial weights")
            return {}
        checkpoint = read_checkpoint(local_checkpoint(path))
        self._warn_of_other_classes(checkpoint, path)
        self._load_model(checkpoint, source=path, strict=strict)
        del checkpoint["model"]
        for key in self.checkpointables if checkpointables is None else checkpointables:
            if key in checkpoint:
                self._load_state(key, checkpoint.pop(key), path)
            else:
                logger.warning("%s has no state of %r, which starts anew", path, key)
        return checkpoint

    def load_newest(self) -> dict[str, Any]:
        """Load the newest checkpoint of `save_dir` that is whole; a warning names damaged ones.

        Returns, Raises:
            As `load`, and FileNotFoundError if there is none.
        """
        damage = None
        for path in self._newest_first():
            try:
                check_intact(path)
                content = self.load(path)
            except DamagedCheckpointError as error:
                logger.warning("%s; trying the one before it", error)
                damage = damage or error
                continue
            if damage is not None:
                logger.warning("Going on from %s instead; later steps are done again", path)
            return content
        raise damage or FileNotFoundError(f"no checkpoint in {self.save_dir!r}")

    def _newest_first(self) -> Iterator[str]:
        """The newest checkpoint, then those that were written before it, at last the best one."""
        newest = Path(self.get_checkpoint_file())
        yield str(newest)
        before = _number(newest)
        for path in sorted(newest.parent.glob("model_*.pth"), key=_number, reverse=True):
            if _number(path) > -1 and (before == -1 or _number(path) < before):
                yield str(path)
        best = newest.with_name("model_best.pth")
        if best.exists() and best != newest:
            yield str(best)

    def remove_half_written(self) -> None:
        """Delete what runs that were killed while saving have left; main process only."""
        if self.save_dir and self.save_to_disk:
            for folder in Path(self.save_dir).glob(".model_*.*"):
                shutil.rmtree(folder, ignore_errors=True)

    def _load_model(self, checkpoint: dict[str, Any], source: str, strict: bool) -> LoadReport:
        return load_weights(self.model, checkpoint, source, strict=strict)

    def _load_state(self, key: str, state: dict, path: str) -> None:
        try:
            self.checkpointables[key].load_state_dict(state)
        except (ValueError, KeyError) as error:
            raise CheckpointError(
                f"the state of {key!r} in {path!r} does not fit this run ({error}). Resume with "
                "the config the run was started with, or start anew from these weights: "
                f"`train.init_checkpoint={path}` and another `train.output_dir`."
            ) from error

    def _warn_of_other_classes(self, checkpoint: dict[str, Any], path: str) -> None:
        theirs, ours = checkpoint.get("class_names"), self.extra.get("class_names")
        if theirs and ours and list(theirs) != list(ours):
            logger.warning(
                "%s was trained on the classes %s, the data has %s",
                path,
                _short(theirs),
                _short(ours),
            )

    def get_checkpoint_file(self) -> str:
        """Path of the newest checkpoint in `save_dir`.

        If no `last_checkpoint` names it: the last of those with a number, or else model_best.pth,
        which a run leaves that was killed after its first evaluation and before its first save.

        Raises:
            FileNotFoundError: there is none, or `last_checkpoint` names a file that is not there.
        """
        tag = Path(self.save_dir) / "last_checkpoint"
        if not tag.exists():
            return self._newest_numbered()
        name = tag.read_text(encoding="utf-8").strip()
        path = tag.parent / name
        if Path(name).name != name or not path.is_file():
            raise FileNotFoundError(
                f"{str(tag)!r} names {name!r}, which is no file beside it. Write the name of "
                "another checkpoint of that folder into it."
            )
        return str(path)

    def _newest_numbered(self) -> str:
        folder = Path(self.save_dir)
        numbered = [path for path in folder.glob("model_*.pth") if _number(path) > -1]
        numbered = numbered or [*folder.glob("model_best.pth")]
        if not numbered:
            raise FileNotFoundError(
                f"{str(folder)!r} has neither `last_checkpoint` nor a model_NUMBER.pth nor a "
                "model_best.pth. Write the name of the checkpoint to go on from into a file "
                "`last_checkpoint` there."
            )
        newest = max(numbered, key=_number)
        logger.warning("%s has no `last_checkpoint`; taking %s", folder, newest.name)
        return str(newest)


def _number(path: Path) -> int:
    """Of model_NUMBER.pth; -1 for other names."""
    found = re.fullmatch(r"model_(\d+)\.pth", path.name)
    return int(found[1]) if found else -1


def _free_space(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 2**20:.0f} MiB free"
    except OSError as error:
        return str(error)


def _write_atomically(path: Path, write: Callable) -> None:
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def _require_finite(state: dict[str, torch.Tensor]) -> None:
    for name, tensor in state.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise FloatingPointError(
                f"weight {name!r} is NaN or infinite; the checkpoint was not written and the "
                "earlier ones are untouched. Lower `optimizer.lr` and resume from the last."
            )


def _require_plain(value: Any, where: str) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _require_plain(key, f"a key of {where}")
            _require_plain(item, f"{where}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _require_plain(item, f"{where}[{index}]")
    elif type(value) not in PLAIN_TYPES and not isinstance(value, torch.Tensor):
        raise TypeError(
            f"{where} is a {type(value).__name__}; a checkpoint holds tensors, strings, numbers, "
            "lists and dicts only, so that reading it can run no code"
        )


def _short(names: Sequence[str]) -> str:
    names = list(names)
    return f"{len(names)} ({', '.join(names[:5])}{', …' if len(names) > 5 else ''})"
