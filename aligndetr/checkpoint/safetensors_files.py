"""Files of safetensors: tensors and texts, in a format that can hold nothing else.

Beside the weights stand, as texts, the config (YAML), class names and preprocessing (JSON): all
that a detector needs.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from aligndetr import __version__
from aligndetr.utils.files import atomic_path

from .aliases import without_aliases

TEXTS = ("config", "source")
"""Entries of a checkpoint that are texts already; others become JSON."""

PLAIN = {
    "class_names": list,
    "preprocessing": dict,
    "settings": dict,
    "training": dict,
    "filled": list,
    "dropped": list,
}
"""Entries that are JSON, and what they are; lists are of texts."""


def is_safetensors(head: bytes) -> bool:
    """Whether a file with these first bytes is one: a length, then JSON."""
    return len(head) > 8 and head[8:9] == b"{"


def read_safetensors(path: str | os.PathLike) -> dict[str, Any]:
    """Weights under "model", and what else our files hold.

    Raises:
        safetensors.SafetensorError: the header does not describe the file.
        ValueError: an entry is no JSON, or of another kind.
    """
    with safe_open(path, framework="pt", device="cpu") as file:
        names = file.keys()
        content: dict[str, Any] = {"model": {name: file.get_tensor(name) for name in names}}
        metadata = file.metadata() or {}
    content |= {key: metadata[key] for key in TEXTS if key in metadata}
    return content | {key: _parsed(metadata[key], key) for key in PLAIN if key in metadata}


def _parsed(text: str, key: str) -> Any:
    value = json.loads(text)
    is_text = [isinstance(item, str) for item in value] if isinstance(value, list) else []
    if not isinstance(value, PLAIN[key]) or not all(is_text):
        raise ValueError(f"its {key!r} is not the {PLAIN[key].__name__} that is expected")
    return value


def write_safetensors(path: str | os.PathLike, checkpoint: Mapping[str, Any]) -> None:
    """Write a checkpoint's weights, config, class names and preprocessing.

    Heads are written once, since they are one tensor under two names.

    Args:
        path: appears when it is whole.
        checkpoint: as `read_checkpoint` returns it; optimizer and other state are left out.
    """
    metadata = {"format": "pt", "aligndetr": __version__}
    metadata |= {key: checkpoint[key] for key in TEXTS if checkpoint.get(key)}
    metadata |= {key: json.dumps(checkpoint[key]) for key in PLAIN if checkpoint.get(key)}
    state = {name: _own(tensor) for name, tensor in without_aliases(checkpoint["model"]).items()}
    with atomic_path(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # as any file has it here; save_file's only its owner reads
        save_file(state, temporary, metadata=metadata)
        temporary.chmod(mode)


def _own(tensor: Tensor) -> Tensor:
    """A copy, dense and in row order: the format refuses storage that tensors share, and tied
    weights share theirs. Each is written whole."""
    return tensor.detach().cpu().contiguous().clone()
