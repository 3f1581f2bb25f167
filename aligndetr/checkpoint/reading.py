"""Reading weight files as data: nothing in a file may run.

Three formats: `torch.save` files (read with `weights_only=True`), safetensors, and the pickles of
detectron2's model zoo (read by an unpickler that knows arrays and plain containers, see
`array_pickle`).
"""

import logging
import os
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import fields
from typing import Any
from urllib.parse import unquote, urlparse

import numpy as np
import torch
from iopath.common.file_io import get_cache_dir

from aligndetr.utils.downloads import download
from aligndetr.utils.locks import lock

from .array_pickle import load_arrays
from .converted import Converted
from .errors import CheckpointError, DamagedCheckpointError
from .hub import SCHEME as HUB
from .hub import download_from_hub
from .recognising import with_our_names
from .safetensors_files import is_safetensors, read_safetensors
from .torch_files import is_torch, read_torch

PICKLE = b"\x80"  # how pickles of protocol 2 and later begin
LOCAL_SCHEMES = {"", "file"}
REMOTE_SCHEMES = {"detectron2", "http", "https"}
DETECTRON2_URL = "https://dl.fbaipublicfiles.com/detectron2/"

LOCK_WAIT = 3600.0
"""Seconds for another process to download the same file."""

logger = logging.getLogger(__name__)


def local_checkpoint(path: str) -> str:
    """Make sure that a checkpoint exists, download it if need be, and say where it lies.

    Args:
        path: local file, `detectron2://…`, `http(s)://…`, or `hf://user/model` of the Hugging Face
            Hub.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: a scheme we do not know, or the download failed.
    """
    scheme = urlparse(path).scheme
    if scheme == HUB:
        return download_from_hub(path)
    if scheme in REMOTE_SCHEMES:
        return _download(path)
    if scheme not in LOCAL_SCHEMES and not os.path.exists(path):
        raise CheckpointError(
            f"checkpoint {path!r} has the unknown scheme {scheme!r}; give a local file or one of "
            f"{', '.join(f'{s}://' for s in sorted({HUB, *REMOTE_SCHEMES}))}"
        )
    path = os.path.expanduser(path.removeprefix("file://"))  # no shell expands KEY=~/FILE
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"checkpoint {path!r} does not exist (looked in {os.path.abspath(path)!r}); correct "
            '`train.init_checkpoint`, or set it to "" to train from random weights'
        )
    return path


def _download(url: str) -> str:
    """To the cache that detectron2 uses ($FVCORE_CACHE, `~/.torch/iopath_cache`), once."""
    source = url.replace("detectron2://", DETECTRON2_URL, 1)
    address = urlparse(source)
    host = "" if source.startswith(DETECTRON2_URL) else f"/{address.netloc}"
    # As a path of its own, so that no `..` in it leads out of the cache.
    place = os.path.normpath(f"{host}/{unquote(address.path)}").lstrip("/")
    try:
        path = os.path.join(get_cache_dir(), place)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(f"{path}.lock", "a") as file:  # as detectron2 does, which may want it too
            lock(file, lambda: logger.info("Another process downloads %r; waiting", url), LOCK_WAIT)
            return str(download(source, path))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint {url!r} could not be downloaded ({error}). Download it elsewhere and set "
            '`train.init_checkpoint` to the file, or set it to "" to train from random weights.'
        ) from error


def read_checkpoint(path: str) -> dict[str, Any]:
    """Read a local weight file of any known kind, which is told by its content.

    Args:
        path: a file of `torch.save` (a dict with the key "model" or "state_dict", or a bare state
            dict), of safetensors, or a pickle of detectron2's model zoo.

    Returns:
        {"model": {our name: tensor}, …}: what the file holds beside the weights comes along.
        Files of other codebases also get the fields of `Converted`, "source" among them.

    Raises:
        CheckpointError: not such a file, damaged, or it asks for code to be run.
    """
    try:
        content = _reader(path)(path)
    except FileNotFoundError:
        raise
    except Exception as error:  # unpicklers raise anything on a damaged or foreign file
        raise CheckpointError(
            f"checkpoint {path!r} is not readable as data: {str(error) or type(error).__name__}"
        ) from error
    return with_our_names(_with_model(content, path))


def _reader(path: str) -> Callable[[str], Any]:
    """Chosen by the first bytes: names of files mean little."""
    with open(path, "rb") as file:
        head = file.read(32)
    if is_safetensors(head):
        return read_safetensors
    if is_torch(head) or not (head[:1] == PICKLE or path.endswith(".pkl")):
        return _read_torch
    return _read_pickle


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


def _read_pickle(path: str) -> Any:
    with open(path, "rb") as file:
        return _without_our_fields(load_arrays(file))


def _read_torch(path: str) -> Any:
    return _without_our_fields(read_torch(path))


def _without_our_fields(content: Any) -> Any:
    """Only safetensors carry the fields of a conversion; elsewhere they mean something else."""
    if not isinstance(content, dict):
        return content
    ours = {field.name for field in fields(Converted)} - {"model"}
    if "model" not in content and "state_dict" not in content:
        ours = set()  # a bare state dict: all of it are tensors
    return {key: value for key, value in content.items() if key not in ours}


def _with_model(content: Any, path: str) -> dict[str, Any]:
    if isinstance(content, dict) and "model" not in content:
        key = next((key for key in ("state_dict", "blobs") if key in content), None)
        content = {"model": content} if key is None else {**content, "model": content[key]}
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or not model:
        raise CheckpointError(
            f"checkpoint {path!r} holds no weights: expected a dict with the key 'model' or "
            f"'state_dict', or a state dict, but found {type(content).__name__}"
        )
    state = {}
    for name, value in model.items():
        if isinstance(value, (np.ndarray, np.generic)) and value.dtype != object:
            value = torch.tensor(value.astype(value.dtype.newbyteorder("=")))
        if not isinstance(value, torch.Tensor):
            raise CheckpointError(
                f"checkpoint {path!r}: {name!r} is a {type(value).__name__}, expected a tensor. "
                f"The file's keys begin with {list(model)[:5]}."
            )
        state[name] = value
    _check_class_names(content.get("class_names"), path)
    return {**content, "model": state}


def _check_class_names(names: Any, path: str) -> None:
    is_list = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    if names is not None and not is_list:
        raise CheckpointError(
            f"checkpoint {path!r}: 'class_names' is a {type(names).__name__}, expected a list of "
            "texts"
        )
