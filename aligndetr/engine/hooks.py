"""Hooks and writers that detectron2 lacks."""

import datetime
import logging
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from detectron2.engine import HookBase
from detectron2.engine import hooks as d2_hooks
from detectron2.utils import comm
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventStorage,
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
)
from torch import nn

from .ema import ModelEMA

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.json"


class EMAUpdater(HookBase):
    """Updates the averaged weights after each optimizer step."""

    def __init__(self, ema: ModelEMA, model: nn.Module):
        self._ema = ema
        self._model = model

    def after_step(self) -> None:
        if self.trainer.step_taken:  # a step that was left out counts for nothing
            self._ema.update(self._model)


class PeriodicWriter(d2_hooks.PeriodicWriter):
    """detectron2's PeriodicWriter, but a full disk does not end the run; it is said loudly."""

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % self._period == 0 or (
            self.trainer.iter == self.trainer.max_iter - 1
        ):
            for writer in self._writers:
                self._attempt(writer, writer.write)

    def after_train(self) -> None:
        for writer in self._writers:
            self._attempt(writer, writer.write)
            self._attempt(writer, writer.close)

    @staticmethod
    def _attempt(writer: EventWriter, action: Callable[[], None]) -> None:
        try:
            action()
        except OSError as error:
            name = type(writer).__name__
            logger.error("%s COULD NOT WRITE (%s); training goes on without it", name, error)


class MemoryStats(HookBase):
    """Puts the peak memory in MiB to the storage: `host_mem_mb` and on CUDA `gpu_mem_mb`.

    Host memory is this process's; data loading workers are not in it.
    """

    def __init__(self, period: int, device: torch.device):
        self._period = period
        self._device = device

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % self._period == 0:
            self.trainer.storage.put_scalars(smoothing_hint=False, **self._peaks())

    def _peaks(self) -> dict[str, float]:
        unit = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts bytes, Linux KiB
        peaks = {"host_mem_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}
        if self._device.type == "cuda":
            peaks["gpu_mem_mb"] = torch.cuda.max_memory_allocated(self._device) / 2**20
        return peaks


class CurvesPlotter(HookBase):
    """Draws curves.png from metrics.json when training ends, however it ends.

    Register it after the hook that writes metrics.json.
    """

    def __init__(self, output_dir: str):
        self._output_dir = Path(output_dir)

    def after_train(self) -> None:
        # Imported late: matplotlib takes a second, and evaluation never needs it.
        from .curves import plot_curves

        picture = self._output_dir / "curves.png"
        try:
            plot_curves(self._output_dir / METRICS_FILE, picture)
        except Exception:  # a picture must not hide why training failed, nor fail it
            logger.warning("could not draw %s", picture, exc_info=True)
        else:
            logger.info("Curves of losses, AP and learning rate: %s", picture)


class ConsolePrinter(CommonMetricPrinter):
    """One line per period: ETA, losses of the last layer, AP, time, learning rate, memory.

    Of losses that differ by a suffix (`loss_class`, `loss_class_0`, `loss_class_dn`) only the
    shortest name is shown, else forty would fill the screen; the files hold all of them.
    """

    def write(self) -> None:
        storage = get_event_storage()
        if storage.iter == self._max_iter:  # after the end there is no progress to report
            return
        parts = [
            f"eta: {self._get_eta(storage) or 'unknown'}",
            f"iter: {storage.iter + 1}/{self._max_iter}",
            *(f"{name}: {self._median(storage, name):.4g}" for name in shown_losses(storage)),
            *self._latest(storage),
        ]
        self.logger.info("  ".join(parts))

    def _median(self, storage: EventStorage, name: str) -> float:
        return storage.history(name).median(storage.count_samples(name, self._window_size))

    @staticmethod
    def _latest(storage: EventStorage) -> list[str]:
        formats = {
            "bbox/AP": "AP: {:.2f}",
            "ema/bbox/AP": "AP of EMA: {:.2f}",
            "grad_norm": "grad_norm: {:.3g}",
            "time": "time: {:.3f} s",
            "data_time": "data: {:.3f} s",
            "lr": "lr: {:.3g}",
            "gpu_mem_mb": "gpu_mem: {:.0f} MB",
            "host_mem_mb": "host_mem: {:.0f} MB",
        }
        latest = storage.latest()
        return [text.format(latest[key][0]) for key, text in formats.items() if key in latest]


def shown_losses(storage: EventStorage) -> list[str]:
    """Names of losses that are not another loss's name with a suffix; the total comes first."""
    names = [name for name in storage.histories() if "loss" in name]
    shown = [n for n in names if not any(n.startswith(f"{other}_") for other in names)]
    return sorted(shown, key=lambda name: name != "total_loss")


def build_writers(output_dir: str, max_iter: int, resume: bool) -> list[EventWriter]:
    """Console, metrics.json (one json object per line) and TensorBoard events.

    A new run does not go on in the metrics.json of an earlier one that left no checkpoint:
    that file is renamed.
    """
    metrics = Path(output_dir) / METRICS_FILE
    if metrics.exists() and not resume:
        stamp = datetime.datetime.fromtimestamp(metrics.stat().st_mtime)
        earlier = metrics.with_suffix(f".{stamp:%Y%m%d-%H%M%S-%f}.json")
        os.replace(metrics, earlier)
        logger.info("The metrics of an earlier run are kept as %s", earlier)
    return [
        ConsolePrinter(max_iter),
        JSONWriter(str(metrics)),
        TensorboardXWriter(output_dir),
    ]


def reporting_hooks(
    output_dir: str,
    max_iter: int,
    log_period: int,
    resume: bool,
    device: torch.device,
) -> list[HookBase]:
    """What watches and reports, on the main process only; last in the list of hooks."""
    if not comm.is_main_process():
        return []
    writers = build_writers(output_dir, max_iter, resume)
    return [
        MemoryStats(log_period, device),
        PeriodicWriter(writers, period=log_period),
        CurvesPlotter(output_dir),
    ]
