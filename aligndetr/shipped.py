"""Words of a command line: the experiments that are shipped, by their bare names, and overrides.

Imports nothing heavy.

In a clone and in an installed wheel, `projects` lies beside `aligndetr`.
"""

import os
import re
from pathlib import Path

PROJECTS = Path(__file__).resolve().parents[1] / "projects"
CONFIGS = [PROJECTS / name / "configs" for name in ("aligndetr", "align_dab_detr")]

# Keys have dots or indices, which the names of shipped configs (`aligndetr_k=2_r50_4scale_12ep`)
# have not.
_OVERRIDE = re.compile(r"\w+(\.\w+|\[\d+\])+=")


def is_override(word: str) -> bool:
    """Whether a word has the form of `train.device=cpu` or `a.list[0]=1`."""
    return _OVERRIDE.match(word) is not None


def find_config(name: str | os.PathLike) -> str:
    """The config file that `name` means: a path, or the bare name of a shipped config.

    A name without suffix (`aligndetr_demo`, `ladder/r50_1_dino`) that is no file here is looked up
    in `CONFIGS`, so that it works wherever AlignDETR is installed. Whether a path with a suffix
    exists is not asked.

    Raises:
        ValueError: a bare name that is not shipped; lists those that are.
    """
    name = os.fspath(name)
    if not name or Path(name).suffix or Path(name).exists():
        return name
    shipped = [folder / f"{name}.py" for folder in CONFIGS if (folder / f"{name}.py").is_file()]
    if not shipped:
        paths = (path.relative_to(folder) for folder in CONFIGS for path in folder.rglob("*.py"))
        known = ", ".join(sorted(path.with_suffix("").as_posix() for path in paths))
        raise ValueError(
            f"{name!r} is no file and no shipped config; give a path that ends in .py or .yaml, or "
            f"one of {known}"
        )
    return str(shipped[0])
