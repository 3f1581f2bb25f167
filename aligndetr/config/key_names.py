"""Which keys a part of a config may and must have, and what was meant by one that it may not."""

import difflib
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from detectron2.utils.registry import locate
from omegaconf import DictConfig, OmegaConf

from .allow_list import walk

# Dicts whose keys are arguments of a function that the config does not name. None: any key,
# because the function (wandb.init) may not be installed.
ARGUMENTS_OF = {
    "train.clip_grad.params": "torch.nn.utils.clip_grad_norm_",
    "train.ddp": "torch.nn.parallel.DistributedDataParallel",
    "train.wandb.params": None,
}

PARTS = ("dataloader", "dataset", "lr_multiplier", "model", "optimizer", "train")
"""Groups that a config may lack by mistake, so that no key of theirs can be set."""


def locate_target(target: str | Callable) -> Callable:
    """The callable itself; in a `.py` config `_target_` usually is it already."""
    return locate(target) if isinstance(target, str) else target


def check_key(cfg: DictConfig, path: str, name: str, keys: Iterable[str], target: Any) -> None:
    """Raise ValueError unless the part of `cfg` at `path` may have a key `name`.

    A target with `**kwargs` takes names that it does not list, but not one that resembles a name
    it does list: that is a typo, and `**kwargs` would swallow it.

    Args:
        cfg: the whole config, searched for what else could have been meant.
        path: dotted path of the part, "" for the top level.
        name: dotted; only its first part is checked, the rest completes the message.
        keys: names that exist there.
        target: what the part calls (a name or a callable), None if it is a plain group.
    """
    first, _, rest = name.partition(".")
    keys = [*keys, "_target_"]
    takes_any, owner = ARGUMENTS_OF.get(path, "") is None, ""
    target = target or ARGUMENTS_OF.get(path)
    if target:
        target = locate_target(target)
        arguments, takes_any = _arguments_of(target)
        keys += arguments
        owner = f" nor an argument of {getattr(target, '__qualname__', target)}"
    similar = difflib.get_close_matches(first, keys, n=1)
    if first in keys or (takes_any and not similar):
        return
    full = f"{path}.{name}" if path else name
    if not path and rest and first in PARTS:
        raise ValueError(
            f"`{full}` cannot be set: the config has no `{first}`; define or import it in the "
            "config file"
        )
    nearest = ".".join(part for part in (path, *similar, rest) if part) if similar else full
    # A group cannot be set, nor a key below what has been misspelt twice.
    if not similar or rest or OmegaConf.is_dict(OmegaConf.select(cfg, nearest)):
        nearest = _nearest_leaf(cfg, nearest)
    raise ValueError(f"`{full}` is no key of the config{owner}; did you mean `{nearest}`?")


def check_arguments(cfg: DictConfig, part: str, complete: bool = True) -> None:
    """Raise ValueError unless what `part` of `cfg` calls takes the arguments that it gets.

    Args:
        part: dotted path of it, which is there.
        complete: the part gets no other arguments later, so those it needs must be there.
    """
    group = OmegaConf.select(cfg, part)
    for path, node in walk(OmegaConf.to_container(group, resolve=False), part):
        if not isinstance(node, dict) or "_target_" not in node:
            continue
        target = locate_target(node["_target_"])
        called = getattr(target, "__qualname__", target)
        arguments, takes_any = _arguments_of(target)
        unknown = [name for name in node if name not in (*arguments, "_target_")]
        if unknown and not takes_any:
            raise ValueError(
                f"`{path}` has {_listed(unknown)}, which {called} does not take"
                + _remedy(path, str(unknown[0]), arguments)
            )
        missing = [name for name in _needed_arguments(target) if name not in node]
        if complete and missing:
            raise ValueError(
                f"`{path}` lacks {_listed(missing)}, which {called} needs; set "
                f"`{path}.{missing[0]}` in the config file"
            )


def _listed(names: Iterable[str]) -> str:
    return " and ".join(f"`{name}`" for name in names)


def _remedy(path: str, name: str, arguments: list[str]) -> str:
    similar = difflib.get_close_matches(name, arguments, n=1)
    if similar:
        return f"; did you mean `{path}.{similar[0]}`?"
    return (
        "; take it out of the config file. To change the target by an override, replace the part "
        f"as a whole: {path}={{_target_: …, …}}"
    )


def _needed_arguments(target: Callable) -> list[str]:
    """Names of the arguments of `target` that have no default."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):  # some built-in callables do not tell
        return []
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p.name for p in parameters if p.kind in by_name and p.default is p.empty]


def _arguments_of(target: Callable) -> tuple[list[str], bool]:
    """Names of the arguments of `target`, and whether it takes others as well."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):  # some built-in callables do not tell
        return [], True
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names = [p.name for p in parameters if p.kind in by_name]
    return names, any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)


def _nearest_leaf(cfg: DictConfig, key: str) -> str:
    """The key of `cfg` most like `key`, groups aside.

    Of those below it, with the same last part, or beside it, if there are any.
    """
    nodes = walk(OmegaConf.to_container(cfg, resolve=False))
    leaves = [path for path, value in nodes if path and not isinstance(value, dict)]
    leaves = [path for path in leaves if not path.endswith("_target_")] or ["(no key at all)"]
    group, _, last = key.rpartition(".")
    same_last = [path for path in leaves if path.rpartition(".")[2] == last]
    beside = [path for path in leaves if path.rpartition(".")[0] == group]
    below = [path for path in leaves if path.startswith(f"{key}.")]
    candidates = below or same_last or beside or leaves
    return difflib.get_close_matches(key, candidates, n=1, cutoff=0)[0]
