"""Experiment trackers as writers of detectron2's events: Weights & Biases and MLflow.

Both are extras, imported only where `train.wandb` or `train.mlflow` is enabled. A resumed run goes
on in the tracker's run of before: `output_dir` holds its id. A tracker that fails later costs its
own records only, never the training.
"""

import importlib
import importlib.util
import inspect
import logging
import os
import re
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from detectron2.utils.events import EventStorage, EventWriter, get_event_storage
from omegaconf import DictConfig, OmegaConf

from aligndetr.config import config_to_yaml
from aligndetr.utils.extras import check_installed
from aligndetr.utils.files import atomic_path

logger = logging.getLogger(__name__)

TRACKERS = ("wandb", "mlflow")
WINDOW = 20
"""Losses are the median of as many iterations, as in metrics.json and TensorBoard."""


def check_trackers(train: DictConfig) -> None:
    """Raise where a tracker is enabled that is not installed, or that has wrong `params`.

    Args:
        train: the config's `train`.

    Raises:
        MissingExtraError, ValueError: the one, the other.
    """
    for name in TRACKERS:
        if not OmegaConf.select(train, f"{name}.enabled"):
            continue
        otherwise = f", or set train.{name}.enabled=False"
        check_installed(name, name, f"train.{name}.enabled=True", otherwise)
        known = _known_params(name)
        unknown = sorted(set(train[name].get("params") or {}) - known)
        if unknown:
            raise ValueError(
                f"`train.{name}.params` has {unknown}, expected some of {sorted(known)}"
            )
        if name == "mlflow":
            _check_store((train.mlflow.get("params") or {}).get("tracking_uri"))


def _check_store(tracking_uri: str | None) -> None:
    """MLflow's own choice of a store is a data base, which mlflow-skinny cannot open."""
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:"
    if uri.startswith("sqlite:") and importlib.util.find_spec("sqlalchemy") is None:
        raise ValueError(
            f"`train.mlflow.params.tracking_uri` (={tracking_uri!r}) means a data base on this "
            "machine, which takes the whole MLflow: pip install mlflow, or give a server, "
            "train.mlflow.params.tracking_uri=http://my-server:5000"
        )


def _known_params(name: str) -> set[str]:
    if name == "mlflow":
        return set(inspect.signature(start_mlflow).parameters) - {"config", "id_file"}
    wandb = importlib.import_module("wandb")
    return set(inspect.signature(wandb.init).parameters) - {"config"}


def start_trackers(cfg: DictConfig, resume: bool) -> list[EventWriter]:
    """Writers for the trackers that `cfg.train` enables."""
    start = {"wandb": start_wandb, "mlflow": start_mlflow}
    writers = []
    for name in TRACKERS:
        settings = cfg.train.get(name)
        if settings is None or not settings.enabled:
            continue
        id_file = Path(cfg.train.output_dir) / f"{name}_run_id.txt"
        if not resume:
            id_file.unlink(missing_ok=True)
        params: Any = OmegaConf.to_container(settings.get("params") or OmegaConf.create())
        writers.append(start[name](config=config_to_yaml(cfg), id_file=id_file, **params))
    return writers


def new_scalars(storage: EventStorage, after: int) -> dict[int, dict[str, float]]:
    """By iteration, in order: scalars written after iteration `after`, smoothed where hinted."""
    found: dict[int, dict[str, float]] = defaultdict(dict)
    for name, (value, iteration) in storage.latest_with_smoothing_hint(WINDOW).items():
        if iteration > after:
            found[iteration][name] = value
    return dict(sorted(found.items()))


class TrackerWriter(EventWriter):
    """Hands new scalars to a tracker; after a failure it says so and goes on."""

    def __init__(self) -> None:
        self._last_write = -1

    def write(self) -> None:
        for iteration, scalars in new_scalars(get_event_storage(), self._last_write).items():
            self._last_write = iteration
            self._try(self.log, iteration, scalars)

    def close(self) -> None:
        error = sys.exc_info()[0]  # in flight, for `after_train` is called in a `finally`
        self._try(self.finish, failed=error is not None and not issubclass(error, SystemExit))

    def log(self, iteration: int, scalars: dict[str, float]) -> None:
        raise NotImplementedError

    def finish(self, failed: bool) -> None:
        raise NotImplementedError

    def _try(self, function: Any, *args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except Exception as error:  # whatever a server or a network may do
            logger.warning("%s: %s; the training goes on", type(self).__name__, error)


class WandbWriter(TrackerWriter):
    """Writes to a run of Weights & Biases, as `wandb.init` returns it."""

    def __init__(self, run: Any):
        super().__init__()
        self._run = run

    def log(self, iteration: int, scalars: dict[str, float]) -> None:
        self._run.log(scalars, step=iteration)

    def finish(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


def start_wandb(*, config: str, id_file: Path, **params: Any) -> WandbWriter:
    """A new run, or the one whose id `id_file` holds.

    Args:
        config: the run's, as YAML.
        params: of `wandb.init`.
    """
    import yaml

    wandb = importlib.import_module("wandb")

    if params.get("dir"):
        Path(params["dir"]).mkdir(parents=True, exist_ok=True)  # else wandb writes elsewhere
    if id_file.exists():
        params = {"resume": "allow", "id": id_file.read_text(encoding="utf-8"), **params}
    run = wandb.init(config=yaml.safe_load(config), **params)
    _remember(id_file, run.id)
    return WandbWriter(run)


class MlflowWriter(TrackerWriter):
    """Writes to a run of MLflow.

    Args:
        client: an MlflowClient.
        run_id: of the run it writes to.
    """

    def __init__(self, client: Any, run_id: str):
        super().__init__()
        self._client = client
        self._run_id = run_id

    def log(self, iteration: int, scalars: dict[str, float]) -> None:
        metric = importlib.import_module("mlflow.entities").Metric
        now = int(time.time() * 1000)
        # MLflow refuses other characters, which a class may have in its name.
        names = {name: re.sub(r"[^\w\-. /]", "_", name) for name in scalars}
        metrics = [metric(names[name], value, now, iteration) for name, value in scalars.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def finish(self, failed: bool) -> None:
        self._client.set_terminated(self._run_id, "FAILED" if failed else "FINISHED")


def start_mlflow(
    *,
    config: str,
    id_file: Path,
    tracking_uri: str = "",
    experiment_name: str = "aligndetr",
    run_name: str = "",
) -> MlflowWriter:
    """A new run, or the one whose id `id_file` holds.

    Args:
        config: the run's, as YAML; an artifact of the run.
        tracking_uri: a server or a folder; "" is MLflow's choice, $MLFLOW_TRACKING_URI.
        experiment_name: made if it is new.
        run_name: "" lets MLflow invent one.
    """
    client = importlib.import_module("mlflow").MlflowClient(tracking_uri or None)
    if id_file.exists():
        run_id = id_file.read_text(encoding="utf-8")
        client.update_run(run_id, status="RUNNING")
        return MlflowWriter(client, run_id)
    experiment_id = _experiment_id(client, experiment_name)
    run_id = client.create_run(experiment_id, run_name=run_name or None).info.run_id
    client.log_text(run_id, config, "config.yaml")
    _remember(id_file, run_id)
    return MlflowWriter(client, run_id)


def _experiment_id(client: Any, name: str) -> str:
    """Of the experiment of this name, which is made if it is new."""
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return client.create_experiment(name)
        except Exception:  # another run that has just started may have made it
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    return experiment.experiment_id


def _remember(id_file: Path, run_id: str) -> None:
    with atomic_path(id_file) as temporary:
        temporary.write_text(run_id, encoding="utf-8")
