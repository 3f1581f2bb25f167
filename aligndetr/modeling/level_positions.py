"""Padding masks and position embeddings of all levels, kept for sizes that come again."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .levels import padding_masks

Size = Sequence[int]


class LevelPositions:
    """Embeds positions once for each size of images that need no padding.

    Where nothing is padded (evaluation, or images cut to one size) positions depend on the size
    alone, and their many sines would be computed again for every batch. Padded batches are not
    kept: their sizes hardly ever come again together.

    Args:
        capacity: sizes to keep, the last used ones. An 800 x 1333 image holds 23 MB with C = 256.
    """

    def __init__(self, capacity: int = 4):
        self.capacity = capacity
        # The last used first. Replaced as a whole, never changed: threads may share the model.
        self._kept: dict[tuple, tuple[list[Tensor], list[Tensor]]] = {}

    def __call__(
        self,
        embedding: nn.Module,
        image_sizes: Sequence[Size],
        padded_size: Size,
        map_sizes: Sequence[Size],
        device: torch.device,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Masks (B, h, w), True = padding, and positions (B, C, h, w) of each level, to be read.

        Args:
            embedding: padding mask (B, h, w) to (B, C, h, w). One that learns is asked every time.
            image_sizes: (h, w) of the B images before padding.
            padded_size: (h, w) of all of them after it.
            map_sizes: (h, w) of each level.
        """
        if all(tuple(size) == tuple(padded_size) for size in image_sizes):
            return self.unpadded(embedding, len(image_sizes), map_sizes, device)
        return _embed(embedding, image_sizes, padded_size, map_sizes, device)

    def unpadded(
        self, embedding: nn.Module, batch: int, map_sizes: Sequence[Size], device: torch.device
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The same for `batch` images that fill the tensor. All sizes may be those of a graph that
        is captured, which leaves them open."""
        # Of one image, for batches of any size.
        if _must_not_be_kept(embedding):
            masks, positions = _embed_unpadded(embedding, map_sizes, device)
        else:
            masks, positions = self._keep(embedding, map_sizes, device)
        return (
            [mask.expand(batch, -1, -1) for mask in masks],
            [position.expand(batch, -1, -1, -1) for position in positions],
        )

    def _keep(
        self, embedding: nn.Module, map_sizes: Sequence[Size], device: torch.device
    ) -> tuple[list[Tensor], list[Tensor]]:
        key = (embedding, tuple(map(tuple, map_sizes)), device)
        kept = self._kept
        found = kept.get(key)
        if found is None:
            # Not as tensors of inference mode, which a later training step could not use.
            with torch.inference_mode(False), torch.no_grad():
                found = _embed_unpadded(embedding, map_sizes, device)
        others = (item for item in kept.items() if item[0] != key)
        self._kept = dict([(key, found), *others][: self.capacity])
        return found


def _must_not_be_kept(embedding: nn.Module) -> bool:
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True  # what a graph computes must not leave it
    return any(True for _ in embedding.parameters())


def _embed(
    embedding: nn.Module,
    image_sizes: Sequence[Size],
    padded_size: Size,
    map_sizes: Sequence[Size],
    device: torch.device,
) -> tuple[list[Tensor], list[Tensor]]:
    masks = padding_masks(image_sizes, padded_size, map_sizes, device)
    return masks, [embedding(mask) for mask in masks]


def _embed_unpadded(
    embedding: nn.Module, map_sizes: Sequence[Size], device: torch.device
) -> tuple[list[Tensor], list[Tensor]]:
    """Of one image."""
    masks = [torch.zeros(1, *size, dtype=torch.bool, device=device) for size in map_sizes]
    return masks, [embedding(mask) for mask in masks]
