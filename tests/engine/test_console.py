"""What is shown while a run goes on."""

import io
import logging
import os
import pty
import sys

from detectron2.engine.train_loop import TrainerBase
from detectron2.utils.events import EventStorage
from detectron2.utils.logger import setup_logger

from aligndetr.engine.console import ConsolePrinter, ProgressBar, on_terminal, shown_losses

LOSSES = ["loss_class", "loss_class_0", "loss_class_enc", "loss_bbox", "loss_bbox_dn", "total_loss"]


def test_line_shows_last_layer_ap_pace_memory_and_eta(caplog):
    with EventStorage(start_iter=9) as storage, caplog.at_level(logging.INFO):
        storage.put_scalars(**dict.fromkeys(LOSSES, 1.5), time=2.0, data_time=0.25)
        storage.put_scalars(
            **{"bbox/AP": 12.345, "lr": 1e-4, "host_mem_mb": 812.0, "grad_norm": 0.5},
            img_per_s=8.0,
            smoothing_hint=False,
        )
        ConsolePrinter(max_iter=100).write()
    assert caplog.messages == [
        "eta: 0:03:00  iter: 10/100  total_loss: 1.5  loss_class: 1.5  loss_bbox: 1.5  AP: 12.35  "
        "grad_norm: 0.5  time: 2.000 s  data: 0.250 s  img/s: 8  lr: 0.0001  host_mem: 812 MB"
    ]


def test_losses_of_other_layers_are_not_shown():
    with EventStorage() as storage:
        storage.put_scalars(**dict.fromkeys(LOSSES, 1.0))
        assert shown_losses(storage) == ["total_loss", "loss_class", "loss_bbox"]


class Steps(TrainerBase):
    """Writes a log line and a loss in each step."""

    def run_step(self):
        self.storage.put_scalar("total_loss", 7.0)
        logging.getLogger("bar_test").info("line %d", self.iter)


def shown_on(stream, monkeypatch):
    """Log through a handler of ours, as detectron2 makes it, while the bar is there."""
    monkeypatch.setattr(sys, "stdout", stream)
    logger = setup_logger(name="bar_test")
    monkeypatch.setattr(logger, "handlers", [logging.StreamHandler(stream)])
    trainer = Steps()
    if on_terminal():
        trainer.register_hooks([ProgressBar()])
    trainer.train(0, 3)
    assert sys.stdout is stream
    assert logger.handlers[0].stream is stream


def test_a_terminal_gets_a_bar_below_whole_lines(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    screen, terminal = pty.openpty()
    with os.fdopen(terminal, "w") as stream:
        shown_on(stream, monkeypatch)
        stream.write("the end")
        stream.flush()
        shown = ""
        while not shown.endswith("the end"):  # it arrives in pieces
            shown += os.read(screen, 100_000).decode(errors="replace")
    assert "3/3" in shown
    assert "loss 7" in shown
    for step in range(3):
        assert f"line {step}\r\n" in shown


def test_a_file_gets_plain_lines(monkeypatch):
    stream = io.StringIO()
    shown_on(stream, monkeypatch)
    assert stream.getvalue() == "line 0\nline 1\nline 2\n"
