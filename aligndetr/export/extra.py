"""Libraries of the extra `export`, imported where they are used."""

import importlib
from types import ModuleType


def require(name: str) -> ModuleType:
    """Import a module of the extra `export`, or say how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"{name.split('.')[0]} is not installed; pip install 'aligndetr[export]'"
        ) from error
