"""Which trainings a sweep has: config files, times the values of each key that has several."""

import argparse
import copy
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from aligndetr.config import apply_overrides, load_config
from aligndetr.shipped import is_override

SEED = "train.seed"
"""The key whose values are repetitions of one experiment, not experiments of their own."""


@dataclass(frozen=True)
class Run:
    """One training of a sweep."""

    name: str  # of its folder
    config_file: str
    overrides: tuple[str, ...]  # KEY=VALUE, those of all runs among them
    experiment: str  # the name without the seed: runs that share it are repetitions

    def complete_overrides(self, folder: Path) -> list[str]:
        """The overrides with the run's own output folder."""
        return [*self.overrides, f"train.output_dir={folder.as_posix()}"]


def expand(config_files: Sequence[str], overrides: Iterable[str]) -> list[Run]:
    """All combinations, in the order given, the last key changing fastest.

    Args:
        config_files: of `tools/train_net.py`.
        overrides: KEY=VALUE for all runs, or KEY=VALUE,VALUE,... (hydra's syntax, `range(0,3)`
            and `choice(a,b)` among it) for one run each.

    Raises:
        ValueError: a config file or key is wrong, two runs have one name, or `train.output_dir`
            is given, which each run has for itself.
    """
    overrides = list(overrides)
    if any(override.partition("=")[0] == "train.output_dir" for override in overrides):
        raise ValueError("`train.output_dir` is each run's own, below --output; leave it out")
    choices = [_values(override) for override in overrides]
    labels = _labels([o.partition("=")[0] for o, values in zip(overrides, choices) if values[1:]])
    runs = []
    for config_file in config_files:
        for combination in itertools.product(*choices):
            varied = [o for o, values in zip(combination, choices, strict=True) if values[1:]]
            runs.append(_run(config_file, combination, varied, labels))
    names = Counter(run.name for run in runs)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise ValueError(
            f"several runs would be called {twice[0]!r}: config files need different names, and "
            "the values of a key must differ in more than punctuation"
        )
    configs = {config_file: load_config(config_file) for config_file in config_files}
    for run in runs:  # a typo must not show after the first training
        apply_overrides(copy.deepcopy(configs[run.config_file]), run.overrides)
    return runs


def expand_words(words: Iterable[str], find: Callable[[str], str] = str) -> list[Run]:
    """`expand` of a command line, where config files and overrides stand in any order.

    Args:
        words: an override is what `is_override` names one and does not end as a config file does.
        find: gives the path of a config file; may raise `argparse.ArgumentTypeError`.
    """
    words = list(words)
    overrides = [w for w in words if is_override(w) and not w.endswith((".py", ".yaml", ".yml"))]
    try:
        files = [find(word) for word in words if word not in overrides]
    except argparse.ArgumentTypeError as error:
        raise ValueError(str(error)) from error
    return expand(files, overrides)


def _values(override: str) -> list[str]:
    """KEY=VALUE of each value of one override."""
    key, equals, text = override.partition("=")
    if not equals:
        raise ValueError(f"override {override!r} must have the form key=value")
    try:  # under another key: in hydra's a list has no [0]
        parsed = OverridesParser.create().parse_override(f"key={text}")
    except HydraException:  # plain text for `apply_overrides`, which also knows what is wrong
        return [override]
    if not parsed.is_sweep_override():
        return [override]
    return [f"{key}={value}" for value in parsed.sweep_string_iterator()]


def _labels(keys: Sequence[str]) -> dict[str, str]:
    """The last part of each key, or all of it where others end alike."""
    ends = Counter(key.rpartition(".")[2] for key in keys)
    return {key: end if ends[end := key.rpartition(".")[2]] == 1 else key for key in keys}


def _run(
    config_file: str, overrides: Sequence[str], varied: Sequence[str], labels: dict[str, str]
) -> Run:
    parts = {Path(config_file).stem: True}
    for override in varied:
        key, _, value = override.partition("=")
        parts[f"{labels[key]}={value}"] = key != SEED
    return Run(
        name=_file_name(parts),
        config_file=config_file,
        overrides=tuple(overrides),
        experiment=_file_name(part for part, counts in parts.items() if counts),
    )


def _file_name(parts: Iterable[str]) -> str:
    return "__".join(re.sub(r"[^\w.=+-]+", "_", part).strip("_") for part in parts)
