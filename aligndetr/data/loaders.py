"""detectron2's loaders, with batches in pinned memory where a GPU waits for them.

The training loader is iterated once and without end, so its workers live as long as the run; the
test loader's are kept between evaluations instead of being started for each.
"""

from collections.abc import Callable
from typing import Any

from detectron2 import data as detectron2_data
from detectron2.data import DatasetFromList, MapDataset
from detectron2.data.build import trivial_batch_collator
from detectron2.data.samplers import InferenceSampler
from torch.utils.data import DataLoader, Dataset, Sampler


def build_detection_train_loader(
    dataset: list[dict] | Dataset,
    *,
    mapper: Callable[[dict], Any],
    total_batch_size: int,
    sampler: Sampler | None = None,
    aspect_ratio_grouping: bool = True,
    num_workers: int = 0,
    prefetch_factor: int | None = None,
    device: str = "cpu",
) -> Any:
    """Endless batches of shuffled, mapped images, as lists.

    Args:
        dataset: detectron2's dicts.
        mapper: called with a dict, in a worker.
        total_batch_size: over all ranks.
        sampler: None: all images in random order, again and again.
        aspect_ratio_grouping: put no upright and lying images into one batch.
        num_workers: processes per rank; 0 maps in this one.
        prefetch_factor: images that each worker has ready; None: torch's 2.
        device: where the model is. Images are pinned for "cuda", so that copies need not wait.
    """
    return detectron2_data.build_detection_train_loader(
        dataset,
        mapper=mapper,
        total_batch_size=total_batch_size,
        sampler=sampler,
        aspect_ratio_grouping=aspect_ratio_grouping,
        num_workers=num_workers,
        prefetch_factor=prefetch_factor if num_workers else None,
        pin_memory=_is_cuda(device),
    )


def build_detection_test_loader(
    dataset: list[dict] | Dataset,
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
        num_workers: processes per rank; 0 maps in this one.
        prefetch_factor: batches that each worker has ready; None: torch's 2.
        device: where the model is. Images are pinned for "cuda", so that copies need not wait.
    """
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)
    return DataLoader(
        MapDataset(dataset, mapper),
        batch_size=batch_size,
        sampler=InferenceSampler(len(dataset)),
        num_workers=num_workers,
        collate_fn=trivial_batch_collator,
        # torch refuses both without workers.
        prefetch_factor=prefetch_factor if num_workers else None,
        persistent_workers=num_workers > 0,
        pin_memory=_is_cuda(device),
    )


def _is_cuda(device: str) -> bool:
    return str(device).startswith("cuda")
