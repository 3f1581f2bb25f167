"""Running the trainings of a sweep: one by one, or as jobs of SLURM. Finished ones are left alone.

A run that was interrupted goes on where it was, since each is an `aligndetr train --resume` of
its own folder.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aligndetr.config import CONFIG_FILE, apply_overrides, load_config, saved_value
from aligndetr.engine.metrics_file import METRICS_FILE, has_evaluation
from aligndetr.engine.signals import EXIT_NOT_SAVED, EXIT_STOPPED
from aligndetr.engine.slurm_job import submit
from aligndetr.utils.files import atomic_path
from aligndetr.utils.signals import STOP_SIGNALS

from .grid import Run

RUN_FILE = "sweep_run.json"
"""In each run's folder: what it is, and the SLURM job that trains it."""

ALIGNMENT_FILE = "model_final_report/alignment.json"
"""Where `aligndetr alignment RUN/model_final.pth` leaves its numbers."""


@dataclass(frozen=True)
class Slurm:
    """What a job of one training asks of the cluster; as the arguments of `slurm_job.submit`.

    A job has one machine, and a GPU for each process unless its `train.device` is cpu.
    """

    cluster: str | None = None
    processes: int = 1
    hours: float = 24.0
    options: dict[str, Any] = field(default_factory=dict)
    cpus_per_process: int = 8
    requeues: int = 20

    @classmethod
    def of(cls, options: str, cluster: str | None, processes: int, hours: float) -> "Slurm":
        """With the options of sbatch as a text, "partition=gpu,account=me"."""
        pairs = [option.partition("=") for option in options.split(",") if option]
        return cls(cluster, processes, hours, {name: value for name, _, value in pairs})


def prepare(runs: Sequence[Run], output: Path) -> list[Run]:
    """Make the folder of each run and return the runs that are not finished.

    Raises:
        FileExistsError: a folder holds a run of this name with other settings.
    """
    for run in runs:
        path = output / run.name / RUN_FILE
        settings = {"config_file": run.config_file, "overrides": list(run.overrides)}
        known = _read(path)
        if known and {key: known.get(key) for key in settings} != settings:
            raise FileExistsError(
                f"{path.parent} holds a run with other settings "
                f"({known.get('config_file')} {' '.join(known.get('overrides', []))}); choose "
                "another --output, or remove it"
            )
        if not known:
            _write(path, settings)
    return [run for run in runs if not is_finished(output / run.name)]


def is_finished(folder: Path) -> bool:
    """Whether a training has written its last weights and evaluated them.

    Raises:
        OSError, ValueError: it has, but its config.yaml does not say after how many iterations.
    """
    if not (folder / "model_final.pth").exists():
        return False
    return has_evaluation(folder / METRICS_FILE, _max_iter(folder / CONFIG_FILE))


def command_of(
    run: Run, folder: Path, train: Sequence[str], options: Sequence[str] = ()
) -> list[str]:
    """The command line that trains it, or goes on with it."""
    return [
        *train, "--resume", *options, "--config-file", run.config_file,
        *run.complete_overrides(folder),
    ]  # fmt: skip


def run_one_by_one(
    runs: Sequence[Run], output: Path, train: Sequence[str], options: Sequence[str] = ()
) -> dict[str, int]:
    """Train each in turn; one that fails does not keep the others from being trained.

    Args:
        runs: as `prepare` returns them.
        train: the command that trains, `aligndetr train`.
        options: of the program, before the overrides: `--num-gpus 8`.

    Returns:
        Exit codes by name of the runs that failed.

    Raises:
        SystemExit: a signal has come to us or stopped the run: the sweep ends, with the run's exit
            code if that says whether a checkpoint is saved, else with 128 + the signal's number.
    """
    failed = {}
    for number, run in enumerate(runs, start=1):
        print(f"\n[{number}/{len(runs)}] {run.name}", flush=True)  # noqa: T201 (between its logs)
        code = _wait_for(command_of(run, output / run.name, train, options))
        if code:
            failed[run.name] = code
    return failed


