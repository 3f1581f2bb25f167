"""One training at a time in a `train.output_dir`: two would write over each other's files."""

import argparse
import contextlib
import logging
from contextlib import AbstractContextManager
from pathlib import Path

from aligndetr.utils.locks import lock

from .place import find_place

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"
WAIT = 10.0
"""Seconds to wait for the folder."""
WAIT_TO_RESUME = 120.0
"""The same for a run that may be what torchrun, SLURM or a user has just killed. Its data workers
see that within a second or two and hold the lock until then; a network file system takes a minute
or more where the machine is gone."""


def lock_output_dir(output_dir: str, args: argparse.Namespace) -> AbstractContextManager:
    """Take the folder for a training, until the context ends, or the process does.

    To be called once per machine, or by every process where torchrun or srun has started them. The
    first of the run takes it for all; the others take nothing, and neither does `--eval-only`,
    which writes none of a training's files. A file system without locks gets a warning.

    Args:
        output_dir: made if it is not there.
        args: of detectron2's `default_argument_parser`.

    Raises:
        FileExistsError: another training has the folder, and still has it after the wait.
        OSError: the folder cannot be made or written to.
    """
    place = find_place()
    is_first = args.machine_rank == 0 if place is None else place.rank == 0
    if args.eval_only or not is_first:
        return contextlib.nullcontext()
    Path(output_dir).mkdir(parents=True, exist_ok=True)
    path = Path(output_dir) / LOCK_FILE
    seconds = WAIT_TO_RESUME if args.resume else WAIT
    file = path.open("a")

    def say() -> None:
        logger.warning(
            "Another training is writing to %r; waiting up to %g s for its end", output_dir, seconds
        )

    try:
        lock(file, say, seconds)
    except TimeoutError:
        file.close()
        raise FileExistsError(
            f"another training is writing to `train.output_dir` (={output_dir!r}); wait for its "
            "end, or choose another train.output_dir. (If it died together with its machine, "
            f"delete {str(path)!r}.)"
        ) from None
    except OSError as error:
        logger.warning("%s: a second training in the same folder would go unnoticed", error)
    return file
