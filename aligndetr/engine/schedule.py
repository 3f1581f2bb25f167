"""Learning rate schedules whose warm-up is given in iterations, whatever the training's length.

For configs: `lr_multiplier = L(cosine_lr)(max_iter="${train.max_iter}", warmup_iters=500)`. The
result maps progress in [0, 1] to a factor of each parameter's learning rate.
"""

from collections.abc import Sequence

from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import (
    CosineParamScheduler,
    MultiStepParamScheduler,
    ParamScheduler,
)


def multi_step_lr(
    max_iter: int,
    milestones: Sequence[float],
    gamma: float = 0.1,
    warmup_iters: int = 0,
    warmup_factor: float = 0.001,
) -> ParamScheduler:
    """Multiply the rate by `gamma` at each milestone.

    Args:
        max_iter: length of the training.
        milestones: increasing, as shares of it in (0, 1): 0.9 is after nine tenths.
        gamma: in (0, 1).
        warmup_iters, warmup_factor: as `cosine_lr`.

    Raises:
        ValueError: one of them is out of its range.
    """
    milestones = list(milestones)
    if milestones != sorted(set(milestones)) or not all(0 < m < 1 for m in milestones):
        raise ValueError(
            f"`milestones` (={milestones}) must increase and lie in (0, 1): they are shares of the "
            "training, 11 of 12 epochs are 0.9167"
        )
    if not 0 < gamma < 1:
        raise ValueError(f"`gamma` (={gamma}) must be in (0, 1)")
    steps = MultiStepParamScheduler(
        values=[gamma**step for step in range(len(milestones) + 1)],
        milestones=[round(share * max_iter) for share in milestones],
        num_updates=max_iter,
    )
    return _with_warmup(steps, max_iter, warmup_iters, warmup_factor)


def cosine_lr(
    max_iter: int,
    end_factor: float = 0.0,
    warmup_iters: int = 0,
    warmup_factor: float = 0.001,
) -> ParamScheduler:
    """Half a cosine from the full rate to `end_factor` of it (Loshchilov and Hutter, "SGDR").

    Args:
        max_iter: length of the training.
        end_factor: in [0, 1].
        warmup_iters: iterations, fewer than `max_iter`, over which the rate first rises linearly
            to where the curve then is.
        warmup_factor: of the rate, that the rise starts from; in [0, 1].

    Raises:
        ValueError: one of them is out of its range.
    """
    if not 0 <= end_factor <= 1:
        raise ValueError(f"`end_factor` (={end_factor}) must be in [0, 1]")
    cosine = CosineParamScheduler(1.0, end_factor)
    return _with_warmup(cosine, max_iter, warmup_iters, warmup_factor)


def _with_warmup(
    schedule: ParamScheduler, max_iter: int, warmup_iters: int, warmup_factor: float
) -> ParamScheduler:
    if not 0 <= warmup_iters < max_iter:
        raise ValueError(
            f"`warmup_iters` (={warmup_iters}) must be at least 0 and below the length of the "
            f"training, {max_iter} iterations"
        )
    if not 0 <= warmup_factor <= 1:
        raise ValueError(f"`warmup_factor` (={warmup_factor}) must be in [0, 1]")
    if not warmup_iters:
        return schedule
    return WarmupParamScheduler(schedule, warmup_factor, warmup_iters / max_iter, "linear")