def run_on_slurm(
    runs: Sequence[Run], output: Path, train: Sequence[str], slurm: Slurm
) -> dict[str, int]:
    """Submit a job for each run, unless it has one that waits or runs; then wait for all.

    Interrupting it leaves the jobs where they are: the same call waits for them again. Arguments
    and result as `run_one_by_one`; a job that failed counts as exit code 1.

    Raises:
        ValueError: submitit is not installed.
    """
    jobs = {run.name: _job(run, output / run.name, train, slurm) for run in runs}
    failed = {}
    for name, job in jobs.items():
        try:
            job.results()
        except Exception as error:  # whatever the training, the cluster or its files did
            print(f"{name}: {error}", file=sys.stderr)  # noqa: T201 (beside the table)
            failed[name] = 1
    return failed


def measure_alignment(runs: Sequence[Run], output: Path, measure: Sequence[str]) -> None:
    """Have `measure`, the command `aligndetr alignment`, measure each finished run that it has not
    measured yet.

    One that fails leaves its run without these numbers; its output says why. A signal ends the
    sweep, as in `run_one_by_one`.
    """
    for run in runs:
        folder = output / run.name
        if is_finished(folder) and not (folder / ALIGNMENT_FILE).exists():
            print(f"alignment of {run.name}", flush=True)  # noqa: T201 (before its output)
            _wait_for([*measure, str(folder / "model_final.pth")])


def _job(run: Run, folder: Path, train: Sequence[str], slurm: Slurm) -> Any:
    logs = folder / "slurm"
    settings = _read(folder / RUN_FILE)
    if "job" in settings:
        import submitit  # pyright: ignore

        job = submitit.SlurmJob(logs, settings["job"])
        if not job.done(force_check=True):
            return job
    device = apply_overrides(load_config(run.config_file), run.overrides).train.device
    job = submit(
        command_of(run, folder, train), logs, cluster=slurm.cluster, nodes=1,
        processes_per_node=slurm.processes, gpus_per_node=0 if device == "cpu" else slurm.processes,
        cpus_per_process=slurm.cpus_per_process, hours=slurm.hours, requeues=slurm.requeues,
        slurm=slurm.options,
    )  # fmt: skip
    if type(job).__name__ == "SlurmJob":  # jobs of this machine end with this program
        _write(folder / RUN_FILE, settings | {"job": job.job_id})
    return job


def _wait_for(command: list[str]) -> int:
    """Run it with our output; it gets our signals, and decides when it ends: its exit code.

    Raises:
        SystemExit: a signal has come to us or stopped it, so nothing may follow.
    """
    process = None
    received, early = [], []

    def forward(number, _frame):
        received.append(number)
        if process is None:
            early.append(number)
        elif number != signal.SIGINT:  # a terminal sends Ctrl-C to both of us
            process.send_signal(number)

    # Before it starts: a signal that ended us in between would leave it running alone.
    earlier = {number: signal.signal(number, forward) for number in STOP_SIGNALS}
    try:
        process = subprocess.Popen(command)
        for number in early:
            process.send_signal(number)
        code = process.wait()
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
    if code in (EXIT_STOPPED, EXIT_NOT_SAVED):
        sys.exit(code)
    for number in STOP_SIGNALS:  # a process may end by it, or say so as a shell does
        if number in received or code in (-number, 128 + number):
            sys.exit(128 + number)
    return code


def _max_iter(path: Path) -> int:
    """`train.max_iter` of a saved config."""
    value = saved_value(path, "train.max_iter")
    if type(value) is not int:
        raise ValueError(
            f"{path}: `train.max_iter` is {value!r}, so whether the run is finished is unknown; "
            "write its number of iterations there, or remove the folder to train it again"
        )
    return value


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _write(path: Path, settings: dict[str, Any]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
