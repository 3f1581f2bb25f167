"""Hyperparameters of the optimizer: by the name of a parameter, and when a run is resumed."""

import logging
from collections.abc import Callable, Mapping

from torch.optim import Optimizer

logger = logging.getLogger(__name__)

REFERENCE_BATCH = 16
"""Images per step that the learning rates of the configs are for."""


def backbone_lr_factor(factor: float) -> Callable[[str], float]:
    """Scale the learning rate of the backbone.

    Made for `get_default_optimizer_params(lr_factor_func=...)` of detectron2. A factory, so
    that a config can hold it as a name and a number and be saved as plain YAML:
    `lr_factor_func=L(backbone_lr_factor)(factor=0.1)`.

    Args:
        factor: multiplies the rate of each parameter with "backbone" in its name; >= 0, where
            0 stops the backbone from learning.

    Returns:
        A function from the name of a parameter to its factor, 1 outside the backbone.
    """
    if not factor >= 0:  # written so that NaN is refused as well
        raise ValueError(
            f"`factor` (={factor}) must be a number >= 0; set `factor` of "
            "`optimizer.params.lr_factor_func` in the config"
        )

    def lr_factor(parameter_name: str) -> float:
        return factor if "backbone" in parameter_name else 1.0

    return lr_factor


def scale_learning_rate(optimizer: Optimizer, images_per_step: int) -> None:
    """Make all rates `images_per_step` / 16 times what they are (Goyal et al., "Accurate, Large
    Minibatch SGD", the linear scaling rule). Before a schedule takes them up."""
    factor = images_per_step / REFERENCE_BATCH
    for group in optimizer.param_groups:
        group["lr"] *= factor
    logger.info(
        "Learning rates are multiplied by %g: a step takes %d images, not %d",
        factor,
        images_per_step,
        REFERENCE_BATCH,
    )


def with_hyperparameters_of(optimizer: Optimizer, state: Mapping) -> dict:
    """The state of another optimizer, with this one's learning rates, weight decay and the like.

    A resumed run so follows its config, not the checkpoint; what differs is logged.

    Args:
        optimizer: as the config builds it, no scheduler has changed it yet.
        state: `state_dict()` of one with the same parameter groups.

    Returns:
        To be given to `optimizer.load_state_dict`, which refuses other parameter groups.
    """
    changes, groups = [], []
    for ours, saved in zip(optimizer.param_groups, state["param_groups"]):
        # `lr` is what the schedule last made of `initial_lr`, from which it goes on.
        ours = {"initial_lr": ours["lr"], **ours, "params": saved["params"]}
        for name in ours.keys() & saved.keys() - {"lr"}:
            if ours[name] != saved[name]:
                changes.append(f"{name.removeprefix('initial_')} {saved[name]} -> {ours[name]}")
        groups.append({**saved, **ours})
    if changes:
        logger.warning("The config changes the checkpoint's %s", ", ".join(sorted(set(changes))))
    complete = len(groups) == len(state["param_groups"])
    return {**state, "param_groups": groups if complete else state["param_groups"]}
