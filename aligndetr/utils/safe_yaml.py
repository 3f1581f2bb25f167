"""YAML from anywhere as plain values, in bounded time and memory.

PyYAML's safe loader runs no code, but a short text can still hang it or what comes after it:
aliases multiply without end, numbers may have millions of digits, and it reads some 50 KB a second.
"""

import os
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 1 << 18
"""A config has 10 KB, the data.yaml of a thousand classes 30."""

MAX_VALUES = 20_000
"""Keys and values together, aliases counted as what they stand for."""

MAX_DEPTH = 100
MAX_DIGITS = 100


class PlainLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which gives up on what no config or data.yaml holds."""

    def __init__(self, stream: Any):
        super().__init__(stream)
        self._num_nodes = 0

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        self._num_nodes += 1
        if self._num_nodes > MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES} values")
        return super().compose_node(parent, index)

    def fetch_flow_collection_start(self, token_class: type) -> None:
        if self.flow_level >= MAX_DEPTH:  # each level costs the scanner more than the last
            raise ValueError("nested too deeply")
        super().fetch_flow_collection_start(token_class)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        _check_digits(node)
        return super().construct_yaml_int(node)

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        _check_digits(node)
        return super().construct_yaml_float(node)


for _kind in ("int", "float"):
    _function = getattr(PlainLoader, f"construct_yaml_{_kind}")
    PlainLoader.add_constructor(f"tag:yaml.org,2002:{_kind}", _function)


def load_yaml(text: str, loader: type[yaml.SafeLoader] = PlainLoader) -> Any:
    """The value that `text` holds.

    Args:
        loader: `PlainLoader`, or a class made of it that knows more.

    Raises:
        ValueError: not YAML, a tag that the loader does not know, or larger than a setting is.
    """
    if len(text) > MAX_BYTES:
        raise ValueError(_too_large(len(text)))
    try:
        value = yaml.load(text, Loader=loader)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except Exception as error:  # PyYAML raises anything on values that contradict their tag
        if isinstance(error, yaml.YAMLError | ValueError):
            raise ValueError(str(error)) from error
        raise ValueError(f"not YAML ({type(error).__name__}: {error})") from error
    _check_count(value)
    return value


def read_yaml_text(path: str | os.PathLike) -> str:
    """The text of a YAML file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is larger than a setting is, or not UTF-8.
    """
    size = os.path.getsize(path)
    if size > MAX_BYTES:
        raise ValueError(_too_large(size))
    return Path(path).read_text(encoding="utf-8")


def _check_digits(node: yaml.Node) -> None:
    if len(node.value) > MAX_DIGITS:
        raise ValueError(f"a number of {len(node.value)} digits")


def _check_count(value: Any) -> None:
    """Aliases make one list stand in many places; what holds itself has no end."""
    pending, count = [value], 0
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            pending += [part for pair in item.items() for part in pair]
        elif isinstance(item, list | tuple | set):
            pending += item
        count += 1
        if count + len(pending) > MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES} values, aliases counted in full")


def _too_large(size: int) -> str:
    return f"{size} bytes are more than the {MAX_BYTES} that settings may have"
