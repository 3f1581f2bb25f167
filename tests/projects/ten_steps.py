"""Ten steps of the tiny model with four images in all; `torchrun ten_steps.py FOLDER`.

Equal image sizes and no denoising: otherwise padding and the number of groups follow the local
batch (docs/distributed.md).
"""

import sys

import torch
from detectron2.utils import comm

from aligndetr.engine import Trainer, create_ddp_model, launch
from tests.builders import golden_tiny_model, random_batch

# Objects per image. Rank 0 gets the first two.
COUNTS = {"all": [3, 1, 2, 4], "rank 0 without objects": [0, 0, 2, 3]}


class Batches:
    """Ten batches of four images, of which each rank gets its part."""

    def __init__(self, counts):
        self._counts = counts

    def __iter__(self):
        rank, each = comm.get_rank(), 4 // comm.get_world_size()
        for seed in range(10):
            batch = random_batch([(64, 96)] * 4, self._counts, seed=seed)
            yield batch[rank * each : (rank + 1) * each]


def as_vector(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def losses_and_gradients(model, batch):
    """By name, of a model with or without DDP."""
    losses = model(batch)
    sum(losses.values()).backward()
    module = getattr(model, "module", model)
    gradients = {name: p.grad for name, p in module.named_parameters() if p.requires_grad}
    return {name: loss.detach() for name, loss in losses.items()}, gradients


def train(folder):
    """Leave each rank's losses and gradients of the first batch, and by the main process the losses
    of ten steps and what these changed in the weights."""
    for name, counts in COUNTS.items():
        model = create_ddp_model(golden_tiny_model(dn_number=0).train())
        found = losses_and_gradients(model, next(iter(Batches(counts))))
        torch.save(found, f"{folder}/{name}{comm.get_rank()}.pth")
        before = as_vector(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        trainer = Trainer(
            model, Batches(counts), optimizer, clip_grad={"max_norm": 0.1, "norm_type": 2}
        )
        trainer.train(0, 10)
        if comm.is_main_process():
            losses = trainer.storage.history("total_loss").values()
            change = as_vector(model) - before
            found = {"change": change, "losses": [loss for loss, _ in losses]}
            torch.save(found, f"{folder}/{name}.pth")


if __name__ == "__main__":
    launch(train, 1, args=(sys.argv[1],), device="cpu")
