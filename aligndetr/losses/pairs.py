"""What matched (query, object) pairs point at."""

import torch
from torch import Tensor

Position = tuple[Tensor, Tensor, Tensor]


def look_up_pairs(
    targets: list[dict[str, Tensor]], indices: list[tuple[Tensor, Tensor]]
) -> tuple[Position, Tensor]:
    """The N matched pairs of a batch, one image behind the other.

    Args:
        targets: per image "labels" (n,) int64 and "boxes" (n, 4) of any format.
        indices: per image (query_idx, gt_idx), int64 of equal length, as a matcher returns them.

    Returns:
        Image, query and class of each pair, (N,) int64 each: where it stands in logits (B, Q, K),
        and by the first two in boxes (B, Q, 4). And (N, 4), the boxes of the objects. Images and
        queries are on the device of the indices, classes and boxes on that of the targets.
    """
    image = torch.cat([torch.full_like(query, i) for i, (query, _) in enumerate(indices)])
    query = torch.cat([query for query, _ in indices])
    matched = [(t, gt.to(t["labels"].device)) for t, (_, gt) in zip(targets, indices, strict=True)]
    labels = torch.cat([target["labels"][gt] for target, gt in matched])
    boxes = torch.cat([target["boxes"][gt] for target, gt in matched])
    return (image, query, labels), boxes
