"""How long to fine-tune, from the size of the data, where the config leaves it open (null)."""

import math

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


def set_length(cfg: DictConfig) -> None:
    """Give the keys `FROM_DATA` that are null their values: `train.max_iter` by the number of
    images to train on, the periods by a tenth of it. `cfg` is changed in place.

    Raises:
        DatasetError: the train data cannot be used.
        ValueError: the train loader has no data set of a known size.
    """
    train = cfg.train
    if train.max_iter is None:
        if cfg.dataloader.train.get("dataset") is None:
            raise ValueError(
                "`train.max_iter` (=None) must be a whole number, for there is no "
                "`dataloader.train.dataset` whose size it could follow"
            )
        images_per_step = cfg.dataloader.train.total_batch_size * train.grad_accum_steps
        num_images = len(instantiate(cfg.dataloader.train.dataset))
        train.max_iter = finetune_iterations(num_images, images_per_step)
    for key in FROM_DATA[1:]:
        if OmegaConf.select(train, key, default=0) is None:
            OmegaConf.update(train, key, math.ceil(train.max_iter / PERIODS))
