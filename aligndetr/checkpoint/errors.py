"""What is wrong with a weight file."""


class CheckpointError(ValueError):
    """A weight file cannot be used: unreadable, unsafe, or not made for this model."""


class DamagedCheckpointError(CheckpointError):
    """A weight file is cut short, or not what was written."""
