"""A detector, data and a config as small as the engine allows.

The engine knows a model only as "batch in, dict of losses or list of results out", so its tests
need no more than that.
"""

from argparse import Namespace
from collections.abc import Iterator

import torch
from detectron2.config import LazyCall as L
from detectron2.evaluation import DatasetEvaluator
from detectron2.solver import get_default_optimizer_params
from detectron2.utils import comm
from fvcore.common.param_scheduler import MultiStepParamScheduler
from omegaconf import OmegaConf
from torch import nn

from aligndetr.engine import backbone_lr_factor


class StandIn(nn.Module):
    """Predicts the brightness of an image; both losses are means over the images of a batch."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 1)

    def forward(self, batch):
        images = torch.stack([x["image"] for x in batch])
        brightness = self.head(self.backbone(images).mean(dim=(2, 3))).squeeze(1)
        if not self.training:
            return [{"brightness": b} for b in brightness]
        error = brightness - images.mean(dim=(1, 2, 3))
        return {"loss_square": error.square().mean(), "loss_abs": 0.1 * error.abs().mean()}


class Images:
    """Endless batches of seeded images; each rank gets its part of the same total batch.

    `dataset` is not read: the engine looks there for classes and for the number of images.
    """

    def __init__(self, total_batch_size: int, poisoned_id: int = -1, dataset: object = None):
        self.total_batch_size = total_batch_size
        self.poisoned_id = poisoned_id

    def __iter__(self) -> Iterator[list[dict]]:
        generator = torch.Generator().manual_seed(7)
        first_id = 0
        while True:
            images = torch.rand(self.total_batch_size, 3, 5, 6, generator=generator)
            batch = [
                {"image": image, "image_id": i, "file_name": f"{i}.png"}
                for i, image in enumerate(images, start=first_id)
            ]
            first_id += self.total_batch_size
            for x in batch:
                if x["image_id"] == self.poisoned_id:
                    x["image"] = torch.full_like(x["image"], float("nan"))
            yield batch[comm.get_rank() :: comm.get_world_size()]


def three_batches(total_batch_size: int = 2) -> list[list[dict]]:
    batches = iter(Images(total_batch_size))
    return [next(batches) for _ in range(3)]


class MeanBrightness(DatasetEvaluator):
    def reset(self):
        self.values = []

    def process(self, inputs, outputs):
        self.values += [output["brightness"].item() for output in outputs]

    def evaluate(self):
        values = [value for part in comm.gather(self.values) for value in part]
        return {"bbox": {"AP": sum(values) / len(values)}} if values else {}


def stand_in_config(output_dir, **train):
    """A whole config: 8 iterations, evaluated every 4, saved every 3."""
    cfg = OmegaConf.create(flags={"allow_objects": True})
    cfg.model = L(StandIn)()
    cfg.optimizer = L(torch.optim.AdamW)(
        params=L(get_default_optimizer_params)(
            base_lr="${..lr}", lr_factor_func=L(backbone_lr_factor)(factor=0.5)
        ),
        lr=0.01,
        betas=[0.9, 0.999],
    )
    cfg.lr_multiplier = L(MultiStepParamScheduler)(values=[1, 0.1], milestones=[6], num_updates=8)
    cfg.dataloader = {
        "train": L(Images)(total_batch_size=4),
        "test": L(three_batches)(),
        "evaluator": L(MeanBrightness)(),
    }
    cfg.train = {
        "output_dir": str(output_dir),
        "init_checkpoint": "",
        "max_iter": 8,
        "amp": {"enabled": False, "dtype": "bfloat16"},
        "grad_accum_steps": 1,
        "max_bad_steps": 1,
        "max_corrupt_share": 0.05,
        "ddp": {
            "broadcast_buffers": False,
            "find_unused_parameters": False,
            "fp16_compression": False,
        },
        "clip_grad": {"enabled": True, "params": {"max_norm": 0.1, "norm_type": 2}},
        "seed": 3,
        "fast_dev_run": {"enabled": False},
        "deterministic": False,
        "checkpointer": {"period": 3, "max_to_keep": 100, "best_metric": "bbox/AP"},
        "eval_period": 4,
        "log_period": 2,
        "wandb": {"enabled": False},
        "model_ema": {
            "enabled": False,
            "decay": 0.5,
            "device": "",
            "use_ema_weights_for_eval_only": False,
        },
        "ms_deform_attn": "auto",
        "device": "cpu",
        **train,
    }
    return cfg


def arguments(**changes) -> Namespace:
    """What detectron2's argument parser gives for an empty command line."""
    defaults = {
        "config_file": "",
        "resume": False,
        "eval_only": False,
        "num_gpus": 1,
        "num_machines": 1,
        "machine_rank": 0,
        "dist_url": "tcp://127.0.0.1:12345",
        "opts": [],
    }
    return Namespace(**{**defaults, **changes})
