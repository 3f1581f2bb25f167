"""What a run shows while it goes on: a line per period, and a bar where there is a terminal."""

import logging
import sys

from detectron2.engine import HookBase
from detectron2.utils.events import CommonMetricPrinter, EventStorage, get_event_storage
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from aligndetr.utils.log_handlers import stream_handlers

FORMATS = {
    "bbox/AP": "AP: {:.2f}",
    "ema/bbox/AP": "AP of EMA: {:.2f}",
    "grad_norm": "grad_norm: {:.3g}",
    "time": "time: {:.3f} s",
    "data_time": "data: {:.3f} s",
    "img_per_s": "img/s: {:.3g}",
    "lr": "lr: {:.3g}",
    "gpu_mem_mb": "gpu_mem: {:.0f} MB",
    "host_mem_mb": "host_mem: {:.0f} MB",
}


class ConsolePrinter(CommonMetricPrinter):
    """One line per period: ETA, losses of the last layer, AP, times, learning rate, memory.

    Of losses that differ by a suffix (`loss_class`, `loss_class_0`, `loss_class_dn`) only the
    shortest name is shown, else forty would fill the screen; the files hold all of them.
    """

    def write(self) -> None:
        storage = get_event_storage()
        if storage.iter == self._max_iter:  # after the end there is no progress to report
            return
        latest = storage.latest()
        parts = [
            f"eta: {self._get_eta(storage) or 'unknown'}",
            f"iter: {storage.iter + 1}/{self._max_iter}",
            *(f"{name}: {self._median(storage, name):.4g}" for name in shown_losses(storage)),
            *(text.format(latest[key][0]) for key, text in FORMATS.items() if key in latest),
        ]
        self.logger.info("  ".join(parts))

    def _median(self, storage: EventStorage, name: str) -> float:
        return storage.history(name).median(storage.count_samples(name, self._window_size))


def shown_losses(storage: EventStorage) -> list[str]:
    """Names of losses that are not another loss's name with a suffix; the total comes first."""
    names = [name for name in storage.histories() if "loss" in name]
    shown = [n for n in names if not any(n.startswith(f"{other}_") for other in names)]
    return sorted(shown, key=lambda name: name != "total_loss")


def on_terminal() -> bool:
    """Whether standard output is a terminal that can redraw a line; a file or a pipe is not."""
    # Rich alone would take FORCE_COLOR, which is set where logs are kept, for a terminal.
    return sys.stdout.isatty() and not Console(file=sys.stdout).is_dumb_terminal


class ProgressBar(HookBase):
    """A bar below the log lines, with the total loss, redrawn twice a second.

    Log lines go on above it: while it is there, handlers that write to standard output write
    through it.
    """

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[loss]}"),
            console=Console(file=sys.stdout, soft_wrap=True),
            refresh_per_second=2,
        )
        self._redirected: list[logging.StreamHandler] = []

    def before_train(self) -> None:
        trainer = self.trainer
        terminal = sys.stdout
        self._task = self._progress.add_task(
            "training", total=trainer.max_iter, completed=trainer.start_iter, loss=""
        )
        self._progress.start()  # replaces sys.stdout
        for handler in stream_handlers():
            if handler.stream is terminal:
                handler.setStream(sys.stdout)
                self._redirected.append(handler)
        self._terminal = terminal

    def after_step(self) -> None:
        latest = self.trainer.storage.latest()
        loss = f"loss {latest['total_loss'][0]:.4g}" if "total_loss" in latest else ""
        self._progress.update(self._task, completed=self.trainer.iter + 1, loss=loss)

    def after_train(self) -> None:
        for handler in self._redirected:
            handler.setStream(self._terminal)
        self._progress.stop()
