"""`train.deterministic`: two runs of one seed are the same bits, on one machine and software."""

import logging
import os

import torch

logger = logging.getLogger(__name__)


def make_deterministic(device: str, attention: str) -> str:
    """Let this process use deterministic algorithms; to be called before the first use of a GPU.

    An operation that has none does not end the run: torch warns when it meets it, with its name.

    Args:
        device: the model's.
        attention: the implementation of deformable attention that the config names.

    Returns:
        The one to use.
    """
    # cuBLAS reads it when it starts: with room of its own for each stream it is deterministic.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False  # it would choose by time
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    logger.info(
        "Deterministic: the same seed gives the same bits on this machine and software. An "
        "operation that cannot is named by a warning, 'does not have a deterministic "
        "implementation'."
    )
    # On the CPU all of them are; triton has such a mode.
    if torch.device(device).type == "cpu" or attention == "triton":
        return attention
    if attention not in ("auto", "deterministic"):
        logger.warning("train.deterministic=True replaces train.ms_deform_attn=%s", attention)
    return "deterministic"
