"""How the processes of a run may end, and what its starter makes of it."""

import multiprocessing
import os
import signal
import sys
import time
from itertools import chain, repeat

import pytest

from aligndetr.engine import supervision
from aligndetr.engine.supervision import RankFailedError, supervise, write_error


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


@pytest.fixture
def run(tmp_path):
    def run(*hows):
        processes = start(*hows)
        supervise(processes, tmp_path)
        return processes

    return run


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


def test_all_is_well(run):
    assert [process.exitcode for process in run(0, 0)] == [0, 0]


@pytest.mark.parametrize(("hows", "code"), [((0, 75), 75), ((-signal.SIGINT, 0), 130)])
def test_an_exit_code_of_their_own_is_the_runs(hows, code, run):
    with pytest.raises(SystemExit) as caught:
        run(*hows)
    assert caught.value.code == code


def test_a_process_that_was_killed_is_named(run):
    with pytest.raises(RankFailedError, match="was ended by SIGKILL; .* memory ran out"):
        run(0, -signal.SIGKILL)


def test_one_that_does_not_end_when_another_has_failed_is_killed(run, monkeypatch):
    monkeypatch.setattr(supervision, "GRACE", 0.2)
    monkeypatch.setattr(supervision, "COLLECT", 0.0)
    start = time.monotonic()
    with pytest.raises(SystemExit) as caught:
        run("hang", 3)
    assert time.monotonic() - start < 30
    # -SIGKILL of the one that was killed is no failure of its own, but 9 is its code.
    assert caught.value.code == 9


def test_an_exit_code_that_comes_after_the_end_is_seen(monkeypatch, tmp_path):
    monkeypatch.setattr(supervision, "GRACE", 0.2)
    monkeypatch.setattr(supervision, "COLLECT", 0.0)
    hangs, failed = start("hang", 3)
    begin = time.monotonic()
    with pytest.raises(SystemExit):
        supervise([hangs, HasCodeLate(failed)], tmp_path)
    assert time.monotonic() - begin < 30


def test_a_signal_while_the_end_is_noted_loses_no_exit_code(monkeypatch, tmp_path):
    waitpid = os.waitpid

    def interrupted(pid, options):
        answer = waitpid(pid, options)
        if answer[0] == pid:  # the system has forgotten the process, and Python not yet
            os.kill(os.getpid(), signal.SIGTERM)
        return answer

    processes = start(3)
    monkeypatch.setattr(os, "waitpid", interrupted)
    with pytest.raises(SystemExit) as caught:
        supervise(processes, tmp_path)
    assert caught.value.code == 3


def test_the_error_that_was_written_first_counts(tmp_path):
    write_error(tmp_path, 3, "the cause")
    write_error(tmp_path, 0, "a consequence")
    os.utime(tmp_path / "3", (1, 1))
    (tmp_path / ".1.cut_short").mkdir()  # of a rank that was killed while it wrote
    with pytest.raises(RankFailedError, match="^rank 3 failed:\n\nthe cause$"):
        supervise([], tmp_path)
