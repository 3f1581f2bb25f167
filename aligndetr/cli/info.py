"""Say what this machine and environment have: put it beside a question or a report of an error.

%(prog)s
"""

import importlib
import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator

from .parsing import make_parser

PACKAGES = ("torch", "torchvision", "detectron2", "numpy", "pillow", "omegaconf", "triton")


def main() -> None:
    """Print the report, a fact per line."""
    make_parser(__doc__).parse_args()
    for label, value in _facts():
        print(f"{label:24} {value}")


def _facts() -> Iterator[tuple[str, str]]:
    import aligndetr

    yield "aligndetr", f"{aligndetr.__version__} in {os.path.dirname(aligndetr.__file__)}"
    yield "Python", f"{platform.python_version()} in {sys.prefix}"
    yield "system", platform.platform()
    yield from ((name, _version(name)) for name in PACKAGES)
    yield from _devices()
    yield from _attention()
    yield from _extras()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        pass
    try:  # detectron2 from a folder on the path
        return importlib.import_module(package).__version__
    except (ImportError, AttributeError):
        return "not installed"


def _devices() -> Iterator[tuple[str, str]]:
    import torch

    from aligndetr.utils.cores import available_cores

    cores = f"{available_cores()} of {os.cpu_count()} cores"
    yield "CPU", f"{cores}, {torch.get_num_threads()} threads, {platform.machine()}"
    if not torch.cuda.is_available():
        yield "GPU", f"none that torch can use; torch is built for CUDA {torch.version.cuda}"
    for number in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(number)
        memory = f"{gpu.total_memory / 2**30:.0f} GiB, sm_{gpu.major}{gpu.minor}"
        yield f"cuda:{number}", f"{gpu.name}, {memory}, CUDA {torch.version.cuda}"


def _attention() -> Iterator[tuple[str, str]]:
    """Which implementations of deformable attention can run, and what "auto" takes."""
    import torch

    from aligndetr.layers.ms_deform_attn import cpp_build
    from aligndetr.layers.ms_deform_attn.functional import BACKENDS, choose_backend

    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        for name, backend in BACKENDS.items():
            if name == "cpp" and device == "cpu" and cpp_build.is_to_be_compiled():
                state = "is compiled on first use"  # asking for obstacles would do it now
            else:
                state = backend.obstacle(torch.device(device)) or "can run"
            yield f"attention on {device}", f"{name}: {state}"
        yield f"attention on {device}", f"auto takes {choose_backend('auto', torch.device(device))}"


def _extras() -> Iterator[tuple[str, str]]:
    """What the extras of setup.py ask for, and whether it is there."""
    from packaging.requirements import Requirement

    try:
        requirements = map(Requirement, importlib.metadata.requires("aligndetr") or [])
    except importlib.metadata.PackageNotFoundError:
        yield "extras", "unknown: aligndetr is not installed here, it runs from a folder"
        return
    found: dict[str, list[str]] = {}
    for requirement in requirements:
        if requirement.marker is not None:
            extra = str(requirement.marker).partition("extra == ")[2].strip('"')
            found.setdefault(extra, []).append(f"{requirement.name} {_version(requirement.name)}")
    for extra, packages in sorted(found.items()):
        yield f"extra {extra}", ", ".join(packages)
