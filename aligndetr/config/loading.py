"""Config files from disk."""

import builtins
import difflib
import os
import traceback
from pathlib import Path

from detectron2.config import LazyConfig
from omegaconf import DictConfig

from aligndetr.shipped import find_config
from aligndetr.utils.safe_yaml import read_yaml_text

from .yaml_io import config_from_yaml


def load_config(path: str | os.PathLike) -> DictConfig:
    """Load a config file: `.py` runs as code, `.yaml` and `.yml` are read as data.

    A config.yaml of the authors' code is read as one of ours (see `reference_config`).

    Args:
        path: a file on this machine, or the bare name of a shipped config (`aligndetr_demo`).

    Raises:
        FileNotFoundError: with the most similar file beside it.
        ValueError: no path, a bare name that is not shipped, another suffix, YAML with Python
            tags, or a `_target_` that data may not name (see `check_targets`): nothing of the
            file has run then. Or a `.py` file failed: the message ends with its traceback.
    """
    if not os.fspath(path):
        raise ValueError("no config file is given; --config-file FILE is required")
    path = Path(find_config(path))
    if path.suffix not in (".py", ".yaml", ".yml"):
        raise ValueError(f"config file {str(path)!r} must end in .py, .yaml or .yml")
    if not path.is_file():
        beside = [str(p) for p in path.parent.glob("*") if p.suffix in (".py", ".yaml", ".yml")]
        nearest = difflib.get_close_matches(str(path), beside, n=1, cutoff=0)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise FileNotFoundError(f"config file {str(path)!r} does not exist{hint}")
    if path.suffix == ".py":
        return _run(path)
    try:
        text = read_yaml_text(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return config_from_yaml(text, source=str(path))


def _run(path: Path) -> DictConfig:
    original_import = builtins.__import__
    try:
        return LazyConfig.load(str(path))
    except Exception as error:  # whatever the user's code raises
        frame = error.__traceback__  # from the line of the config on, if it has come to run
        while frame is not None and frame.tb_frame.f_code.co_filename != str(path):
            frame = frame.tb_next
        where = "".join(traceback.format_exception(type(error), error, frame))
        hint = ""
        if isinstance(error, ModuleNotFoundError) and str(error.name).startswith("detrex"):
            hint = "docs/from_detrex.md says what to write in place of detrex's names\n"
        raise ValueError(f"config file {str(path)!r} failed:\n{where}{hint}") from error
    finally:
        builtins.__import__ = original_import  # LazyConfig.load leaves its own after an error
