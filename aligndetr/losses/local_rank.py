"""Which of the candidates of one object is its best, its second best, and so on."""

import torch
from torch import Tensor

# Tells bags of different images apart in one integer: (image, object) -> image * stride + object.
_OBJECTS_PER_IMAGE = 2**32


def get_local_rank(quality: Tensor, indices: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Rank of each matched prediction among the candidates of its object, best first.

    All candidates of one object in one image form a bag. Bags may differ in size, stand in any
    order, and objects without a candidate may lie between them.

    Args:
        quality: (N,), one score per matched prediction, images one after another.
        indices: per image (query_idx, gt_idx), integers, of equal length; together N entries.

    Returns:
        (N,) int64 on the device of `quality`: 0 for the best of each bag. Equal qualities keep
        the order in which they came.
    """
    bags = [gt_idx.long() + i * _OBJECTS_PER_IMAGE for i, (_, gt_idx) in enumerate(indices)]
    bag = torch.cat(bags).to(quality.device) if bags else quality.new_empty(0, dtype=torch.long)
    assert bag.shape == quality.shape, (bag.shape, quality.shape)

    # Two stable sorts: by quality, then by bag. What is left is the distance to the bag's start.
    order = quality.argsort(descending=True, stable=True)
    order = order[bag[order].argsort(stable=True)]
    sorted_bag = bag[order]
    start = torch.searchsorted(sorted_bag, sorted_bag)
    rank = torch.empty_like(bag)
    rank[order] = torch.arange(len(bag), device=bag.device) - start
    return rank
