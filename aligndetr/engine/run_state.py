"""What a run needs to go on as if nothing had happened, besides model and optimizer."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from detectron2.utils import comm

from aligndetr.utils.random_states import get_random_states, set_random_states

logger = logging.getLogger(__name__)

RUN_KEY = "run_state"
"""Where a checkpoint holds it."""


def gather_run_state(data_loader: Any, device: torch.device) -> dict[str, Any]:
    """Position in the data and random states of every rank. A collective: all ranks must call it.

    Args:
        data_loader: one with `state_dict`, or its position is not known.

    Returns:
        Tensors and plain values; complete on the main process only.
    """
    states = comm.gather(get_random_states(device))
    position = data_loader.state_dict() if hasattr(data_loader, "state_dict") else None
    return {"world_size": comm.get_world_size(), "random_states": states, "data": position}


def restore_run_state(
    state: Mapping[str, Any] | None, data_loader: Any, device: torch.device
) -> None:
    """Go on where `gather_run_state` was called; warnings say what is not exact.

    Args:
        state: of the checkpoint; None: it has none.
        data_loader: has not been iterated.
    """
    if state is None:
        logger.warning(
            "The checkpoint is of an earlier version and does not say where the data and the "
            "random generators stood; both start anew"
        )
        return
    if state["data"] is not None and hasattr(data_loader, "load_state_dict"):
        data_loader.load_state_dict(state["data"])
    else:
        logger.warning(
            "%s cannot say where it stood (no `state_dict`), so its data starts anew; "
            "aligndetr.data.build_detection_train_loader can",
            type(data_loader).__name__,
        )
    if state["world_size"] == comm.get_world_size():
        set_random_states(state["random_states"][comm.get_rank()], device)
    else:
        logger.warning(
            "The run had %d processes and has %d now: its random numbers (denoising, dropout) and "
            "the order of sums are others than without the interruption",
            state["world_size"],
            comm.get_world_size(),
        )
