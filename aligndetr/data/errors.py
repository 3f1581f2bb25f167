"""The error of a data set."""


class DatasetError(ValueError):
    """A data set that cannot be used as it is. The message names the thing and the remedy."""
