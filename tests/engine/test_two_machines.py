"""Two machines, as far as one can play both: they equal one process, and fail together."""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from aligndetr.checkpoint import read_checkpoint
from aligndetr.engine import RankFailedError, do_train, launch, setup
from aligndetr.engine.launch import free_port
from tests.engine import machine_script
from tests.engine.stand_in import arguments, stand_in_config

PLACES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    cfg = stand_in_config(folder, eval_period=0)
    setup(cfg, arguments())
    do_train(cfg)
    return folder


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """The run of two programs that `--machine-rank` tells apart: its folder, the error of each
    machine, and the time from the death of a process on one to the end of the other."""
    folder = tmp_path_factory.mktemp("launched")
    url = f"tcp://127.0.0.1:{free_port()}"
    machines = [arguments(num_machines=2, machine_rank=rank, dist_url=url) for rank in range(2)]
    # Forked: importing all of it again would take seconds.
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
        runs = [
            pool.submit(
                launch, machine_script.train_and_lose_one,
                args.num_gpus, args.num_machines, args.machine_rank, args.dist_url,
                (args, str(folder)), "cpu", timedelta(seconds=100),
            )
            for args in machines
        ]  # fmt: skip
        errors = [run.exception() for run in runs]
    return folder, errors, seconds_since_death(folder)


@pytest.fixture(scope="module")
def torchrun(tmp_path_factory):
    """The run of two torchruns: its folder, their exit codes, and the time as above."""
    folder = tmp_path_factory.mktemp("torchrun")
    root = Path(__file__).parents[2]
    environ = {name: value for name, value in os.environ.items() if name not in PLACES}
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1",
        "--rdzv-backend=c10d", "--rdzv-id=my_run", f"--rdzv-endpoint=127.0.0.1:{free_port()}",
        machine_script.__file__, str(folder),
    ]  # fmt: skip
    machines = [
        subprocess.Popen(command, env=environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)})
        for _ in range(2)
    ]
    try:
        codes = [machine.wait(200) for machine in machines]
    finally:
        for machine in machines:
            machine.terminate()
    return folder, codes, seconds_since_death(folder)


def seconds_since_death(folder):
    return time.time() - float((folder / "killed").read_text())


@pytest.fixture(params=["launched", "torchrun"])
def run(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("rank", [0, 1])
def test_each_machine_has_its_rank_and_meets_the_other(run, rank):
    assert json.loads((run[0] / f"rank{rank}.json").read_text()) == {
        "machine": rank,
        "local": [0, 1],
        "all": ["rank 0", "rank 1"],
    }


def test_two_machines_equal_one_process_with_the_same_total_batch(run, one_process):
    expected, found = (
        read_checkpoint(str(folder / "model_final.pth"))["model"]
        for folder in (one_process, run[0])
    )
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-7, rtol=1e-5)


def test_a_process_killed_on_one_machine_ends_the_other_within_a_minute(run):
    assert run[2] < 60


def test_the_log_says_that_it_was_killed(launched):
    """Of torchrun's processes as well, unless torchrun is faster to end the other."""
    assert "ended without an error: killed" in (launched[0] / "log.txt").read_text()


def test_both_programs_end_with_an_error(launched, torchrun):
    assert [type(error) for error in launched[1]] == [RankFailedError, RankFailedError]
    other, own = map(str, launched[1])
    assert "a process on another machine failed" in other
    assert "SIGKILL" in own
    assert 0 not in torchrun[1]
