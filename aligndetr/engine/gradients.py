"""Norms of gradients: computed once, for the log, for clipping, and to see that they are finite.

`torch.nn.utils.clip_grad_norm_` in two halves, with the same result to the last bit. (torch has
such halves since 2.6, but they do not give the norm of each gradient.)
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

CLIP_ARGUMENTS = ("max_norm", "norm_type")


def check_clip_arguments(arguments: Mapping[str, float]) -> None:
    """Raise a ValueError unless these say how to clip.

    A `max_norm` below 0 would turn the gradients round, 0 would leave none.
    """
    unknown = sorted(arguments.keys() - set(CLIP_ARGUMENTS))
    if unknown or "max_norm" not in arguments:
        raise ValueError(
            f"`train.clip_grad.params` (={dict(arguments)}) must hold `max_norm` and may hold "
            f"`norm_type`" + (f"; {unknown} have no effect here" if unknown else "")
        )
    for name in CLIP_ARGUMENTS:
        value = arguments.get(name, 2)
        is_number = type(value) in (int, float) or (name == "norm_type" and value == "inf")
        if not is_number or not float(value) > 0:
            raise ValueError(
                f"`train.clip_grad.params.{name}` (={value!r}) must be a number greater than 0; "
                "for gradients as they are, set train.clip_grad.enabled=False"
            )


def gradient_norms(
    parameters: Sequence[nn.Parameter], norm_type: float = 2.0
) -> tuple[Tensor, Tensor]:
    """Of parameters that have a gradient: the norm of each, (N,), and of all together, 0-d."""
    norms = torch.stack(torch._foreach_norm(_gradients(parameters), float(norm_type)))
    return norms, torch.linalg.vector_norm(norms, float(norm_type))


def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float, norm: Tensor) -> None:
    """Bring gradients whose norm is `norm`, 0-d, to at most `max_norm`, without a wait."""
    factor = (float(max_norm) / (norm + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(_gradients(parameters), factor)


def _gradients(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]
