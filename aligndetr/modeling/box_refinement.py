"""One step of iterative box refinement (Deformable DETR, section 4.1)."""

import torch
from torch import Tensor

from aligndetr.utils import inverse_sigmoid


def refine_boxes(delta: Tensor, reference: Tensor) -> Tensor:
    """Move `reference` by `delta` in logit space.

    Args:
        delta: (..., 4), what a box head predicts; any float dtype.
        reference: (..., 4), cxcywh in [0, 1].

    Returns:
        (..., 4), cxcywh in [0, 1], at least float32: a box is a coordinate, and half precision
        cannot tell neighbouring pixels of a large image apart.
    """
    dtype = torch.promote_types(reference.dtype, torch.float32)
    return (delta.to(dtype) + inverse_sigmoid(reference.to(dtype))).sigmoid()
