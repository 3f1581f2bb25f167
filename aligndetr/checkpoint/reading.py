"""Reading weight files as data: nothing in a file may run.

Two formats: `torch.save` files (read with `weights_only=True`) and the pickles of detectron2's
model zoo (read by an unpickler that knows arrays and plain containers, and nothing else).
"""

import os
import pickle
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlparse

import numpy as np
import torch
from detectron2.utils.file_io import PathManager

LOCAL_SCHEMES = {"", "file"}
REMOTE_SCHEMES = {"detectron2", "http", "https"}


class CheckpointError(ValueError):
    """A weight file cannot be used: unreadable, unsafe, or not made for this model."""


class DamagedCheckpointError(CheckpointError):
    """A weight file is cut short, or not what was written."""


def local_checkpoint(path: str) -> str:
    """Make sure that a checkpoint exists, download it if need be, and say where it lies.

    Args:
        path: local file, `detectron2://…` or `http(s)://…`.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: a scheme we do not know, or the download failed.
    """
    scheme = urlparse(path).scheme
    if scheme in REMOTE_SCHEMES:
        return _download(path)
    if scheme not in LOCAL_SCHEMES and not os.path.exists(path):
        raise CheckpointError(
            f"checkpoint {path!r} has the unknown scheme {scheme!r}; give a local file or one of "
            f"{', '.join(f'{s}://' for s in sorted(REMOTE_SCHEMES))}"
        )
    path = os.path.expanduser(path.removeprefix("file://"))  # no shell expands KEY=~/FILE
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"checkpoint {path!r} does not exist (looked in {os.path.abspath(path)!r}); correct "
            '`train.init_checkpoint`, or set it to "" to start from random weights'
        )
    return path


def _download(url: str) -> str:
    try:
        return PathManager.get_local_path(url)
    except OSError as error:
        raise CheckpointError(
            f"checkpoint {url!r} could not be downloaded ({error}). Download it elsewhere and set "
            '`train.init_checkpoint` to the file, or set it to "" to start from random weights.'
        ) from error


def read_checkpoint(path: str) -> dict[str, Any]:
    """Read a local weight file.

    Args:
        path: a `.pkl` of detectron2's model zoo, else a file that `torch.save` wrote: a dict with
            the key "model", or a bare state dict.

    Returns:
        {"model": {name: tensor}, …}: what the file holds beside "model" comes along.

    Raises:
        CheckpointError: not such a file, damaged, or it asks for code to be run.
    """
    read = _read_pickle if path.endswith(".pkl") else _read_torch
    try:
        content = read(path)
    except FileNotFoundError:
        raise
    except Exception as error:  # unpicklers raise anything on a damaged or foreign file
        raise CheckpointError(
            f"checkpoint {path!r} is not readable as data: {str(error) or type(error).__name__}"
        ) from error
    return _with_model(content, path)


def check_intact(path: str) -> None:
    """Read a file of `torch.save` and compare its checksums, which `torch.load` does not do.

    Raises:
        DamagedCheckpointError: it is cut short, or a bit of it has changed.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except FileNotFoundError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise DamagedCheckpointError(f"checkpoint {path!r} is damaged: {error}") from error
    if damaged is not None:
        raise DamagedCheckpointError(f"checkpoint {path!r} is damaged: checksum of {damaged!r}")


def _read_torch(path: str) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own text advises to switch the protection off.
        asked_for = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"it asks for `{asked_for[1]}`" if asked_for else "it is not a file of torch.save"
        raise pickle.UnpicklingError(
            f"{what}; only tensors, numbers, strings and containers are accepted"
        ) from error


def _read_pickle(path: str) -> Any:
    with open(path, "rb") as file:
        return _ArrayUnpickler(file, encoding="latin1").load()


def _with_model(content: Any, path: str) -> dict[str, Any]:
    if isinstance(content, dict) and "model" not in content:
        content = {"model": content}
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or not model:
        raise CheckpointError(
            f"checkpoint {path!r} holds no weights: expected a dict with the key 'model', or a "
            f"state dict, but found {type(content).__name__}"
        )
    state = {}
    for name, value in model.items():
        if isinstance(value, (np.ndarray, np.generic)) and value.dtype != object:
            value = torch.tensor(value)
        if not isinstance(value, torch.Tensor):
            raise CheckpointError(
                f"checkpoint {path!r}: {name!r} is a {type(value).__name__}, expected a tensor. "
                f"The file's keys begin with {list(model)[:5]}."
            )
        state[name] = value
    return {**content, "model": state}


def _latin1_bytes(text: str, encoding: str) -> bytes:
    """Stands in for `_codecs.encode`, with which Python 3 writes bytes to old pickles."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding!r}; only 'latin1' is expected")
    return text.encode("latin1")


def _array_rebuilders() -> dict[tuple[str, str], Callable]:
    """The functions by which numpy's arrays and scalars are pickled, under both their names.

    numpy is asked itself: their module was renamed in numpy 2.
    """
    functions = (
        np.empty(0).__reduce__()[0],
        np.empty(1).__reduce_ex__(5)[0],
        np.float32(0).__reduce__()[0],
    )
    return {
        (f"numpy.{core}.{function.__module__.rpartition('.')[2]}", function.__name__): function
        for core in ("core", "_core")
        for function in functions
    }


class _ArrayUnpickler(pickle.Unpickler):
    """Knows numpy arrays; containers, strings and numbers need no permission in a pickle."""

    ALLOWED: Mapping[tuple[str, str], Callable] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("collections", "OrderedDict"): dict,
        ("_codecs", "encode"): _latin1_bytes,
        **_array_rebuilders(),
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for `{module}.{name}`, which could run code; only arrays, numbers, "
                "strings and containers are accepted"
            ) from None
