"""Files of `torch.save`, read with `weights_only=True`: tensors and plain containers.

Checkpoints in the middle of an mmengine training also hold its log, as objects of a class of
mmengine's with numpy arrays in them. In their place come objects that can do nothing, and are then
left out: the weights beside them are as plain as anyone's.
"""

import os
import pickle
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

ZIP = b"PK\x03\x04"
OLD_FORMAT = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""How `torch.save` wrote before torch 1.6, and mmdetection still publishes: a pickled number."""


class _Inert:
    """Takes whatever it is given and does nothing."""

    def __new__(cls, *_: Any) -> "_Inert":
        return object.__new__(cls)

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


_LOG_OF_MMENGINE = (
    ("mmengine.logging.history_buffer", "HistoryBuffer"),
    ("builtins", "getattr"),  # names the methods of the class before; ours has none
    ("__builtin__", "getattr"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    *(
        (f"numpy.{core}.multiarray", name)
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    ),
)
_STAND_INS = [type(name, (_Inert,), {"__module__": module}) for module, name in _LOG_OF_MMENGINE]


def is_torch(head: bytes) -> bool:
    """Whether a file with these first bytes is one of `torch.save`."""
    return head.startswith((ZIP, OLD_FORMAT))


def read_torch(path: str) -> Any:
    """What `torch.save` wrote, on the CPU.

    Raises:
        pickle.UnpicklingError: the file is not one, or asks for more than data.
        ValueError: its parts are compressed.
    """
    _refuse_compressed(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not re.search(r"GLOBAL (mmengine|numpy|builtins|getattr)", str(error)):
            raise _explained(error) from error
    try:
        with _known_to_torch(_STAND_INS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _explained(error) from error
    return _plain(content)


def _refuse_compressed(path: str) -> None:
    """torch stores, and nothing else; what is compressed may unpack to more than the memory."""
    if not zipfile.is_zipfile(path):
        return  # of torch before 1.6, or nothing of torch's
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
    if not stored or sum(entry.file_size for entry in entries) > os.path.getsize(path):
        raise ValueError("its parts are compressed, or larger than the file; torch writes neither")


@contextmanager
def _known_to_torch(classes: list[Any]) -> Iterator[None]:
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals(classes)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _plain(value: Any) -> Any:
    """Without the entries of dicts that hold stand-ins."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if not isinstance(item, _Inert)}
    return value


def _explained(error: pickle.UnpicklingError) -> pickle.UnpicklingError:
    """In our words: torch's advise to switch the protection off."""
    asked_for = re.search(r"GLOBAL ([\w.]+)", str(error))
    what = f"it asks for `{asked_for[1]}`" if asked_for else "it is not a file of torch.save"
    return pickle.UnpicklingError(
        f"{what}; only tensors, numbers, strings and containers are accepted"
    )
