"""The configs that come with the library."""

from pathlib import Path

from detectron2.config import LazyConfig
from omegaconf import DictConfig

_FOLDER = Path(__file__).parent


def get_config(name: str) -> DictConfig:
    """One of the configs that come with the library, for other configs to build on.

    Args:
        name: path inside `aligndetr/config`, for example "common/train.py".

    Returns:
        A new DictConfig at every call: `get_config("common/train.py").train` is yours to change.
    """
    known = sorted(path.relative_to(_FOLDER).as_posix() for path in _FOLDER.glob("common/**/*.py"))
    if name not in known:
        raise ValueError(f"unknown config {name!r}; choose one of {known}")
    return LazyConfig.load(str(_FOLDER / name))
