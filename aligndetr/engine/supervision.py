"""The parent of the processes of `--num-gpus`: passes signals on, and ends all if one fails."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from aligndetr.utils.files import atomic_path
from aligndetr.utils.signals import STOP_SIGNALS

from .lifeline import COLLECT, GRACE, OTHER_RANK_FAILED


class RankFailedError(RuntimeError):
    """A process of the run failed; the message is its traceback, or how it ended."""


def write_error(folder: str | os.PathLike, rank: int, text: str) -> None:
    """Leave the traceback of a rank for its starter.

    In a file and not in a pipe, where the end of a message that is cut short would never come.
    """
    with atomic_path(Path(folder) / str(rank)) as path:
        path.write_text(text, encoding="utf-8")


def supervise(processes: list[BaseProcess], errors: str | os.PathLike) -> None:
    """Wait until all have ended. If one fails, the others have `GRACE` seconds, then are killed.

    Args:
        processes: running, each in a process group of its own, so that a signal reaches them
            through this process only.
        errors: folder with the tracebacks of those that failed by themselves (`write_error`).

    Raises:
        RankFailedError: one has failed.
        SystemExit: none has failed, but some ended with an exit code of their own.
    """
    with _signals_passed_on_to(processes):
        killed = _wait(processes)
    written = sorted(Path(errors).glob("[0-9]*"), key=lambda path: path.stat().st_mtime_ns)
    if written:
        first = written[0]
        raise RankFailedError(f"rank {first.name} failed:\n\n{first.read_text('utf-8')}")
    codes = set()
    for process in processes:
        code = process.exitcode
        assert code is not None, "all have ended"
        if code == -signal.SIGINT:  # the user's second Ctrl-C
            raise SystemExit(128 + signal.SIGINT)
        if code < 0 and process not in killed:
            raise RankFailedError(
                f"process {process.pid} was ended by {signal.Signals(-code).name}; "
                "SIGKILL often means that memory ran out"
            )
        codes.add(abs(code))
    codes -= {0, OTHER_RANK_FAILED}
    if codes:
        raise SystemExit(max(codes))
    if any(process.exitcode for process in processes):
        raise RankFailedError("a process on another machine failed; its error stands above")


def _wait(processes: list[BaseProcess]) -> list[BaseProcess]:
    """Wait for the end of all; those that had to be killed."""
    deadline, killed = None, []
    while alive := [process for process in processes if process.is_alive()]:
        # Right before the wait: a process closes its files, which ends a wait, a moment before it
        # has an exit code. Asked after the wait, one that failed could be missed for good.
        if deadline is None and any(process.exitcode for process in processes):
            deadline = time.monotonic() + COLLECT + GRACE
        timeout = None if deadline is None else max(0, deadline - time.monotonic())
        if not connection.wait([process.sentinel for process in alive], timeout):
            killed += alive
            for process in alive:
                process.kill()
                process.join()
    return killed


@contextlib.contextmanager
def _signals_passed_on_to(processes: list[BaseProcess]) -> Iterator[None]:
    def pass_on(signum: int, _frame: object) -> None:
        for process in processes:
            if process.is_alive() and process.pid is not None:
                # Raised here, it would end up in what the signal has interrupted, which may be
                # the look at the same process: its exit code would be lost.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signum)

    earlier = {signum: signal.signal(signum, pass_on) for signum in STOP_SIGNALS}
    try:
        yield
    finally:
        for signum, handler in earlier.items():
            signal.signal(signum, handler)
