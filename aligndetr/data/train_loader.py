"""Endless training batches from a stream that can be left and taken up at any batch."""

import itertools
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.utils import comm

from .draws import DrawnDataset, ShuffledIndices, batches_of_draws
from .records import Records
from .worker_loader import WorkerLoader, start_worker
from .worker_tensors import send_small_tensors_by_value

logger = logging.getLogger(__name__)

# What decides which images a batch holds, and how a change of it is said.
IDENTITY = {
    "size": "images in the data set",
    "batch_size": "images in a batch of a process",
    "world_size": "processes",
    "groups": "aspect ratio groups",
}


class TrainLoader:
    """Batches (lists) of mapped images, the same whatever `num_workers`.

    `state_dict` says how many batches were taken, not how many were prepared; a new loader that
    is given it goes on with the next batch. Earlier batches are replayed as indices only.

    Args:
        dataset: detectron2's dicts.
        mapper: called with a dict, in a worker; see `DrawnDataset`.
        batch_size: of this rank.
        seed: of order and augmentation; the same on all ranks.
        sampler: the indices of this rank, endless, the same at each iteration; None: shuffled.
        groups: by index; a batch holds images of one group. None: all may come together.
        num_workers, pin_memory: of torch's DataLoader; a worker prepares single images.
        prefetch_factor: images that each worker has ready; None: two batches among all of them,
            and at least 2.
    """

    def __init__(
        self,
        dataset: Records,
        mapper: Callable[[dict], Any],
        batch_size: int,
        seed: int,
        *,
        sampler: Iterable[int] | None = None,
        groups: Sequence[int] | np.ndarray | None = None,
        num_workers: int = 0,
        prefetch_factor: int | None = None,
        pin_memory: bool = False,
    ):
        self.dataset, self.mapper, self.batch_size, self.seed = dataset, mapper, batch_size, seed
        self.num_workers, self.pin_memory = num_workers, pin_memory
        self._prefetch_factor = None  # torch refuses one without workers
        if num_workers:
            two_batches = math.ceil(2 * batch_size / num_workers)
            self._prefetch_factor = prefetch_factor or max(2, two_batches)
        self._sampler, self._groups = sampler, groups
        self._batches_taken = 0

    def __iter__(self) -> Iterator[list[Any]]:
        # Sampling goes on in this process, in order; the loader keeps that order.
        loader = WorkerLoader(
            DrawnDataset(self.dataset, self.mapper, self.seed),
            sampler=itertools.chain.from_iterable(self._remaining_batches()),
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=self.num_workers,
            prefetch_factor=self._prefetch_factor,
            pin_memory=self.pin_memory,
            worker_init_fn=_start_worker,
            # Its own, or the seed of the workers would be drawn from the global generator.
            generator=torch.Generator(),
        )
        samples = iter(loader)
        while batch := list(itertools.islice(samples, self.batch_size)):
            self._batches_taken += 1
            yield batch

    def _remaining_batches(self) -> Iterator[list]:
        rank, world_size = comm.get_rank(), comm.get_world_size()
        indices = self._sampler
        if indices is None:
            indices = ShuffledIndices(len(self.dataset), self.seed, rank, world_size)
        batches = batches_of_draws(indices, self.batch_size, rank, world_size, self._groups)
        return itertools.islice(batches, self._batches_taken, None)

    def state_dict(self) -> dict[str, int]:
        """The position, and what it is a position in."""
        return {"batches": self._batches_taken, "seed": self.seed, **self._identity()}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on after the batches that were taken, in the order of the seed in `state`.

        With another batch size or number of processes, after about as many images, and a warning
        says that these are not the same images.
        """
        self.seed = state["seed"]
        ours = self._identity()
        changed = [key for key in IDENTITY if state[key] != ours[key]]
        images = state["batches"] * state["batch_size"] * state["world_size"]
        self._batches_taken = state["batches"]
        if changed:
            self._batches_taken = images // (ours["batch_size"] * ours["world_size"])
            logger.warning(
                "The data goes on after %d images, but not exactly where it stood: %s. Batches "
                "are put together otherwise, so some images come once more or less in this epoch.",
                images,
                "; ".join(
                    f"{IDENTITY[key]}: {state[key]} then, {ours[key]} now" for key in changed
                ),
            )

    def _identity(self) -> dict[str, int]:
        return {
            "size": len(self.dataset),
            "batch_size": self.batch_size,
            "world_size": comm.get_world_size(),
            "groups": 1 if self._groups is None else 2,
        }


def _start_worker(worker_id: int) -> None:
    start_worker(worker_id)
    send_small_tensors_by_value(worker_id)


def _as_it_is(sample: Any) -> Any:
    return sample
