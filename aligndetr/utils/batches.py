"""Images of different sizes, which must not share a batch."""

from collections import defaultdict
from collections.abc import Callable


def in_batches_of_one_size(
    inputs: list[dict], detect: Callable[[list[dict]], list[dict]]
) -> list[dict]:
    """What `detect` finds in images of one size at a time, in the order of `inputs`.

    Padding would change a result: norms over a map, the borders of convolutions and position
    embeddings all see it.

    Args:
        inputs: detectron2's dicts, with "image" (C, H, W).
        detect: some of them, of one shape, to as many results.
    """
    by_shape = defaultdict(list)
    for index, x in enumerate(inputs):
        by_shape[tuple(x["image"].shape)].append(index)
    results: list[dict] = [{} for _ in inputs]
    for indices in by_shape.values():
        found = detect([inputs[index] for index in indices])
        for index, result in zip(indices, found, strict=True):
            results[index] = result
    return results
