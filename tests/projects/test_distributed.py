"""Two Gloo processes of two images each compute what one process computes with all four.

This holds for equal image sizes and without denoising: padding and the number of denoising groups
follow the local batch (docs/distributed.md).
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from aligndetr.engine import launch
from tests.projects import ten_steps

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    ten_steps.train(folder)
    return folder


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """As `--num-gpus 2` starts them."""
    folder = tmp_path_factory.mktemp("two")
    launch(ten_steps.train, 2, args=(str(folder),), device="cpu")
    return folder


def load(folder, name):
    return torch.load(folder / f"{name}.pth", weights_only=True)


@pytest.mark.parametrize("name", ten_steps.COUNTS)
def test_losses_and_gradients_of_two_processes_equal_those_of_one(name, one_process, two_processes):
    ranks = [load(two_processes, f"{name}{rank}") for rank in range(2)]
    losses, gradients = load(one_process, f"{name}0")
    assert all(gradient is not None for gradient in gradients.values())
    for key, loss in losses.items():
        mean = (ranks[0][0][key] + ranks[1][0][key]) / 2
        torch.testing.assert_close(mean, loss, rtol=1e-5, atol=1e-6, msg=key)
    scale = max(gradient.abs().max().item() for gradient in gradients.values())
    for key, gradient in gradients.items():
        for rank in range(2):
            torch.testing.assert_close(
                ranks[rank][1][key], gradient, rtol=1e-4, atol=1e-5 * scale, msg=key
            )


def assert_same_ten_steps(one_process, two_processes):
    for name in ten_steps.COUNTS:
        one, two = (load(folder, name) for folder in (one_process, two_processes))
        assert len(two["losses"]) == 10
        assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
        assert max(one["losses"]) > 1.1 * min(one["losses"])  # there is something to agree on
        assert (two["change"] - one["change"]).norm() < 1e-3 * one["change"].norm()


def test_ten_steps_of_two_processes_equal_those_of_one(one_process, two_processes):
    assert_same_ten_steps(one_process, two_processes)


@pytest.mark.slow  # that torchrun starts the same run is tested on less, in tests/engine
def test_ten_steps_under_torchrun_equal_those_of_one_process(one_process, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run(
        [*command, ten_steps.__file__, str(tmp_path)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        check=True,
        timeout=200,
    )
    assert_same_ten_steps(one_process, tmp_path)
