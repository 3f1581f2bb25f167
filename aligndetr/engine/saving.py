"""When a run saves itself: periodically, at its end, and when it is asked to stop."""

import logging
import signal
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import HookBase
from detectron2.utils import comm

from aligndetr.checkpoint import Checkpointer, CheckpointWriteError, DamagedCheckpointError
from aligndetr.checkpoint.reading import check_intact

from .run_state import RUN_KEY, gather_run_state
from .signals import EXIT_NOT_SAVED, EXIT_STOPPED, StopSignals, TrainingStopped

logger = logging.getLogger(__name__)

RETRY_SECONDS = 60.0
"""Between two attempts to write a checkpoint that the disk did not take."""

FINAL_ATTEMPTS = 10
"""For model_final.pth, after which there is no other."""


class SaveHook(HookBase):
    """Writes model_ITERATION.pth every `period` iterations, then model_final.pth and, for sharing,
    model_final.safetensors.

    Registered on all ranks, since each has a part of the state; rank 0 writes. A checkpoint that
    cannot be written does not end the run: it is tried again after RETRY_SECONDS.

    Args:
        checkpointer: of the run.
        signals: noted since training began.
        device: the model's.
        period: in iterations; 0 saves at the end only.
        max_to_keep: number of model_ITERATION.pth, those of an interrupted run included; None:
            all.
    """

    def __init__(
        self,
        checkpointer: Checkpointer,
        signals: StopSignals,
        device: torch.device,
        period: int,
        max_to_keep: int | None = None,
    ):
        self._checkpointer, self._signals, self._device = checkpointer, signals, device
        self._period, self._max_to_keep = period, max_to_keep
        self._failed_at: float | None = None  # time of an attempt that is to be repeated

    def before_train(self) -> None:
        self._checkpointer.remove_half_written()
        if self.trainer.start_iter >= self.trainer.max_iter and not self._is_final():
            self._save_final(self.trainer.max_iter - 1)

    def after_step(self) -> None:
        iteration = self.trainer.iter
        stop, retry = self._agree()
        is_due = self._period > 0 and (iteration + 1) % self._period == 0
        saved = self._save_numbered(iteration) if is_due or retry or stop else False
        if iteration + 1 >= self.trainer.max_iter:
            self._save_final(iteration)
        if stop:
            self._stop(stop, saved)

    def _is_final(self) -> bool:
        """False if a run was killed before it wrote model_final.pth, or that file is damaged."""
        return comm.all_gather(comm.is_main_process() and self._has_whole_final())[0]

    def _has_whole_final(self) -> bool:
        newest = self._checkpointer.get_checkpoint_file()
        try:
            check_intact(newest)
        except DamagedCheckpointError:
            return False
        return Path(newest).name == "model_final.pth"

    def stop_if_asked(self) -> None:
        """To be called on all ranks after what takes long; between two steps."""
        stop, _ = self._agree()
        if stop:
            self._stop(stop, self._save_numbered(self.trainer.iter))

    def save(self, name: str, iteration: int, attempts: int = 1, **extra: Any) -> bool:
        """Save all ranks' state as after `iteration`; whether the file was written.

        Raises:
            CheckpointWriteError: on the main process, after several attempts.
        """
        run_state = gather_run_state(self.trainer.data_loader, self._device)
        now, self.trainer.iter = self.trainer.iter, iteration
        try:
            written = self._write(
                name, attempts, iteration=iteration, **{RUN_KEY: run_state}, **extra
            )
        finally:
            self.trainer.iter = now
        return comm.all_gather(written)[0]

    def _save_final(self, iteration: int) -> None:
        self.save("model_final", iteration, attempts=FINAL_ATTEMPTS)
        try:
            self._checkpointer.share("model_final")
        except CheckpointWriteError as error:  # all of it is in model_final.pth
            logger.error("%s; tools/convert_checkpoint.py makes it of model_final.pth", error)

    def _write(self, name: str, attempts: int, **content: Any) -> bool:
        for attempt in range(1, attempts + 1):
            try:
                self._checkpointer.save(name, **content)
            except CheckpointWriteError as error:
                logger.error(
                    "CHECKPOINT NOT WRITTEN: %s. Training goes on and tries again in %.0f seconds; "
                    "until then a crash loses all since the last checkpoint. Free some space.",
                    error,
                    RETRY_SECONDS,
                )
                if attempt == attempts > 1:
                    raise
            else:
                if content.get("is_newest", True):  # model_best.pth is not what a run resumes from
                    self._failed_at = None
                return True
            self._failed_at = time.monotonic()
            if attempts > 1:
                time.sleep(RETRY_SECONDS)
        return False

    def _save_numbered(self, iteration: int) -> bool:
        saved = self.save(f"model_{iteration:07d}", iteration)
        if saved and comm.is_main_process() and self._max_to_keep is not None:
            numbered = Path(self._checkpointer.save_dir).glob("model_*.pth")
            number = {p: int(p.stem[6:]) for p in numbered if p.stem[6:].isdigit()}
            # Those of later steps are of a course that was left, by a resume from an earlier one.
            kept = sorted(number, key=lambda path: (number[path] <= iteration, number[path]))
            for path in kept[: -self._max_to_keep]:
                _delete(path)
        return saved

    def _agree(self) -> tuple[int, bool]:
        """(signal to stop for or 0, whether to try again): the same on all ranks."""
        waited = self._failed_at is not None and time.monotonic() > self._failed_at + RETRY_SECONDS
        flags = [self._signals.received, int(waited)]
        if comm.get_world_size() > 1:
            shared = torch.tensor(flags)
            dist.all_reduce(shared, op=dist.ReduceOp.MAX, group=_cpu_group())
            flags = shared.tolist()
        return flags[0], bool(flags[1])

    def _stop(self, number: int, saved: bool) -> None:
        name = signal.Signals(number).name
        if saved:
            logger.warning("Stopped by %s; --resume goes on from here", name)
        else:
            logger.error("Stopped by %s, but no checkpoint of this step could be written", name)
        raise TrainingStopped(EXIT_STOPPED if saved else EXIT_NOT_SAVED)


def _cpu_group() -> dist.ProcessGroup:
    """For what is known on the host: asking a GPU's group would wait for the device."""
    return comm._get_global_gloo_group()


def _delete(path: Path) -> None:
    try:
        path.unlink()
    except OSError as error:
        logger.warning("%s could not be deleted (`max_to_keep`): %s", path, error)
