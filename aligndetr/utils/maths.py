"""Maths shared by the model and its tests."""

from typing import Any

import torch
from torch import Tensor


def inverse_sigmoid(x: Tensor, eps: float = 1e-3) -> Tensor:
    """Logit of `x`, kept finite by holding both `x` and `1 - x` at `eps` or above.

    Numerator and denominator are clamped apart, so between `eps` and `1 - eps` the result is
    the exact logit, outside that range only the larger of the two still carries gradient, and
    none flows where `x` leaves [0, 1]. The default `eps` is the one the published AlignDETR
    weights were trained with: no box logit exceeds log(1 / 0.001) = 6.908 in magnitude.

    Args:
        x: probabilities or normalised coordinates, any shape, floating point. Values outside
            [0, 1] count as 0 or 1, +-inf included; NaN stays NaN.
        eps: smallest value of numerator and denominator, in (0, 0.5).

    Returns:
        Tensor of the shape and dtype of `x`, within [log(eps), -log(eps)].
    """
    x = x.clamp(0, 1)
    return (x.clamp(min=eps) / (1 - x).clamp(min=eps)).log()


def smaller_size(a: int, b: Any) -> Any:
    """`min(a, b)`, which a captured graph computes for each of its inputs anew.

    Args:
        a: an int.
        b: a size of a tensor: an int, or what stands for it while a graph is captured.
    """
    if isinstance(b, Tensor):  # under torch.jit's tracer
        return torch.minimum(torch.tensor(a), b)
    return torch.sym_min(a, b)
