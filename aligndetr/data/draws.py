"""Which image comes when, and with which random numbers: all of it a function of the seed.

A *draw* is one image taken out of the data set. Draws are numbered over all ranks, and each has
random streams of its own from (seed, number). So an image is augmented in the same way in
whichever process, and however many of them load data; and where a run stood is one number.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from aligndetr.utils.random_states import seeded

from .checks import DatasetError
from .records import Records

MAX_TRIES = 100

NUMBERS_AT_ONCE = 4096
"""Python's integers take five times the memory of a tensor's."""


class Draw(NamedTuple):
    index: int  # of the image in the data set
    number: int  # from 0, over all ranks


class ShuffledIndices:
    """Endless: all indices in random order, and again in another.

    Args:
        size: of the data set.
        seed: of the order; the same on all ranks.
        rank, world_size: this rank takes every `world_size`-th index, from the `rank`-th.
    """

    def __init__(self, size: int, seed: int, rank: int = 0, world_size: int = 1):
        self._size, self._seed = size, seed
        self._rank, self._world_size = rank, world_size

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed)
        first = self._rank
        while True:
            order = torch.randperm(self._size, generator=generator)
            for part in order[first :: self._world_size].split(NUMBERS_AT_ONCE):
                yield from part.tolist()
            first = (first - self._size) % self._world_size


def batches_of_draws(
    indices: Iterable[int],
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    groups: Sequence[int] | np.ndarray | None = None,
) -> Iterator[list[Draw]]:
    """Number the draws of this rank and put them into batches.

    Args:
        indices: what this rank draws, in order.
        batch_size: of this rank.
        groups: by index; no batch mixes two of them. A batch comes when its last draw does.
    """
    waiting: dict[int, list[Draw]] = {}
    for count, index in enumerate(indices):
        draw = Draw(int(index), count * world_size + rank)
        batch = waiting.setdefault(0 if groups is None else groups[index], [])
        batch.append(draw)
        if len(batch) == batch_size:
            yield batch[:]
            batch.clear()


class DrawnDataset(Dataset):
    """Mapped samples by draw, each made with random streams of its own.

    Args:
        dataset: of detectron2's dicts.
        mapper: uses the global generators of Python, numpy and torch. None instead of a sample
            leaves an image out: another, drawn from the same streams, takes its place.
        seed: of the run.
    """

    def __init__(self, dataset: Records, mapper: Callable, seed: int):
        self._dataset, self._mapper, self._seed = dataset, mapper, seed

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, draw: Draw) -> Any:
        with seeded(self._seed, draw.number):
            index = draw.index
            for _ in range(MAX_TRIES):
                sample = self._mapper(self._dataset[index])
                if sample is not None:
                    return sample
                index = random.randrange(len(self))
        raise DatasetError(
            f"the mapper left out {MAX_TRIES} images in a row, the first with index {draw.index}; "
            "it must return a sample for most of them"
        )
