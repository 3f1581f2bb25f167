"""torchrun starts the same main: equal to one process, and restarted where a process failed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from aligndetr.checkpoint import read_checkpoint
from aligndetr.engine import do_train, setup
from tests.engine.stand_in import arguments, stand_in_config

ROOT = Path(__file__).parents[2]
PLACES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")


@pytest.fixture(scope="module")
def restarted(tmp_path_factory):
    """A run of two processes of which one failed once: its folder and what was printed."""
    folder = tmp_path_factory.mktemp("torchrun")
    environ = {name: value for name, value in os.environ.items() if name not in PLACES}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    result = subprocess.run(
        [*command, "--max-restarts=1", "tests/engine/torchrun_script.py", str(folder)],
        cwd=ROOT,
        env=environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    printed = result.stdout + result.stderr
    assert result.returncode == 0, printed[-5000:]  # the end says which start failed, and why
    return folder, printed


def test_a_restart_resumes_by_itself(restarted):
    folder, printed = restarted
    assert "rank 1 has had enough" in printed
    logged = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in logged if "total_loss" in line] == [1, 3, 5, 7]
    states = read_checkpoint(str(folder / "model_final.pth"))["trainer"]["optimizer"]["state"]
    assert {state["step"].item() for state in states.values()} == {8}


def test_until_the_failure_it_equals_one_process(restarted, tmp_path):
    cfg = stand_in_config(tmp_path, eval_period=0)
    setup(cfg, arguments())
    do_train(cfg)
    one, two = (
        read_checkpoint(str(folder / "model_0000005.pth"))["model"]
        for folder in (tmp_path, restarted[0])
    )
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-7, rtol=1e-5)
