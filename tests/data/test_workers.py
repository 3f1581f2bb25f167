"""Data loading workers end with their parent and with nothing else, and can always write."""

import logging
import multiprocessing
import os
import pty
import signal
import subprocess
import sys
import threading
import time
import warnings
from types import SimpleNamespace

import pytest

from aligndetr.data import build_detection_test_loader, build_detection_train_loader
from aligndetr.engine.console import ProgressBar


def loaders(mapper):
    """One of each kind, with one worker, over ten images."""
    arguments = {"mapper": mapper, "num_workers": 1}
    dataset = [{"n": n, "width": 4, "height": 3} for n in range(10)]
    return {
        "train": build_detection_train_loader(dataset, total_batch_size=2, seed=3, **arguments),
        "test": build_detection_test_loader(dataset, batch_size=2, **arguments),
    }


@pytest.fixture
def start_by():
    """Sets how workers are started."""
    earlier = multiprocessing.get_start_method(allow_none=True)
    yield lambda method: multiprocessing.set_start_method(method, force=True)
    multiprocessing.set_start_method(earlier, force=True)


def signal_oneself(sample=None):
    """As a scheduler does that signals all processes of a job."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        os.kill(os.getpid(), number)
    time.sleep(0.05)
    return os.getpid()


def arrive():
    """In a worker that is spawned, while it begins: a library is imported that starts a thread."""
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    signal_oneself()
    return SignalOneself()


class SignalOneself:
    def __call__(self, sample):
        return signal_oneself(sample)

    def __reduce__(self):
        return arrive, ()


# By spawn only one of them, which takes seconds to import torch.
@pytest.mark.parametrize(
    ("kind", "method"), [("train", "fork"), ("test", "fork"), ("train", "spawn")]
)
def test_workers_outlive_signals_meant_for_the_run_but_not_those_of_their_parent(
    kind, method, start_by
):
    start_by(method)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    batches = iter(loaders(SignalOneself())[kind])
    pids = {pid for _ in range(4) for pid in next(batches)}
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
    assert len(pids) == 1
    (worker,) = (p for p in multiprocessing.active_children() if p.pid in pids)
    for _ in range(10):  # one may meet the worker's own in the queue, see worker_signals.py
        worker.terminate()
        worker.join(1)
        if worker.exitcode is not None:
            break
    assert worker.exitcode == 0


KILLED_WHILE_ITS_WORKER_SENDS = """
import multiprocessing, os, signal, time
import torch
from aligndetr.data import build_detection_train_loader

multiprocessing.set_start_method("fork")
dataset = [{"n": n, "width": 4, "height": 3} for n in range(10)]
image = torch.zeros(3, 100, 100, dtype=torch.uint8)
batches = iter(build_detection_train_loader(
    dataset, mapper=lambda _: image, total_batch_size=2, seed=3, num_workers=1
))
next(batches)
time.sleep(1)  # more than a pipe holds is ready
print("now", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_worker_ends_after_a_parent_that_was_killed():
    command = [sys.executable, "-c", KILLED_WHILE_ITS_WORKER_SENDS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as parent:
        assert parent.stdout.readline() == b"now\n"
        try:
            parent.communicate(timeout=30)  # until the worker, which has the pipe too, has ended
        except subprocess.TimeoutExpired:
            os.killpg(parent.pid, signal.SIGKILL)
            raise
    assert parent.returncode == -signal.SIGKILL


def warn_and_log(sample):
    warnings.warn("Corrupt EXIF data", stacklevel=1)
    logging.getLogger("worker_test").warning("a line")
    return sample["n"]


@pytest.fixture
def bar(monkeypatch):
    """A progress bar on a terminal, through which also logs are written."""
    monkeypatch.setenv("TERM", "xterm")
    screen, terminal = pty.openpty()
    with os.fdopen(terminal, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        logger = logging.getLogger("worker_test")
        monkeypatch.setattr(logger, "handlers", [logging.StreamHandler(stream)])
        bar = ProgressBar()
        bar.trainer = SimpleNamespace(max_iter=10, start_iter=0)
        bar.before_train()
        assert logger.handlers[0].stream is sys.stdout is not stream
        yield bar
        bar.after_train()
    os.close(screen)


@pytest.mark.parametrize("kind", ["train", "test"])
def test_a_worker_may_be_forked_while_a_progress_bar_is_drawn(kind, bar, start_by):
    start_by("fork")
    taken = []
    loader = loaders(warn_and_log)[kind]
    thread = threading.Thread(target=lambda: taken.extend(next(iter(loader))), daemon=True)
    with bar._progress.console._lock:  # which the thread that draws holds at times
        thread.start()
        thread.join(30)
    for worker in multiprocessing.active_children():
        worker.terminate()
    assert len(taken) == 2
