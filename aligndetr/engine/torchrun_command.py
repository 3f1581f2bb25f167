"""A run that torchrun starts anew goes on where it was, on every machine.

torchrun counts restarts for the machine alone whose process failed, and for none where a machine
joins. What all processes are told, each time, is the id of the run (`--rdzv-id`). So that id, the
config file and the overrides stay in the output directory: who finds them there again resumes.
"""

import argparse
import os
from collections.abc import Mapping
from pathlib import Path

from aligndetr.utils.files import atomic_path

FILE = "torchrun_command"


def note_command(
    output_dir: str, args: argparse.Namespace, environ: Mapping[str, str] = os.environ
) -> None:
    """Say in `output_dir` by what command it is trained; to be called by one process.

    Args:
        args: of detectron2's `default_argument_parser`.
    """
    path, command = Path(output_dir) / FILE, _command(args, environ)
    if command is None:
        path.unlink(missing_ok=True)
        return
    with atomic_path(path) as temporary:
        temporary.write_bytes(command)


def is_started_anew(
    output_dir: str, args: argparse.Namespace, environ: Mapping[str, str] = os.environ
) -> bool:
    """Whether torchrun has started this very run before, in `output_dir`."""
    path, command = Path(output_dir) / FILE, _command(args, environ)
    return command is not None and path.is_file() and path.read_bytes() == command


def _command(args: argparse.Namespace, environ: Mapping[str, str]) -> bytes | None:
    run_id = environ.get("TORCHELASTIC_RUN_ID", "none")  # as torchrun calls a run without an id
    if run_id == "none":
        return None
    return os.fsencode("\n".join([run_id, args.config_file, *args.opts]))
