"""Activation checkpointing: less memory in training, for one more forward pass."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


def recompute(function: Callable, *args: Any, **kwargs: Any) -> Any:
    """`function(*args, **kwargs)`, of a module or another, keeping its inputs only.

    What lies between is computed again in the backward pass, with the same random numbers and
    under the same autocast, so losses and gradients are the same bit for bit (Chen et al.,
    "Training Deep Nets with Sublinear Memory Cost"). Without gradients it is a plain call.
    """
    if not torch.is_grad_enabled():
        return function(*args, **kwargs)
    return checkpoint(function, *args, use_reentrant=False, **kwargs)
