"""That `train` and `dataset` of a config have no key that nothing reads: a typo, in a file."""

import copy
import re
from typing import Any

from omegaconf import DictConfig, OmegaConf

from .key_names import check_key
from .shared import get_config

# Groups that may be null: the tracker is off, or gets no arguments.
NULLABLE = ("train.wandb", "train.wandb.params", "train.mlflow", "train.mlflow.params")


def check_known_keys(cfg: DictConfig) -> None:
    """Raise ValueError if `train` or `dataset` has a key that nothing reads.

    A `dataset` of the user's own is left alone: its loaders refer to none of our keys. Beside
    ours, keys are fine that another part refers to.
    """
    _check_part(cfg, "train", get_config("common/train.py").train)
    ours = get_config("common/data/coco.py").dataset
    if not _references(cfg.dataloader) & set(ours):
        return
    ours.update({key: None for key in _references(cfg) - set(ours)})
    _check_part(cfg, "dataset", ours)


def _check_part(cfg: DictConfig, part: str, known: DictConfig) -> None:
    """Raise ValueError if `part` of `cfg` has a key that `known` lacks, or no group where it has.

    Keys may be missing. Those of a `params` are arguments of a function, checked by its caller.

    Args:
        cfg: the whole config.
        part: a key of the top level.
        known: a group with all keys that there are, at every level.
    """
    complete = copy.deepcopy(cfg)  # where else to look for what was meant
    complete[part] = known
    _check_group(cfg, complete, part)


def _check_group(cfg: DictConfig, complete: DictConfig, path: str) -> None:
    group, known = OmegaConf.select(cfg, path), OmegaConf.select(complete, path)
    if group is None and path in NULLABLE:
        return
    if not isinstance(group, DictConfig):
        raise ValueError(f"`{path}` (={group!r}) must be a group, with the keys {sorted(known)}")
    if path.endswith(".params"):
        return
    for name in group:
        check_key(complete, path, str(name), known, None)
    for name, child in known.items():
        if isinstance(child, DictConfig) and name in group.keys():  # noqa: SIM118 - references too
            _check_group(cfg, complete, f"{path}.{name}")


def _references(part: Any) -> set[str]:
    """Keys of `dataset` that this part of a config refers to."""
    if not OmegaConf.is_config(part):
        return set()
    text = str(OmegaConf.to_container(part, resolve=False))
    return set(re.findall(r"\$\{\.*dataset\.(\w+)", text))
