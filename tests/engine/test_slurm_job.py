"""A training as a job of submitit: ranks, requeueing, failure; on this machine."""

import os
import subprocess
import sys
import time

import pytest

from aligndetr.engine.signals import EXIT_STOPPED
from aligndetr.engine.slurm_job import TrainingJob, submit

submitit = pytest.importorskip("submitit")

# One process of a "training": leaves a file that says where it stands; before --resume it waits to
# be stopped and then exits as ours do.
TRAINING = f"""
import os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
signal.signal(signal.SIGUSR1, lambda *_: (folder / "stop").touch())
name = os.environ["RANK"] + " of " + os.environ["WORLD_SIZE"] + "".join(sys.argv[2:])
(folder / "new").write_text(str(os.getpid()) + " " + str(os.getppid()))
os.replace(folder / "new", folder / name)
while "--resume" not in sys.argv:
    if (folder / "stop").exists():
        sys.exit({EXIT_STOPPED})
    time.sleep(0.05)
""".replace('"new"', '("new" + os.environ["RANK"])')


def names(folder):
    return {path.name for path in folder.iterdir()}


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def submit_here(command, logs, cluster):
    return submit(
        command, logs, cluster=cluster, nodes=1, processes_per_node=2, gpus_per_node=0,
        cpus_per_process=1, hours=1, requeues=2, slurm={},
    )  # fmt: skip


@pytest.mark.slow
def test_a_job_whose_time_is_up_saves_and_is_put_back_and_resumes(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    job = submit_here([sys.executable, "-c", TRAINING, str(folder)], tmp_path / "logs", "local")
    wait_for(lambda: {"0 of 2", "1 of 2"} <= names(folder))
    for name in ("0 of 2", "1 of 2"):  # SLURM warns the training and submitit above it
        for process in (folder / name).read_text().split():
            os.kill(int(process), submitit.JobEnvironment._usr_sig())
    wait_for(lambda: {"0 of 2--resume", "1 of 2--resume"} <= names(folder))
    assert job.results() == [None, None]


def test_a_training_that_fails_fails_its_job(tmp_path, monkeypatch):
    monkeypatch.setattr("pdb.post_mortem", lambda *_: None)  # submitit's way to debug
    job = submit_here([sys.executable, "-c", "raise SystemExit(3)"], tmp_path, "debug")
    with pytest.raises(RuntimeError, match="exit code 3"):
        job.result()


def test_resume_is_asked_for_once():
    command = TrainingJob(["train", "--resume", "x"]).checkpoint().function.command
    assert command == ["train", "x", "--resume"]


def test_a_warning_that_comes_when_the_training_has_just_ended_still_puts_the_job_back():
    job = TrainingJob(["train"])
    job._process = subprocess.Popen([sys.executable, "-c", ""])
    os.waitpid(job._process.pid, 0)  # inside `wait`, which has not returned yet
    assert job.checkpoint().function.command == ["train", "--resume"]
    job._process.wait()  # and when it has
    assert job.checkpoint().function.command == ["train", "--resume"]


def test_the_script_of_slurm_asks_for_what_was_asked(tmp_path, monkeypatch):
    written = []

    def no_sbatch(self, command):
        written.append(self._make_submission_file_text(command, "uid"))
        raise RuntimeError("no cluster here")

    monkeypatch.setattr(submitit.SlurmExecutor, "affinity", classmethod(lambda cls: 2))
    monkeypatch.setattr(submitit.SlurmExecutor, "_submit_command", no_sbatch)
    monkeypatch.setattr(submitit.SlurmExecutor, "__init__", _init_without_srun)
    with pytest.raises(RuntimeError, match="no cluster"):
        submit(
            ["train"], tmp_path, cluster="slurm", nodes=2, processes_per_node=8, gpus_per_node=8,
            cpus_per_process=6, hours=0.5, requeues=2, slurm={"partition": "gpu"},
        )  # fmt: skip
    for line in (
        "--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8", "--cpus-per-task=6", "--time=30",
        "--requeue", "--partition=gpu", "--signal=USR2@180",
    ):  # fmt: skip
        assert f"#SBATCH {line}\n" in written[0]
    assert "--kill-on-bad-exit=1" in written[0]


def _init_without_srun(self, folder, max_num_timeout=3, **_):
    submitit.core.core.PicklingExecutor.__init__(self, folder, max_num_timeout)
    self.python = sys.executable
