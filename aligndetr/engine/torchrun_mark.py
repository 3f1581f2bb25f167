"""A run that torchrun starts anew goes on where it was, on every machine.

torchrun counts restarts for the machine alone whose process failed, and for none where a machine
joins. What all processes are told, each time, is the id of the run (`--rdzv-id`). So that id and
the command stay in the output directory: whoever finds both there again is a restart.
"""

import argparse
import os
from collections.abc import Mapping
from pathlib import Path

from aligndetr.utils.files import atomic_path

MARK = "torchrun_id"


def leave_mark(
    output_dir: str, args: argparse.Namespace, environ: Mapping[str, str] = os.environ
) -> None:
    """Say in `output_dir` whose run this is; to be called by one process.

    Args:
        args: of detectron2's `default_argument_parser`.
    """
    path, mark = Path(output_dir) / MARK, _mark(args, environ)
    if mark is None:
        path.unlink(missing_ok=True)
        return
    with atomic_path(path) as temporary:
        temporary.write_bytes(mark)


def finds_mark(
    output_dir: str, args: argparse.Namespace, environ: Mapping[str, str] = os.environ
) -> bool:
    """Whether an earlier start of this very run has left its mark in `output_dir`."""
    path, mark = Path(output_dir) / MARK, _mark(args, environ)
    return mark is not None and path.is_file() and path.read_bytes() == mark


def _mark(args: argparse.Namespace, environ: Mapping[str, str]) -> bytes | None:
    run_id = environ.get("TORCHELASTIC_RUN_ID", "none")  # as torchrun calls a run without an id
    if run_id == "none":
        return None
    return os.fsencode("\n".join([run_id, args.config_file, *args.opts]))
