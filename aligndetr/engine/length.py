"""How long to train, from the size of the data: as many epochs, or where it is left open (null)."""

import math
from collections.abc import Sequence

from detectron2.config import instantiate
from omegaconf import DictConfig, OmegaConf

ITERATIONS = 5000
"""What a fine-tuning takes where its data are neither few nor many."""

EPOCHS = (12, 100)
"""The least and the most passes over the data; 12 are the usual short schedule of COCO."""

LEAST = 500
"""Iterations that even a handful of images gets: new heads must settle."""

PERIODS = 10
"""Evaluations and checkpoints on the way."""

FROM_DATA = ("max_iter", "eval_period", "checkpointer.period")
"""Keys of `train` that may be null."""


def finetune_iterations(num_images: int, images_per_step: int) -> int:
    """`ITERATIONS`, or what lies nearest within `EPOCHS` and above `LEAST`."""
    fewest, most = (math.ceil(epochs * num_images / images_per_step) for epochs in EPOCHS)
    return max(LEAST, fewest, min(ITERATIONS, most))


def images_per_step(cfg: DictConfig) -> int:
    """Images that a step of the optimizer learns from, on all ranks and in all micro-batches."""
    return cfg.dataloader.train.total_batch_size * cfg.train.grad_accum_steps


def set_length(cfg: DictConfig, overrides: Sequence[str] = ()) -> None:
    """Settle how long to train. `cfg` is changed in place.

    `train.max_epochs` goes before `train.max_iter`: that many times the number of images. Without
    it, the keys `FROM_DATA` that are null get values: `train.max_iter` by the number of images to
    train on, the periods by a tenth of it. A fast_dev_run keeps its few iterations.

    Args:
        overrides: of the command line, KEY=VALUE.

    Raises:
        DatasetError: the train data cannot be used.
        ValueError: the train loader has no data set of a known size, or there are two lengths.
    """
    train = cfg.train
    epochs = train.get("max_epochs")
    if epochs is not None and any(option.startswith("train.max_iter=") for option in overrides):
        raise ValueError(
            f"`train.max_iter` (={train.max_iter}) and `train.max_epochs` (={epochs}) are both "
            "given; leave out one, or add train.max_epochs=null"
        )
    if epochs is not None and not train.fast_dev_run.enabled:
        train.max_iter = math.ceil(epochs * _num_images(cfg, "max_epochs") / images_per_step(cfg))
    elif train.max_iter is None:
        num_images = _num_images(cfg, "max_iter")
        train.max_iter = finetune_iterations(num_images, images_per_step(cfg))
    for key in FROM_DATA[1:]:
        if OmegaConf.select(train, key, default=0) is None:
            OmegaConf.update(train, key, math.ceil(train.max_iter / PERIODS))


def _num_images(cfg: DictConfig, key: str) -> int:
    if cfg.dataloader.train.get("dataset") is None:
        needed = (
            "a whole number" if key == "max_iter" else "null and `train.max_iter` a whole number"
        )
        raise ValueError(
            f"`train.{key}` (={cfg.train[key]}) must be {needed}, for there is no "
            "`dataloader.train.dataset` whose size the length could follow"
        )
    return len(instantiate(cfg.dataloader.train.dataset))
