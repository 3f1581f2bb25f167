"""Two Gloo processes of two images each compute what one process computes with all four.

This holds for equal image sizes and without denoising: padding and the number of denoising groups
follow the local batch (docs/training.md).
"""

import datetime

import pytest
import torch
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from tests.builders import golden_tiny_model, random_batch

SIZES = [(64, 96)] * 4


def losses_and_gradients(model, batch):
    losses = model(batch)
    sum(losses.values()).backward()
    module = getattr(model, "module", model)
    gradients = {name: p.grad for name, p in module.named_parameters() if p.requires_grad}
    return {name: loss.detach() for name, loss in losses.items()}, gradients


def run_rank(rank, counts, folder):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=60),
    )
    model = DistributedDataParallel(golden_tiny_model(dn_number=0).train())
    batch = random_batch(SIZES, counts)[2 * rank : 2 * rank + 2]
    torch.save(losses_and_gradients(model, batch), f"{folder}/rank{rank}.pth")
    distributed.destroy_process_group()


@pytest.mark.parametrize(
    "counts", [(3, 1, 2, 4), (0, 0, 2, 3)], ids=["all", "rank 0 without objects"]
)
def test_two_processes_equal_one(counts, tmp_path):
    counts = list(counts)
    multiprocessing.spawn(run_rank, (counts, str(tmp_path)), nprocs=2)
    ranks = [torch.load(tmp_path / f"rank{rank}.pth", weights_only=True) for rank in range(2)]
    losses, gradients = losses_and_gradients(
        golden_tiny_model(dn_number=0).train(), random_batch(SIZES, counts)
    )
    assert all(gradient is not None for gradient in gradients.values())
    for name, loss in losses.items():
        mean = (ranks[0][0][name] + ranks[1][0][name]) / 2
        torch.testing.assert_close(mean, loss, rtol=1e-5, atol=1e-6, msg=name)
    scale = max(gradient.abs().max().item() for gradient in gradients.values())
    for name, gradient in gradients.items():
        for rank in range(2):
            torch.testing.assert_close(
                ranks[rank][1][name], gradient, rtol=1e-4, atol=1e-5 * scale, msg=name
            )
