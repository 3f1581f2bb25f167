"""Arguments that do not fit, told as the part of the config that holds them."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omegaconf.errors import OmegaConfBaseException

from .build import build_hooks, build_model, build_model_ema, build_optimizer

MISFITS = (TypeError, AttributeError, IndexError, KeyError, OmegaConfBaseException)
"""How a constructor that does not check its arguments fails for one of a wrong kind."""

BUILDERS = {
    build_model: "model",
    build_optimizer: "optimizer",
    build_model_ema: "train.model_ema",
    build_hooks: "train.hooks",
}
"""What each of them builds, by its key."""


@contextmanager
def naming_the_part(part: str = "") -> Iterator[None]:
    """Turn misfits into a ValueError of one line that names the part that was being built.

    Args:
        part: its key; "": known by the builder that was running, if any was.
    """
    try:
        yield
    except MISFITS as error:
        running = {frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)}
        found = (key for build, key in BUILDERS.items() if build.__code__ in running)
        key = part or next(found, "")
        what = f"`{key}`" if key else "the config"
        said = " ".join(str(error).split())
        raise ValueError(
            f"{what} holds a value that does not fit: {type(error).__name__}: {said} "
            f"({_place(error)}); correct it in the config file or by an override"
        ) from error


def _place(error: BaseException) -> str:
    """File and line, for those who wrote the class: the last one outside of omegaconf."""
    frames = traceback.extract_tb(error.__traceback__)
    outside = [frame for frame in frames if "omegaconf" not in Path(frame.filename).parts]
    last = (outside or frames)[-1]
    return f"{last.filename}, line {last.lineno}"
