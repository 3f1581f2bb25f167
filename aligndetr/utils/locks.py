"""One process at a time, on any system: locks that end with the process that holds them."""

import math
import time
from collections.abc import Callable
from typing import IO

import portalocker

POLL_SECONDS = 0.1


def lock(file: IO, on_wait: Callable[[], None], seconds: float = math.inf) -> None:
    """Take the lock of an open file; closing it, or the end of the process, frees it.

    Args:
        on_wait: called once if another process, or another opening of the file, holds it.
        seconds: to wait at most.

    Raises:
        TimeoutError: so long it was held by another.
        OSError: the file system knows no locks.
    """
    deadline = time.monotonic() + seconds
    waiting = False
    while not _try_lock(file):
        if not waiting:
            on_wait()
        waiting = True
        if time.monotonic() > deadline:
            raise TimeoutError(f"another process has held {file.name!r} for {seconds} s")
        time.sleep(POLL_SECONDS)


def _try_lock(file: IO) -> bool:
    try:
        portalocker.lock(file, portalocker.LOCK_EX | portalocker.LOCK_NB)
    except portalocker.AlreadyLocked:
        return False
    except portalocker.LockException as error:
        raise OSError(f"{file.name!r} cannot be locked: {error}") from error
    return True
