"""How the processes of a run may end, and what its starter makes of it."""

import multiprocessing
import os
import signal
import sys
import time
from itertools import chain, repeat

import pytest

from aligndetr.engine import supervision
from aligndetr.engine.supervision import RankFailedError, supervise


def end(how):
    if how == "hang":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(60)
    if how < 0:
        if how != -signal.SIGKILL:
            signal.signal(-how, signal.SIG_DFL)
        os.kill(os.getpid(), -how)
    sys.exit(how)


FORK = multiprocessing.get_context("fork")


def start(*hows):
    """Processes that end so; they share nothing, so `fork` spares the imports."""
    processes = [FORK.Process(target=end, args=(how,)) for how in hows]
    for process in processes:
        process.start()
    return processes


def run(*hows):
    processes = start(*hows)
    supervise(processes, FORK.SimpleQueue())
    return processes


class HasCodeLate:
    """A process that has closed its files, and has its exit code when it is asked a third time."""

    def __init__(self, process):
        process.join()
        self.sentinel = process.sentinel
        self._codes = chain([None, None], repeat(process.exitcode))

    @property
    def exitcode(self):
        return next(self._codes)

    def is_alive(self):
        return self.exitcode is None


def test_all_is_well():
    assert [process.exitcode for process in run(0, 0)] == [0, 0]


@pytest.mark.parametrize(("hows", "code"), [((0, 75), 75), ((-signal.SIGINT, 0), 130)])
def test_an_exit_code_of_their_own_is_the_runs(hows, code):
    with pytest.raises(SystemExit) as caught:
        run(*hows)
    assert caught.value.code == code


def test_a_process_that_was_killed_is_named():
    with pytest.raises(RankFailedError, match="was ended by SIGKILL; .* memory ran out"):
        run(0, -signal.SIGKILL)


def test_one_that_does_not_end_when_another_has_failed_is_killed(monkeypatch):
    monkeypatch.setattr(supervision, "GRACE", 0.2)
    monkeypatch.setattr(supervision, "COLLECT", 0.0)
    start = time.monotonic()
    with pytest.raises(SystemExit) as caught:
        run("hang", 3)
    assert time.monotonic() - start < 30
    # -SIGKILL of the one that was killed is no failure of its own, but 9 is its code.
    assert caught.value.code == 9


def test_an_exit_code_that_comes_after_the_end_is_seen(monkeypatch):
    monkeypatch.setattr(supervision, "GRACE", 0.2)
    monkeypatch.setattr(supervision, "COLLECT", 0.0)
    hangs, failed = start("hang", 3)
    begin = time.monotonic()
    with pytest.raises(SystemExit):
        supervise([hangs, HasCodeLate(failed)], FORK.SimpleQueue())
    assert time.monotonic() - begin < 30
