"""The host's part of matching: from the costs that arrived there to pairs (query, object)."""

from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from aligndetr.utils.errors import NonFinitePredictionError


class ImageCosts(NamedTuple):
    """What the host knows of one image and one set of predictions."""

    total: float  # sum of all predictions, not finite if one of them is not
    labels: np.ndarray  # (N,), as they came, perhaps outside the classes
    cost: np.ndarray  # (N, Q) of each object for each query


def assign(
    images: list[ImageCosts], num_classes: int, gt_copy: int, name: str
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Query and object indices of each image, or an error about what stands in the way.

    Args:
        images: of one set of predictions.
        num_classes: of the model; labels must be below it.
        gt_copy: most queries an object may get.
        name: of the set, for errors.

    Raises:
        NonFinitePredictionError, ValueError: see `MixedMatcher.forward`.
    """
    for i, image in enumerate(images):
        _check(i, image, num_classes, name)
    return [_assign_image(image.cost, gt_copy) for image in images]


def _check(i: int, image: ImageCosts, num_classes: int, name: str) -> None:
    if not np.isfinite(image.total):
        raise NonFinitePredictionError(name, i)
    unknown = image.labels[(image.labels < 0) | (image.labels >= num_classes)]
    if len(unknown):
        raise ValueError(
            f"image {i} of the batch has labels {sorted(set(unknown.astype(int).tolist()))}, but "
            f"the model has {num_classes} classes; labels must be in [0, {num_classes}). Set "
            "`model.num_classes` to the number of categories in the data."
        )
    if np.isfinite(image.cost.sum()):
        return
    unusable = ~np.isfinite(image.cost)
    no_query = np.flatnonzero(unusable.all(axis=1))
    if len(no_query):  # an object that nothing can be compared with
        raise ValueError(
            f"image {i} of the batch: the target boxes of objects {no_query.tolist()} are not "
            "finite; boxes must be cxcywh in [0, 1]. Check the annotations."
        )
    if unusable.any():  # finite predictions, but so large that comparing them overflows
        raise NonFinitePredictionError(name, i)


def _assign_image(cost: np.ndarray, gt_copy: int) -> tuple[np.ndarray, np.ndarray]:
    """Best assignment for an (N, Q) cost matrix: query and object indices, sorted by both."""
    num_objects, num_queries = cost.shape
    if num_objects == 0:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    copies = max(1, min(gt_copy, num_queries // (2 * num_objects)))
    # One row for each copy of an object: scipy solves, and else would make, a matrix that is
    # wider than high, of float64.
    rows = np.tile(cost.astype(np.float64), (copies, 1))
    row, query_idx = linear_sum_assignment(rows)
    gt_idx = row % num_objects
    order = np.lexsort((query_idx, gt_idx))
    return query_idx[order], gt_idx[order]
