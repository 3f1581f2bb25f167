"""Reading and writing weights and training state."""

from .checkpointer import Checkpointer, CheckpointWriteError
from .loading import LoadReport, load_weights
from .reading import CheckpointError, DamagedCheckpointError, local_checkpoint, read_checkpoint

__all__ = [
    "CheckpointError",
    "CheckpointWriteError",
    "Checkpointer",
    "DamagedCheckpointError",
    "LoadReport",
    "load_weights",
    "local_checkpoint",
    "read_checkpoint",
]
