"""Reading and writing weights and training state."""

from .checkpointer import Checkpointer
from .loading import LoadReport, load_weights
from .reading import CheckpointError, local_checkpoint, read_checkpoint

__all__ = [
    "CheckpointError",
    "Checkpointer",
    "LoadReport",
    "load_weights",
    "local_checkpoint",
    "read_checkpoint",
]
