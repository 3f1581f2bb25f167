"""Reading and writing weights and training state."""

from .checkpointer import Checkpointer, CheckpointWriteError
from .errors import CheckpointError, DamagedCheckpointError
from .hub import upload_to_hub
from .loading import load_weights
from .mmdet_config import cfg_options, other_sizes
from .reading import local_checkpoint, read_checkpoint
from .report import LoadReport
from .settings import as_overrides
from .writing import FORMATS, write_weights

__all__ = [
    "FORMATS",
    "CheckpointError",
    "CheckpointWriteError",
    "Checkpointer",
    "DamagedCheckpointError",
    "LoadReport",
    "as_overrides",
    "cfg_options",
    "load_weights",
    "local_checkpoint",
    "other_sizes",
    "read_checkpoint",
    "upload_to_hub",
    "write_weights",
]
