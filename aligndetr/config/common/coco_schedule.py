"""Length and learning rate schedule of a COCO training, from one number of epochs."""

from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler
from omegaconf import DictConfig

ITERS_PER_EPOCH = 7500  # COCO convention: 90k iterations of batch 16 = 12 epochs


def coco_schedule(epochs: int, decay_epoch: int, warmup_steps: int = 0) -> tuple[int, DictConfig]:
    """Both halves of a step schedule, so that they cannot disagree.

    The learning rate is multiplied by 0.1 from `decay_epoch` on. fvcore evaluates a schedule at
    iteration / max_iter, and the milestones and the warm-up are relative to their own end; so
    overriding `train.max_iter` alone stretches or shrinks the whole schedule and keeps its shape.

    Args:
        epochs: length of the training in COCO epochs of `ITERS_PER_EPOCH` iterations.
        decay_epoch: epoch at which the learning rate falls, in (0, epochs).
        warmup_steps: iterations over which it first rises linearly from 1/1000 of its value.

    Returns:
        (max_iter, lr_multiplier): the number of iterations, and a LazyCall of the fvcore scheduler
        that maps progress in [0, 1] to a factor of the learning rate.
    """
    if not 0 < decay_epoch < epochs:
        raise ValueError(
            f"`decay_epoch` (={decay_epoch}) must lie between 0 and `epochs` (={epochs}), "
            "both exclusive"
        )
    max_iter = epochs * ITERS_PER_EPOCH
    decay_iter = decay_epoch * ITERS_PER_EPOCH
    if not 0 <= warmup_steps < decay_iter:
        raise ValueError(
            f"`warmup_steps` (={warmup_steps}) must be at least 0 and below iteration "
            f"{decay_iter}, where the learning rate falls"
        )
    lr_multiplier = L(WarmupParamScheduler)(
        scheduler=L(MultiStepParamScheduler)(
            values=[1.0, 0.1],  # factors of the learning rate, one after the other
            milestones=[decay_iter, max_iter],  # their ends, in parts of the last number
        ),
        warmup_length=warmup_steps / max_iter,  # share of the run in which the rate first rises
        warmup_factor=0.001,  # of the rate, where it starts to rise
        warmup_method="linear",  # or "constant", at `warmup_factor`
    )
    return max_iter, lr_multiplier
