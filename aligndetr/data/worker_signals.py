"""Which signals end a data loading worker: its parent's alone.

A scheduler or Ctrl-C signals all processes of a job. A worker that died of it would take the
training down in the middle of a step, where the training itself saves a checkpoint first.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing.process import BaseProcess

from aligndetr.utils.signals import STOP_SIGNALS

SENDER_IS_KNOWN = hasattr(signal, "sigtimedwait")  # not on macOS and Windows
CHECK_PARENT = 1.0
"""Seconds after which a worker looks whether its parent is still there."""


@contextlib.contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """To start workers in: all their threads begin with these signals blocked.

    A worker that is spawned imports numpy and torch before `leave_signals_to_parent` is called.
    Until then a signal would end it, and threads that these imports start would take SIGTERM
    later. One that this process is sent meanwhile comes when they are no longer blocked.
    """
    if not SENDER_IS_KNOWN:  # where a worker does not wait for SIGTERM, it must be able to end
        yield
        return
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)


def leave_signals_to_parent(_worker_id: int = 0) -> None:
    """To be called in a worker (`worker_init_fn` of a DataLoader)."""
    for number in STOP_SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if not SENDER_IS_KNOWN:
        return
    # By SIGTERM the parent ends a worker when it exits itself, and then waits for it. The system
    # keeps one waiting SIGTERM per process, so the parent's is lost where it meets another's in
    # that moment: DataLoader only sends it to a worker that did not end when asked through its
    # queue, and multiprocessing sends a second one at exit.
    parent = multiprocessing.parent_process()  # not os.getppid(): that may be a fork server
    assert parent is not None, "a worker has one"
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_when_told_by, args=(parent,), daemon=True).start()


def _end_when_told_by(parent: BaseProcess) -> None:
    # Or when it is gone: what a worker has not sent then keeps it from an end of its own, as it
    # holds the other end of the pipe itself. `is_alive` alone is not enough, since workers that
    # were forked later hold what it looks at.
    started_by = os.getppid()
    while os.getppid() == started_by and parent.is_alive():
        told = signal.sigtimedwait({signal.SIGTERM}, CHECK_PARENT)
        if told is not None and told.si_pid == parent.pid:
            break
    os._exit(0)
