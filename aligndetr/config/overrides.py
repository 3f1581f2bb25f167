"""`key=value` overrides from the command line, in detectron2's (hydra's) syntax, with no typos."""

import re
from collections.abc import Iterable
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf

from .allow_list import check_targets, walk
from .key_names import check_key, locate_target

# Ends of keys that hold paths, also where the config has none yet (`dataset.root`).
_PATHS = ("root", "json", "images")
_INDEX = re.compile(r"\[(\d+)\]")
_KEY = re.compile(r"\w[\w-]*(\.\w[\w-]*)*")


def apply_overrides(cfg: DictConfig, overrides: Iterable[str]) -> DictConfig:
    """Change `cfg` in place, in the order given, and return it.

    A key is a path of names and list indices (`dataloader.train.mapper.augmentation.0.prob=0.5`,
    or `augmentation[0]` as hydra has it).
    Its last part must be a key of the config or an argument of the `_target_` beside it. Values
    are read as hydra reads them: `[3,3,1]`, `{a: 1}`, `null`, `true`, `1e-4`, `"quoted"`,
    `${train.device}`; what hydra cannot read and is no list or dict (`out/k=2 (new)`) is text.
    A dict is merged key by key, unless it brings another `_target_`: then it replaces the old one
    with its arguments. Numbers stay numbers, switches stay switches, groups stay groups.

    Raises:
        ValueError: names the key, its value, and for an unknown key the nearest valid one. Values
            are data: what they may build is limited as in `check_targets`.
    """
    for override in overrides:
        key, value, text = _parse(override)
        part, _, name = key.rpartition(".")
        check_targets({name: value}, root=part)
        _set(cfg, key, value, text)
    return cfg


def _parse(override: str) -> tuple[str, Any, str]:
    """Key, value, and the value as it was typed."""
    if override.startswith("--"):  # detectron2's parser takes all that follows for overrides
        raise ValueError(f"option {override!r} must stand before the first key=value")
    key, equals, text = override.partition("=")
    if not equals:
        raise ValueError(f"override {override!r} must have the form key=value")
    key = _INDEX.sub(r".\1", key)
    override = f"{key}={text}"
    if not _KEY.fullmatch(key):
        raise ValueError(
            f"override {override!r}: {key!r} is not a dotted key. Keys are changed, not added "
            "(+key) or deleted (~key); key=null empties one"
        )
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException as error:
        if text.startswith(("[", "{", "'", '"')) or "${" in text:
            raise ValueError(f"override {override!r} cannot be read: {error}") from error
        return key, text, text
    if parsed.is_sweep_override():
        raise ValueError(
            f"override {override!r} gives several values; write {key}=[...] for a list, or put "
            "quotes around text with a comma or a call in it"
        )
    value = parsed.value()
    for _, part in walk(value, key):
        if not isinstance(part, str | bool | int | float | list | dict | None):
            raise ValueError(f"override {override!r}: {type(part).__name__} is not supported")
    return key, value, text


def _set(cfg: DictConfig, key: str, value: Any, text: str) -> None:
    """Set one key, or several if `value` is a dict for a part that stays what it is."""
    group: Any = _group_of(cfg, key)
    name = _own_name(group, key.rpartition(".")[2])
    old = _get(group, name)
    if isinstance(old, DictConfig):
        if isinstance(value, dict) and not _changes_target(old, value):
            for child, child_value in value.items():
                _set(cfg, f"{key}.{child}", child_value, str(child_value))
            return
        if "_target_" not in old and "_target_" not in group and not _is_interpolation(value):
            raise ValueError(
                f"`{key}` is a group and cannot become {value!r}; set one of its keys "
                f"{[f'{key}.{child}' for child in old]}"
            )
    for path, part in walk(value, key):
        if isinstance(part, dict) and "_target_" in part:
            for argument in part:
                check_key(cfg, path, argument, (), part["_target_"])
    group[name] = _same_kind(key, old, value, text)


def _group_of(cfg: DictConfig, key: str) -> DictConfig | ListConfig:
    """The part of `cfg` that `key` ends in, after checking that it may have such a key."""
    group: Any = cfg
    path = ""
    while True:
        rest = key[len(path) :].lstrip(".")
        name, dot, _ = rest.partition(".")
        if isinstance(group, ListConfig):
            _check_index(group, path, name)
        else:
            check_key(cfg, path, rest, group.keys(), _get(group, "_target_"))
        if not dot:
            return group
        path = f"{path}.{name}" if path else name
        child = _get(group, _own_name(group, name))
        if not OmegaConf.is_config(child):
            raise ValueError(
                f"`{key}` cannot be set because `{path}` is {child!r}, not a group of keys; "
                f"override that, or `{path}` as a whole"
            )
        group = child


def _check_index(group: ListConfig, path: str, name: str) -> None:
    if not (name.isdecimal() and int(name) < len(group)):
        raise ValueError(
            f"`{path}.{name}`: `{path}` is a list of {len(group)}, so {name!r} must be an index "
            f"below {len(group)}; to change its length, override `{path}` as a whole"
        )


def _own_name(group: DictConfig | ListConfig, name: str) -> str | int:
    return int(name) if isinstance(group, ListConfig) else name


def _get(group: Any, name: str | int) -> Any:
    """What stands there in a config: a reference as its text, None where there is nothing."""
    if isinstance(group, DictConfig) and name not in group.keys():  # noqa: SIM118 - see below
        return None  # `name in group` would also be False for a reference to a missing key
    if OmegaConf.is_interpolation(group, name) or OmegaConf.is_missing(group, name):
        plain: Any = OmegaConf.to_container(group, resolve=False)
        return plain[name]
    return group[name]


def _changes_target(old: DictConfig, value: dict) -> bool:
    if "_target_" not in value:
        return False
    return "_target_" not in old or locate_target(value["_target_"]) != locate_target(
        old["_target_"]
    )


def _same_kind(key: str, old: Any, value: Any, text: str) -> Any:
    """`value`, or its text where the config has text (an output_dir called 2024)."""
    if value is None or _is_interpolation(old) or _is_interpolation(value):
        return value
    is_text = isinstance(old, str) or (old is None and key.endswith(_PATHS))
    if is_text and isinstance(value, bool | int | float):
        return text
    if old is not None and isinstance(value, dict) and "_target_" not in value:
        raise ValueError(f"`{key}` (now {old!r}) is no group and cannot become {value!r}")
    if isinstance(old, bool) and not isinstance(value, bool):
        raise ValueError(f"`{key}` is a switch and cannot become {value!r}; write true or false")
    is_number = isinstance(old, int | float) and not isinstance(old, bool)
    if is_number and isinstance(value, bool | str):
        raise ValueError(f"`{key}` is a number (now {old}) and cannot become {value!r}")
    return value


def _is_interpolation(value: Any) -> bool:
    return isinstance(value, str) and "${" in value
