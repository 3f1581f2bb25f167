"""Reading and writing weights and training state."""

from .checkpointer import Checkpointer, CheckpointWriteError
from .loading import load_weights
from .reading import CheckpointError, DamagedCheckpointError, local_checkpoint, read_checkpoint
from .report import LoadReport
from .writing import FORMATS, write_weights

__all__ = [
    "FORMATS",
    "CheckpointError",
    "CheckpointWriteError",
    "Checkpointer",
    "DamagedCheckpointError",
    "LoadReport",
    "load_weights",
    "local_checkpoint",
    "read_checkpoint",
    "write_weights",
]
