"""Compiles cpp_kernels.cpp once per machine, keeps the library and loads it.

The library stands in torch's folder for extensions ($TORCH_EXTENSIONS_DIR), under a hash of all
that it depends on. It is built beside its place and moved there when it has been loaded: a build
that was cut short leaves nothing that a later run would take for a library.
"""

import contextlib
import functools
import hashlib
import importlib
import logging
import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import torch
from torch.utils.data import get_worker_info

from aligndetr.utils.locks import lock

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("cpp_kernels.cpp")
NAME = "aligndetr_cpp"  # of the library, and of its operators in torch.ops
# No -ffast-math: NaN must stay NaN. No contraction: positions need grid_sample's rounding.
COMPILER_FLAGS = [
    *("-O3", "-march=native", "-fopenmp"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"),
]
# How long a process waits for another one's build before it goes on without.
WAIT_SECONDS = 600


@functools.cache  # one attempt per process
def obstacle() -> str | None:
    """Make the operators available, compiling them if this machine has not yet.

    Returns:
        None when they are loaded, else why they cannot be: a phrase that follows "backend
        'cpp'". Nothing is raised, whatever goes wrong: a faster implementation is no reason
        to end a run.
    """
    if sys.platform != "linux":
        return f"is built on Linux only, this is {sys.platform}"
    try:
        _load()
    except _CannotBuild as refusal:
        return str(refusal)
    except Exception as error:
        return f"could not be compiled or loaded: {_essence(str(error) or repr(error))}"
    return None


def operators():
    """The namespace with `forward` and `backward`; `obstacle()` must have been None."""
    return getattr(torch.ops, NAME)


class _CannotBuild(Exception):
    """The reason, as `obstacle` returns it."""


def _load() -> None:
    library = library_path()
    if library.exists():
        torch.ops.load_library(library)
        return
    if get_worker_info() is not None:
        raise _CannotBuild("is not compiled inside a data loading worker")
    library.parent.mkdir(parents=True, exist_ok=True)
    with _turn(library.with_suffix(".lock")):
        if library.exists():  # built by the process that had the turn before
            torch.ops.load_library(library)
        else:
            _build(library)


def _cpp_extension() -> ModuleType:
    """`torch.utils.cpp_extension`, imported where needed: it takes half a second."""
    torchs_logger = logging.getLogger("torch.utils.cpp_extension")
    level = torchs_logger.level
    torchs_logger.setLevel(logging.ERROR)  # it warns of a missing GPU, and this is for the CPU
    try:
        return importlib.import_module("torch.utils.cpp_extension")
    finally:
        torchs_logger.setLevel(level)


def is_to_be_compiled() -> bool:
    """Whether `obstacle` would compile, asked without doing it."""
    return sys.platform == "linux" and not library_path().exists()


def library_path() -> Path:
    """Where this machine's library stands, or will."""
    root = os.environ.get("TORCH_EXTENSIONS_DIR") or _cpp_extension().get_default_build_root()
    # -march=native: a library is for one kind of CPU, and home folders are shared by many.
    parts = [SOURCE.read_text(encoding="utf-8"), torch.__version__, *COMPILER_FLAGS, _cpu()]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return Path(root) / f"aligndetr_ms_deform_attn_{digest[:16]}" / f"{NAME}.so"


def _cpu() -> str:
    """Architecture and instruction sets."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    instructions = (line for line in lines if line.lower().startswith(("flags", "features")))
    return f"{platform.machine()} {next(instructions, '')}"


@contextlib.contextmanager
def _turn(path: Path) -> Iterator[None]:
    """One process at a time."""
    with path.open("w") as file:
        try:
            lock(
                file,
                lambda: logger.info("Waiting for another process that compiles %s", SOURCE.name),
                WAIT_SECONDS,
            )
        except TimeoutError:
            raise _CannotBuild(
                f"waited {WAIT_SECONDS} s for another process to compile it ({path})"
            ) from None
        yield


def _build(library: Path) -> None:
    """Compile and load, then move the library to its place."""
    cpp_extension = _cpp_extension()
    compiler = os.environ.get("CXX") or "c++"
    if shutil.which(shlex.split(compiler)[0]) is None:
        raise _CannotBuild(f"needs a C++ compiler, and there is no {compiler!r} (variable CXX)")
    if not cpp_extension.is_ninja_available():
        raise _CannotBuild("needs ninja on the PATH to be compiled (`pip install ninja`)")
    logger.info(
        "Compiling %s for this CPU: takes up to half a minute, once per machine; kept in %s",
        SOURCE.name,
        library.parent,
    )
    start = time.monotonic()
    folder = library.with_name("build")
    shutil.rmtree(folder, ignore_errors=True)  # of a process that died: this one has the turn
    folder.mkdir()
    try:
        cpp_extension.load(
            NAME,
            [str(SOURCE)],
            extra_cflags=COMPILER_FLAGS,
            extra_ldflags=["-fopenmp"],
            build_directory=str(folder),
            is_python_module=False,
        )
        (built,) = folder.glob("*.so")  # a second try in one process gets a version in its name
        built.replace(library)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    logger.info("Compiled %s in %.0f s", SOURCE.name, time.monotonic() - start)


def _essence(message: str) -> str:
    """The line of a compiler's output that says what is wrong."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return next((line for line in lines if "error:" in line), lines[0])
