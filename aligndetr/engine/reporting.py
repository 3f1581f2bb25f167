"""What watches a run and writes down what it sees, on the main process only."""

import datetime
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from detectron2.engine import HookBase
from detectron2.engine import hooks as d2_hooks
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, JSONWriter, TensorboardXWriter
from omegaconf import DictConfig

from .console import ConsolePrinter, ProgressBar, on_terminal
from .metrics_file import METRICS_FILE
from .trackers import start_trackers

try:
    import resource
except ImportError:  # Windows: host memory is not reported there
    resource = None

logger = logging.getLogger(__name__)


class PeriodicWriter(d2_hooks.PeriodicWriter):
    """detectron2's PeriodicWriter, but a full disk does not end the run; it is said loudly."""

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % self._period == 0 or (
            self.trainer.iter == self.trainer.max_iter - 1
        ):
            for writer in self._writers:
                attempt(writer, writer.write)

    def after_train(self) -> None:
        for writer in self._writers:
            attempt(writer, writer.write)
            attempt(writer, writer.close)


def attempt(writer: EventWriter, action: Callable[[], None]) -> None:
    """`action` of `writer`, without which a training goes on."""
    try:
        action()
    except OSError as error:
        name = type(writer).__name__
        logger.error("%s COULD NOT WRITE (%s); training goes on without it", name, error)


class TensorBoardWriter(TensorboardXWriter):
    """detectron2's, which goes on in a new file after a failure: the old one's thread is dead."""

    def write(self) -> None:
        try:
            super().write()
            self._writer.flush()  # else it fails later, in its thread
        except OSError:
            self.__dict__.pop("_writer", None)  # made anew on its next use
            raise


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
        peaks = {}
        if resource is not None:
            unit = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts bytes, Linux KiB
            usage = resource.getrusage(resource.RUSAGE_SELF)
            peaks["host_mem_mb"] = usage.ru_maxrss / unit
        if self._device.type == "cuda":
            peaks["gpu_mem_mb"] = torch.cuda.max_memory_allocated(self._device) / 2**20
        return peaks


class Throughput(HookBase):
    """Puts `img_per_s` to the storage: images of all processes per second, over the last period.

    Args:
        period: in iterations.
        images_per_step: of all processes together.
    """

    def __init__(self, period: int, images_per_step: int):
        self._period = period
        self._images_per_step = images_per_step

    def after_step(self) -> None:
        storage = self.trainer.storage
        # IterationTimer leaves out the first iterations, which are slower.
        if (self.trainer.iter + 1) % self._period == 0 and "time" in storage.histories():
            seconds = storage.history("time").avg(self._period)
            storage.put_scalar("img_per_s", self._images_per_step / seconds, smoothing_hint=False)


class CurvesPlotter(HookBase):
    """Draws curves.png from metrics.json after each evaluation and when training ends, however.

    Register it after the hooks that evaluate and that write metrics.json.

    Args:
        output_dir: where metrics.json lies.
        eval_period: in iterations; 0 evaluates, and draws, at the end only.
        metrics: writes metrics.json, which is brought up to date before drawing.
    """

    def __init__(self, output_dir: str, eval_period: int, metrics: EventWriter):
        self._output_dir = Path(output_dir)
        self._eval_period = eval_period
        self._metrics = metrics

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if self._eval_period and done % self._eval_period == 0 and done < self.trainer.max_iter:
            attempt(self._metrics, self._metrics.write)
            self._draw()

    def after_train(self) -> None:
        if self._draw():
            logger.info("Curves of losses, AP and learning rate: %s", self._picture)

    @property
    def _picture(self) -> Path:
        return self._output_dir / "curves.png"

    def _draw(self) -> bool:
        # Imported late: matplotlib takes a second, and evaluation never needs it.
        from .curves import plot_curves

        try:
            plot_curves(self._output_dir / METRICS_FILE, self._picture)
        except Exception:  # a picture must not hide why training failed, nor fail it
            logger.warning("could not draw %s", self._picture, exc_info=True)
            return False
        return True


class ExpectedTime(HookBase):
    """Says once, as soon as the pace is known, how long the training will take."""

    def __init__(self, after: int = 50):
        self._after = after

    def after_step(self) -> None:
        trainer = self.trainer
        remaining = trainer.max_iter - trainer.iter - 1
        if trainer.iter + 1 - trainer.start_iter != self._after or not remaining:
            return
        pace = trainer.storage.history("time").median(self._after)
        hours = pace * remaining / 3600
        end = datetime.datetime.now() + datetime.timedelta(hours=hours)
        logger.info(
            "Expected: %.1f hours for the remaining %d iterations at %.3f s each, evaluations "
            "not counted; the end is near %s", hours, remaining, pace, f"{end:%Y-%m-%d %H:%M}",
        )  # fmt: skip


def keep_earlier_metrics(output_dir: str) -> None:
    """Rename the metrics.json of a run that left no checkpoint: a new run must not go on in it."""
    metrics = Path(output_dir) / METRICS_FILE
    if metrics.exists():
        stamp = datetime.datetime.fromtimestamp(metrics.stat().st_mtime)
        earlier = metrics.with_suffix(f".{stamp:%Y%m%d-%H%M%S-%f}.json")
        os.replace(metrics, earlier)
        logger.info("The metrics of an earlier run are kept as %s", earlier)


def reporting_hooks(
    cfg: DictConfig, device: torch.device, images_per_step: int, resume: bool
) -> list[HookBase]:
    """What watches and reports, on the main process only; last in the list of hooks.

    Console, metrics.json (one json object per line), TensorBoard events, and the trackers that
    `cfg.train` enables.

    Args:
        images_per_step: of all processes together.
        resume: go on in the files, and with the trackers, of the run that is resumed.
    """
    if not comm.is_main_process():
        return []
    train = cfg.train
    if not resume:
        keep_earlier_metrics(train.output_dir)
    metrics = JSONWriter(str(Path(train.output_dir) / METRICS_FILE))
    writers = [
        ConsolePrinter(train.max_iter),
        metrics,
        TensorBoardWriter(train.output_dir),
        *start_trackers(cfg, resume),
    ]
    return [
        MemoryStats(train.log_period, device),
        Throughput(train.log_period, images_per_step),
        ExpectedTime(),
        PeriodicWriter(writers, period=train.log_period),
        CurvesPlotter(train.output_dir, train.eval_period, metrics),
        *([ProgressBar()] if on_terminal() else []),
    ]
