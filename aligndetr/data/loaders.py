"""The loaders a config names: training data that can be resumed, and detectron2's for testing.

Images come in pinned memory where a GPU waits for them.

The training loader is iterated once and without end, so its workers live as long as the run; the
test loader's are kept between evaluations instead of being started for each. There are no more of
them than cores: 16 on a laptop with four would take memory and time, and torch warns of them.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from detectron2.data import DatasetFromList, MapDataset
from detectron2.data.build import trivial_batch_collator
from detectron2.data.samplers import InferenceSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader, Sampler

from aligndetr.utils.cores import available_cores

from .checks import DatasetError
from .coco_dataset import CocoDataset
from .corrupt_images import ReplaceCorruptImages
from .records import Records
from .train_loader import TrainLoader
from .worker_loader import WorkerLoader, start_worker


def build_detection_train_loader(
    dataset: Records,
    *,
    mapper: Callable[[dict], Any],
    total_batch_size: int,
    sampler: Sampler | None = None,
    aspect_ratio_grouping: bool = True,
    num_workers: int = 0,
    prefetch_factor: int | None = None,
    device: str = "cpu",
    seed: int | None = None,
) -> TrainLoader:
    """Endless batches of shuffled, mapped images, as lists.

    Args:
        dataset: detectron2's dicts.
        mapper: called with a dict, in a worker, with random streams of its own for each image. One
            that it cannot read is replaced, see `ReplaceCorruptImages`.
        total_batch_size: over all ranks.
        sampler: the indices of this rank, without end. None: all images in random order, again
            and again. A run is resumed exactly if it gives the same indices at each iteration.
        aspect_ratio_grouping: put no upright and lying images into one batch; needs width and
            height in the dicts.
        num_workers: processes per rank, at most one per core; 0 maps in this one. It does not
            change what comes.
        prefetch_factor: images that each worker has ready; None: two batches among all of them,
            and at least 2.
        device: where the model is. Images are pinned for "cuda", so that copies need not wait.
        seed: of order and augmentation. None or negative: one that the ranks agree on is drawn
            from numpy's global generator.

    Raises:
        DatasetError: no image, or one without size where they are to be grouped.
        ValueError: a batch size that the processes cannot share.
    """
    if not len(dataset):
        raise DatasetError("the training data set has no image")
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)
    world_size = comm.get_world_size()
    if total_batch_size < 1 or total_batch_size % world_size:
        raise ValueError(
            f"`total_batch_size` (={total_batch_size}) must be a positive multiple of the number "
            f"of processes ({world_size})"
        )
    return TrainLoader(
        dataset,
        ReplaceCorruptImages(mapper, dataset),
        total_batch_size // world_size,
        comm.shared_random_seed() if seed is None or seed < 0 else seed,
        sampler=sampler,
        groups=_orientations(dataset) if aspect_ratio_grouping else None,
        num_workers=min(num_workers, available_cores()),
        prefetch_factor=prefetch_factor,
        pin_memory=_is_cuda(device),
    )


def _orientations(dataset: Records) -> np.ndarray:
    """(N,) bool by index: the image is wider than high."""
    if isinstance(dataset, CocoDataset):
        return dataset.orientations()
    orientations = np.empty(len(dataset), dtype=bool)
    for index in range(len(dataset)):
        sample = dataset[index]
        width, height = sample.get("width"), sample.get("height")
        if not width or not height:
            raise DatasetError(
                f"image {sample.get('file_name', index)!r} has width {width!r} and height "
                f"{height!r}; images are grouped by their aspect ratio and need both. Add them, "
                "or set dataloader.train.aspect_ratio_grouping=False"
            )
        orientations[index] = width > height
    return orientations


def build_detection_test_loader(
    dataset: Records,
    *,
    mapper: Callable[[dict], Any],
    batch_size: int = 1,
    num_workers: int = 0,
    prefetch_factor: int | None = None,
    device: str = "cpu",
) -> DataLoader:
    """Every mapped image once, split among the ranks, in batches that are lists.

    Args:
        dataset: detectron2's dicts.
        mapper: called with a dict, in a worker.
        batch_size: per rank.
        num_workers: processes per rank, at most one per core; 0 maps in this one.
        prefetch_factor: batches that each worker has ready; None: torch's 2.
        device: where the model is. Images are pinned for "cuda", so that copies need not wait.
    """
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)
    return WorkerLoader(
        MapDataset(dataset, mapper),
        batch_size=batch_size,
        sampler=InferenceSampler(len(dataset)),
        num_workers=min(num_workers, available_cores()),
        collate_fn=trivial_batch_collator,
        # torch refuses both without workers.
        prefetch_factor=prefetch_factor if num_workers else None,
        persistent_workers=num_workers > 0,
        worker_init_fn=start_worker,
        pin_memory=_is_cuda(device),
    )


def _is_cuda(device: str) -> bool:
    return str(device).startswith("cuda")
