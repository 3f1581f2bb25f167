"""Two Gloo processes of two images each compute what one process computes with all four.

This holds for equal image sizes and without denoising: padding and the number of denoising groups
follow the local batch (docs/training.md).
"""

import datetime
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from aligndetr.engine import launch
from tests.builders import golden_tiny_model, random_batch
from tests.projects import ten_steps

ROOT = Path(__file__).parents[2]

SIZES = [(64, 96)] * 4


def losses_and_gradients(model, batch):
    losses = model(batch)
    sum(losses.values()).backward()
    module = getattr(model, "module", model)
    gradients = {name: p.grad for name, p in module.named_parameters() if p.requires_grad}
    return {name: loss.detach() for name, loss in losses.items()}, gradients


def run_rank(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=60),
    )
    for name, counts in ten_steps.COUNTS.items():
        model = DistributedDataParallel(golden_tiny_model(dn_number=0).train())
        batch = random_batch(SIZES, counts)[2 * rank : 2 * rank + 2]
        torch.save(losses_and_gradients(model, batch), f"{folder}/{name}{rank}.pth")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    multiprocessing.spawn(run_rank, (str(folder),), nprocs=2)
    return folder


@pytest.mark.parametrize("name", ten_steps.COUNTS)
def test_losses_and_gradients_of_two_processes_equal_those_of_one(name, two_processes):
    ranks = [
        torch.load(two_processes / f"{name}{rank}.pth", weights_only=True) for rank in range(2)
    ]
    losses, gradients = losses_and_gradients(
        golden_tiny_model(dn_number=0).train(), random_batch(SIZES, ten_steps.COUNTS[name])
    )
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


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    ten_steps.train(folder)
    return folder


def start_by_num_gpus(folder):
    launch(ten_steps.train, 2, args=(str(folder),), device="cpu")


def start_by_torchrun(folder):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run(
        [*command, ten_steps.__file__, str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        check=True,
        timeout=200,
    )


@pytest.mark.parametrize("start", [start_by_num_gpus, start_by_torchrun])
def test_ten_steps_of_two_processes_equal_those_of_one(start, one_process, tmp_path):
    start(tmp_path)
    for name in ten_steps.COUNTS:
        one, two = (
            torch.load(folder / f"{name}.pth", weights_only=True)
            for folder in (one_process, tmp_path)
        )
        assert len(two["losses"]) == 10
        assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
        assert max(one["losses"]) > 1.1 * min(one["losses"])  # there is something to agree on
        assert (two["change"] - one["change"]).norm() < 1e-3 * one["change"].norm()
