"""Configs as plain YAML text: no Python tag, no object, and the same config when read again."""

import logging
import os
import re
from collections.abc import Callable
from typing import Any

import yaml
from detectron2.utils.registry import _convert_target_to_string, locate
from omegaconf import DictConfig, OmegaConf, SCMode
from omegaconf.errors import OmegaConfBaseException

from aligndetr.utils.files import atomic_path
from aligndetr.utils.safe_yaml import PlainLoader, load_yaml, read_yaml_text

from .allow_list import check_targets, has_resolver
from .reference_config import (
    add_reference_tags,
    is_reference_config,
    translate_reference_config,
)

CONFIG_FILE = "config.yaml"
"""Name of a run's config in its output directory."""

logger = logging.getLogger(__name__)


class _Loader(PlainLoader):
    """Takes `1e-4` for a number, refuses a key given twice, and reads the authors' configs."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue  # a list as a key is refused by SafeLoader
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key_node.value!r} stands twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, _data):
        return True

    def represent_text(self, text):
        # In any other style PyYAML reads these three line breaks as spaces.
        style = '"' if set(text) & set("\x85\u2028\u2029") else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_text)
add_reference_tags(_Loader)

# YAML 1.1 reads 1e-4 as text. The dumper must know as well, to put quotes around such a text.
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
        list("-+.0123456789"),
    )


def config_to_yaml(cfg: DictConfig) -> str:
    """`cfg` as plain YAML.

    Targets become names, tuples lists; references between keys (`${train.device}`) stay, and
    resolvers (`${oc.env:DATA}`) are replaced by what they give now.

    Raises:
        ValueError: names the key whose value is not text, a number, a bool, null, a list or a
            dict, or whose target has no name to import it by.
    """
    container = OmegaConf.to_container(
        cfg, resolve=False, structured_config_mode=SCMode.INSTANTIATE
    )
    plain = _to_plain(container, "", cfg)
    return yaml.dump(
        plain,
        Dumper=_Dumper,
        sort_keys=False,
        default_flow_style=None,
        allow_unicode=True,
        width=9999,
    )


def config_from_yaml(text: str, source: str = "config") -> DictConfig:
    """Read a config that is data, for example the "config" of a checkpoint.

    Args:
        text: YAML.
        source: what error messages call it.

    Raises:
        ValueError: not YAML, a Python tag, a value that is not plain, or a target that data may
            not name (see `check_targets`). Nothing of it has run then.
    """
    try:
        data = load_yaml(text, _Loader)
        if not isinstance(data, dict):
            raise ValueError(f"it must hold keys and values, not a {type(data).__name__}")
        data = _check_plain(data, "")
        if is_reference_config(data):
            data = translate_reference_config(data)
        check_targets(data)  # before OmegaConf parses what could be a resolver
        return OmegaConf.create(data, flags={"allow_objects": True})
    except RecursionError:
        raise ValueError(f"{source}: nested too deeply for a config") from None
    except (OmegaConfBaseException, ValueError) as error:
        raise ValueError(f"{source}: {error}") from error


def save_config(cfg: DictConfig, path: str | os.PathLike) -> None:
    """Write `cfg` as plain YAML that `load_config` reads again.

    The file appears complete or not at all, and an earlier one stays if `cfg` cannot be saved.
    A config that builds classes outside the allow-list is saved with a warning: only its `.py`
    file can start the same run again.
    """
    text = config_to_yaml(cfg)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    try:
        config_from_yaml(text)
    except ValueError as error:
        logger.warning("%s is a record only and cannot be used as a config: %s", path, error)


def saved_value(path: str | os.PathLike, key: str) -> Any:
    """The value of `key` ("train.seed") in a saved config, None where there is none.

    The config may name classes that only its `.py` file may build.

    Raises:
        ValueError: no YAML, or `key` refers to what is not there.
    """
    try:
        data = load_yaml(read_yaml_text(path))
        # OmegaConf, for the value may be a reference to another key.
        return OmegaConf.select(OmegaConf.create(data if isinstance(data, dict) else {}), key)
    except (OmegaConfBaseException, ValueError) as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from error


def _to_plain(value: Any, key: str, cfg: DictConfig) -> Any:
    """A copy of `value` in plain types, targets first; `key` is where it stands in `cfg`."""
    if isinstance(value, dict):
        return {
            name: _target_name(child, key)
            if name == "_target_" and callable(child)
            else _to_plain(child, f"{key}.{name}" if key else str(name), cfg)
            for name, child in sorted(value.items(), key=lambda item: item[0] != "_target_")
        }
    if isinstance(value, list | tuple):
        return [_to_plain(child, f"{key}.{i}", cfg) for i, child in enumerate(value)]
    if isinstance(value, str) and has_resolver(value):
        value = OmegaConf.select(cfg, key)
        if OmegaConf.is_config(value):
            value = OmegaConf.to_container(value, resolve=True)
    return _check_plain(value, key)


def _target_name(target: Callable, key: str) -> str:
    try:
        name = _convert_target_to_string(target)
        if locate(name) == target:
            return name
    except (AttributeError, ImportError):
        pass
    raise ValueError(
        f"`{key}._target_` is {target!r}, which cannot be saved because no import finds it by "
        "name; move it to the top level of a module"
    )


def _check_plain(value: Any, key: str) -> Any:
    """A copy of `value`, or a ValueError that names the first part of it that is not plain."""
    if isinstance(value, dict):
        for name in value:
            if type(name) not in (str, int):
                raise ValueError(f"`{key}` has the key {name!r}; keys must be text")
        return {
            name: _check_plain(child, f"{key}.{name}" if key else str(name))
            for name, child in value.items()
        }
    if isinstance(value, list):
        return [_check_plain(child, f"{key}.{i}") for i, child in enumerate(value)]
    if value is None or type(value) in (str, int, float, bool):
        return value
    raise ValueError(
        f"`{key}` is {value!r} ({type(value).__name__}), which plain YAML cannot hold; write text, "
        "numbers, lists and dicts, or LazyCall(factory)(...) of something that makes it"
    )
