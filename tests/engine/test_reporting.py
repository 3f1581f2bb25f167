"""What is written down of a run."""

import json
import logging

import pytest
from detectron2.engine import hooks as d2_hooks
from detectron2.engine.train_loop import TrainerBase
from detectron2.utils.events import JSONWriter

from aligndetr.engine.reporting import CurvesPlotter, ExpectedTime, Throughput


class Steps(TrainerBase):
    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def run_step(self):
        self.storage.put_scalars(time=self.seconds, total_loss=1.0 + self.iter)


def test_a_picture_that_fails_does_not_fail_the_run(tmp_path, caplog):
    trainer = Steps(1.0)
    trainer.register_hooks([CurvesPlotter(str(tmp_path / "no_metrics_here"), 1, NoWriter())])
    trainer.train(0, 2)
    assert "could not draw" in caplog.text


class NoWriter:
    def write(self):
        pass


def test_curves_are_drawn_after_each_evaluation_and_at_the_end(tmp_path, monkeypatch):
    drawn = []

    def note(metrics_json, _):
        lines = [json.loads(line) for line in metrics_json.read_text().splitlines()]
        drawn.append(max(line["iteration"] for line in lines))

    monkeypatch.setattr("aligndetr.engine.curves.plot_curves", note)
    metrics = JSONWriter(str(tmp_path / "metrics.json"))
    trainer = Steps(1.0)
    trainer.register_hooks(
        [
            d2_hooks.PeriodicWriter([metrics], period=100),  # not yet when it is evaluated
            CurvesPlotter(str(tmp_path), 3, metrics),
        ]
    )
    trainer.train(0, 9)
    assert drawn == [2, 5, 8]


def test_images_per_second_count_all_of_a_step():
    trainer = Steps(0.5)
    trainer.register_hooks([Throughput(period=2, images_per_step=16)])
    trainer.train(0, 3)
    value, iteration = trainer.storage.latest()["img_per_s"]
    assert (value, iteration) == (pytest.approx(32.0), 1)


def test_expected_time_is_said_once_when_known(caplog):
    trainer = Steps(3.6)
    trainer.register_hooks([ExpectedTime(after=4)])
    with caplog.at_level(logging.INFO, "aligndetr"):
        trainer.train(100, 1104)
    said = [message for message in caplog.messages if "Expected" in message]
    assert len(said) == 1
    assert "1.0 hours for the remaining 1000 iterations at 3.600 s each" in said[0]
