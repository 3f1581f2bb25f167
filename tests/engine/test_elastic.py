"""torchrun on two machines, as far as one can play both: a run that it starts anew goes on."""

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from aligndetr.checkpoint import read_checkpoint
from aligndetr.engine.launch import free_port
from aligndetr.engine.torchrun_command import is_started_anew, note_command
from tests.engine.stand_in import arguments
from tests.engine.test_two_machines import PLACES

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("torchrun_script.py")


@contextmanager
def torchruns(folder, *options, **variables):
    """A function that starts a torchrun; all that it has started meet, and end with the block."""
    environ = {name: value for name, value in os.environ.items() if name not in PLACES}
    command = [
        sys.executable, "-m", "torch.distributed.run", *options, "--nproc-per-node=1",
        "--rdzv-backend=c10d", "--rdzv-id=my_run", f"--rdzv-endpoint=127.0.0.1:{free_port()}",
        "--rdzv-conf=last_call_timeout=1", str(SCRIPT), str(folder),
    ]  # fmt: skip
    started = []

    def start():
        added = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **variables}
        started.append(subprocess.Popen(command, env=environ | added))
        return started[-1]

    try:
        yield start
    finally:
        for machine in started:
            machine.terminate()
            machine.wait(60)


@pytest.fixture(scope="module")
def after_a_failure(tmp_path_factory):
    folder = tmp_path_factory.mktemp("failure")
    with torchruns(folder, "--nnodes=2", "--max-restarts=1") as start:
        codes = [machine.wait(200) for machine in (start(), start())]
    return folder, codes


@pytest.fixture(scope="module")
def after_a_machine_joined(tmp_path_factory):
    folder = tmp_path_factory.mktemp("joined")
    # A restart for a member is none that is counted. With the store that it shares with the
    # processes, torchrun keeps a machine that joins waiting for rank 0's address (torch 2.14).
    no_shared_store = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    with torchruns(folder, "--nnodes=1:2", "--max-restarts=0", **no_shared_store) as start:
        first = start()
        deadline = time.monotonic() + 100
        while not (folder / "interrupted").exists():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        codes = [machine.wait(200) for machine in (start(), first)]
    return folder, codes


@pytest.mark.parametrize(
    "run", ["after_a_failure", pytest.param("after_a_machine_joined", marks=pytest.mark.slow)]
)
def test_every_machine_resumes(run, request):
    folder, codes = request.getfixturevalue(run)
    assert codes == [0, 0]
    assert (folder / "interrupted").exists()
    logged = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in logged if "total_loss" in line] == [1, 3, 5, 7]
    states = read_checkpoint(str(folder / "model_final.pth"))["trainer"]["optimizer"]["state"]
    assert {state["step"].item() for state in states.values()} == {8}
    log = (folder / "log.txt").read_text()
    assert "of 2 processes" in log
    assert log.count("torchrun has started this run before, so it resumes") == 1


MY_RUN = {"TORCHELASTIC_RUN_ID": "my_run"}
COMMAND = {"config_file": "a.py", "opts": ["train.seed=3"]}


@pytest.mark.parametrize(
    ("environ", "command", "same"),
    [
        (MY_RUN, COMMAND, True),
        (MY_RUN, COMMAND | {"machine_rank": 1, "dist_url": "env://"}, True),
        (MY_RUN, COMMAND | {"opts": ["train.seed=4"]}, False),
        (MY_RUN, COMMAND | {"config_file": "b.py"}, False),
        ({"TORCHELASTIC_RUN_ID": "another"}, COMMAND, False),
        ({"TORCHELASTIC_RUN_ID": "none"}, COMMAND, False),
        ({}, COMMAND, False),
    ],
)
def test_a_run_is_the_same_by_id_and_command(tmp_path, environ, command, same):
    note_command(str(tmp_path), arguments(**COMMAND), MY_RUN)
    assert is_started_anew(str(tmp_path), arguments(**command), environ) is same


@pytest.mark.parametrize("environ", [{}, {"TORCHELASTIC_RUN_ID": "none"}])
def test_without_an_id_runs_cannot_be_told_apart(tmp_path, environ):
    note_command(str(tmp_path), arguments(), environ)
    assert not is_started_anew(str(tmp_path), arguments(), environ)


def test_the_folder_of_a_later_run_is_no_longer_that_of_the_earlier_one(tmp_path):
    note_command(str(tmp_path), arguments(), MY_RUN)
    note_command(str(tmp_path), arguments(), {})
    assert not is_started_anew(str(tmp_path), arguments(), MY_RUN)
