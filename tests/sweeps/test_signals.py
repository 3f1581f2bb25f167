"""A signal that comes to a sweep in the moment in which a run starts."""

import os
import signal
import subprocess
import sys

import pytest

from aligndetr.sweeps import expand, run_one_by_one


def test_a_signal_that_comes_while_a_run_starts_ends_it(tmp_path, monkeypatch):
    started = []

    def start(command, popen=subprocess.Popen):
        started.append(popen(command))
        os.kill(os.getpid(), signal.SIGTERM)
        return started[0]

    def ended(*_):
        raise RuntimeError("the sweep has ended before its run")

    earlier = signal.signal(signal.SIGTERM, ended)  # as the command line's does
    monkeypatch.setattr("aligndetr.sweeps.running.subprocess.Popen", start)
    runs = expand(["projects/aligndetr/configs/aligndetr_demo.py"], ["train.seed=1,2"])
    waits = [sys.executable, "-c", "import time; time.sleep(60)"]
    try:
        with pytest.raises(SystemExit) as end:
            run_one_by_one(runs, tmp_path, waits)
        assert end.value.code == 143
        assert [process.poll() for process in started] == [-signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, earlier)
        for process in started:
            process.kill()
            process.wait()
