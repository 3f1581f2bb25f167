"""An evaluation amid a training: made up for if interrupted, the best kept, a stop after it."""

import json
import math
import os
import shutil
import signal

import pytest

from aligndetr.checkpoint import read_checkpoint
from aligndetr.engine.signals import TrainingStopped
from tests.engine.stand_in import MeanBrightness, stand_in_config
from tests.engine.test_train_loop import metrics, train

EVERY_4 = {"period": 4, "max_to_keep": None, "best_metric": "bbox/AP"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that is evaluated, and then saved, after iteration 3 and at its end."""
    folder = tmp_path_factory.mktemp("whole")
    train(folder, checkpointer=EVERY_4)
    return folder


def killed_after_iteration_3(whole, folder, evaluated):
    """What a kill leaves once the checkpoint is written: before the evaluation, or after it."""
    shutil.copy(whole / "model_0000003.pth", folder)
    (folder / "last_checkpoint").write_text("model_0000003.pth")
    lines = [line for line in metrics(whole) if line["iteration"] < 4]
    if not evaluated:
        lines = [{k: v for k, v in line.items() if "/" not in k} for line in lines]
    (folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))


def evaluations(folder):
    return [(m["iteration"], m["bbox/AP"]) for m in metrics(folder) if "bbox/AP" in m]


@pytest.mark.parametrize("evaluated", [False, True])
def test_an_evaluation_that_was_interrupted_is_made_up_for(whole, tmp_path, evaluated):
    killed_after_iteration_3(whole, tmp_path, evaluated)
    train(tmp_path, resume=True, checkpointer=EVERY_4)
    assert [iteration for iteration, _ in evaluations(tmp_path)] == [3, 8]
    assert evaluations(tmp_path)[0] == evaluations(whole)[0]
    made_up = "Evaluating iteration 3, which" in (tmp_path / "log.txt").read_text()
    assert made_up is not evaluated
    trained = [m["iteration"] for m in metrics(tmp_path) if "total_loss" in m]
    assert trained == [1, 3, 5, 7]


def test_a_run_killed_after_its_last_step_is_evaluated_once(whole, tmp_path, monkeypatch):
    shutil.copy(whole / "model_0000007.pth", tmp_path)
    (tmp_path / "last_checkpoint").write_text("model_0000007.pth")
    evaluate, results = MeanBrightness.evaluate, []

    def noted(evaluator):
        results.append(evaluate(evaluator))
        return results[-1]

    monkeypatch.setattr(MeanBrightness, "evaluate", noted)
    train(tmp_path, resume=True, checkpointer=EVERY_4)
    assert [result["bbox"]["AP"] for result in results] == [evaluations(whole)[-1][1]]


@pytest.mark.parametrize(
    ("values", "best"),
    [([0.1, 0.3, 0.2], 1), ([0.3, 0.3], 0), ([math.nan, 0.3, math.nan, 0.3, 0.2], 1)],
    ids=["highest", "first of two alike", "no NaN"],
)
def test_the_best_checkpoint_is_the_first_of_the_highest_metric(
    tmp_path, monkeypatch, values, best
):
    left = iter(values)
    monkeypatch.setattr(MeanBrightness, "evaluate", lambda _: {"bbox": {"AP": next(left)}})
    train(tmp_path, max_iter=len(values), eval_period=1)
    kept = read_checkpoint(str(tmp_path / "model_best.pth"))
    assert kept["best_metric"] == {"name": "bbox/AP", "value": values[best], "iteration": best}
    assert kept["iteration"] == best


def test_a_damaged_best_checkpoint_is_replaced(whole, tmp_path):
    killed_after_iteration_3(whole, tmp_path, evaluated=True)
    (tmp_path / "model_best.pth").write_bytes(b"half a checkpoi")
    train(tmp_path, resume=True, checkpointer=EVERY_4)
    assert "the next evaluation replaces it" in (tmp_path / "log.txt").read_text()
    best = read_checkpoint(str(tmp_path / "model_best.pth"))["best_metric"]
    assert (best["iteration"], best["value"]) == (7, evaluations(tmp_path)[1][1])


class Stopping(MeanBrightness):
    """While it evaluates, somebody asks the run to stop."""

    def evaluate(self):
        os.kill(os.getpid(), signal.SIGUSR1)
        return super().evaluate()


def test_a_signal_during_an_evaluation_stops_the_run_after_it(tmp_path, monkeypatch):
    def with_stopping(*args, **changes):
        cfg = stand_in_config(*args, **changes)
        cfg.dataloader.evaluator._target_ = Stopping
        return cfg

    monkeypatch.setattr("tests.engine.test_train_loop.stand_in_config", with_stopping)
    with pytest.raises(TrainingStopped):
        train(tmp_path)
    assert [iteration for iteration, _ in evaluations(tmp_path)] == [3]
    assert read_checkpoint(str(tmp_path / "model_0000003.pth"))["iteration"] == 3
    assert [m["iteration"] for m in metrics(tmp_path) if "total_loss" in m] == [1, 3]
