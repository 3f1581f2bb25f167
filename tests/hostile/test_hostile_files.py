"""Every hostile file is refused with a clear error, soon, and nothing of it has run."""

import os
import time

import pytest

from tests.hostile.hostile_files import CASES, Runs

MAX_SECONDS = 5.0


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_and_nothing_ran(name, tmp_path, monkeypatch):
    folder, canary = tmp_path / "files", tmp_path / "canary"
    folder.mkdir()
    monkeypatch.chdir(folder)
    read = CASES[name](folder, canary)
    start = time.thread_time()  # others may be using the machine
    with pytest.raises((ValueError, OSError)) as error:
        read()
    assert time.thread_time() - start < MAX_SECONDS
    assert not canary.exists()
    message = str(error.value)
    assert 20 < len(message) < 3000
    assert str(tmp_path) in message or "model.part" in message  # says which file or key


def test_the_canary_would_show_an_attack(tmp_path):
    function, arguments = Runs(tmp_path / "canary").__reduce__()
    assert function is os.system
    function(*arguments)
    assert (tmp_path / "canary").exists()
