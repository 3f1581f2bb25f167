"""Weights & Biases and MLflow get what metrics.json gets."""

import importlib.util
import sys
from types import SimpleNamespace

import pytest
from detectron2.utils.events import EventStorage

from aligndetr.engine import setup, trackers
from aligndetr.engine.trackers import (
    MlflowWriter,
    WandbWriter,
    new_scalars,
    start_mlflow,
    start_trackers,
)
from tests.engine.stand_in import arguments, stand_in_config


class FakeRun:
    def __init__(self):
        self.logged, self.finished = [], None

    def log(self, scalars, step):
        self.logged.append((step, scalars))

    def finish(self, exit_code):
        self.finished = exit_code


def write_twice(writer):
    """AP at iteration 1, losses at 3, then at 5 another loss."""
    with EventStorage(1) as storage:
        storage.put_scalar("bbox/AP-side walk (left)", 40.0, smoothing_hint=False)
        storage.iter = 3
        storage.put_scalar("total_loss", 2.0)
        writer.write()
        storage.iter = 5
        storage.put_scalar("total_loss", 4.0)
        writer.write()


def test_scalars_are_written_once_and_in_the_order_of_iterations():
    run = FakeRun()
    write_twice(WandbWriter(run))
    # The loss is the median of its window.
    assert run.logged == [
        (1, {"bbox/AP-side walk (left)": 40.0}),
        (3, {"total_loss": 2.0}),
        (5, {"total_loss": 3.0}),
    ]
    with EventStorage(9) as storage:
        storage.put_scalar("lr", 0.5)
        assert new_scalars(storage, after=9) == {}


def test_a_tracker_knows_whether_the_run_failed():
    run = FakeRun()
    WandbWriter(run).close()
    assert run.finished == 0
    try:
        raise RuntimeError
    except RuntimeError:
        WandbWriter(run).close()
    assert run.finished == 1


def test_a_tracker_that_fails_does_not_fail_the_run(caplog):
    class Unreachable(FakeRun):
        def log(self, scalars, step):
            raise ConnectionError("no route to host")

    write_twice(WandbWriter(Unreachable()))
    assert "no route to host; the training goes on" in caplog.text


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_unknown_params_are_refused_before_the_run(name, tmp_path):
    pytest.importorskip(name)
    cfg = stand_in_config(tmp_path / "run")
    cfg.train[name] = {"enabled": True, "params": {"projcet": "x"}}
    with pytest.raises(ValueError, match=rf"`train\.{name}\.params` has \['projcet'\]"):
        setup(cfg, arguments())


@pytest.mark.parametrize("uri", ["", None, "sqlite:///mlflow.db"])
def test_a_data_base_without_the_whole_mlflow_is_refused(uri, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # of sqlalchemy
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ValueError, match="pip install mlflow, or give a server"):
        trackers._check_store(uri)


def test_a_server_needs_no_more_than_mlflow_skinny(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    trackers._check_store("http://localhost:5000")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    trackers._check_store("")


def test_mlflow_gets_metrics_and_goes_on_after_a_resume(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # newer ones prefer a data base
    uri = (tmp_path / "mlruns").as_uri()
    cfg = stand_in_config(tmp_path)
    cfg.train.mlflow = {"enabled": True, "params": {"tracking_uri": uri, "run_name": "first"}}
    (writer,) = start_trackers(cfg, resume=False)
    write_twice(writer)
    writer.close()
    (resumed,) = start_trackers(cfg, resume=True)
    client = mlflow.MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("aligndetr").experiment_id])
    assert run.info.run_name == "first"
    assert run.info.status == "RUNNING"
    resumed.close()
    history = client.get_metric_history(run.info.run_id, "total_loss")
    assert [(metric.step, metric.value) for metric in history] == [(3, 2.0), (5, 3.0)]
    assert "bbox/AP-side walk _left_" in run.data.metrics
    assert client.get_run(run.info.run_id).info.status == "FINISHED"


class TwoRuns:
    """A server whose experiment another run makes between our question and our request."""

    def __init__(self, uri, answers):
        self.answers = answers  # to `get_experiment_by_name`

    def get_experiment_by_name(self, name):
        return self.answers.pop(0)

    def create_experiment(self, name):
        raise RuntimeError(f"Experiment(name={name}) already exists")

    def create_run(self, experiment_id, run_name):
        return SimpleNamespace(info=SimpleNamespace(run_id=f"run of {experiment_id}"))

    def log_text(self, run_id, text, file):
        pass


def test_two_runs_may_make_the_same_experiment_of_mlflow(tmp_path, monkeypatch):
    def start(answers):
        stub = SimpleNamespace(MlflowClient=lambda uri: TwoRuns(uri, answers))
        monkeypatch.setitem(sys.modules, "mlflow", stub)
        start_mlflow(config="", id_file=tmp_path / "id")

    with pytest.raises(RuntimeError, match="already exists"):  # what it is raised for stays
        start([None, None])
    start([None, SimpleNamespace(experiment_id="7")])
    assert (tmp_path / "id").read_text() == "run of 7"


def test_mlflow_writes_one_batch_per_iteration():
    pytest.importorskip("mlflow")
    batches = []

    class Client:
        def log_batch(self, run_id, metrics):
            batches.append((run_id, [(m.key, m.value, m.step) for m in metrics]))

    write_twice(MlflowWriter(Client(), "a_run"))
    assert batches == [
        ("a_run", [("bbox/AP-side walk _left_", 40.0, 1)]),
        ("a_run", [("total_loss", 2.0, 3)]),
        ("a_run", [("total_loss", 3.0, 5)]),
    ]


def test_wandb_keeps_its_run_over_a_resume(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_CONSOLE", "off")
    cfg = stand_in_config(tmp_path)
    folder = tmp_path / "wandb_output"
    cfg.train.wandb = {"enabled": True, "params": {"dir": str(folder), "project": "aligndetr"}}
    (writer,) = start_trackers(cfg, resume=False)
    write_twice(writer)
    writer.close()
    run_id = (tmp_path / "wandb_run_id.txt").read_text()
    start_trackers(cfg, resume=True)[0].close()
    assert (tmp_path / "wandb_run_id.txt").read_text() == run_id
    assert len(list(folder.glob(f"wandb/offline-run-*-{run_id}"))) == 2
