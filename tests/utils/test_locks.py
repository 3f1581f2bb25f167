"""Locks on files: one holder at a time."""

import portalocker
import pytest

from aligndetr.utils.locks import lock


def nobody_waits():
    raise AssertionError("the lock is free")


def test_a_free_lock_is_taken_at_once_and_freed_by_closing(tmp_path):
    for _ in range(2):
        with (tmp_path / "lock").open("w") as file:
            lock(file, nobody_waits)


def test_waiting_is_said_once_and_ends(tmp_path):
    said = []
    with (tmp_path / "lock").open("w") as first, (tmp_path / "lock").open("w") as second:
        lock(first, nobody_waits)
        with pytest.raises(TimeoutError, match=r"lock' for 0\.3 s"):
            lock(second, lambda: said.append("waiting"), seconds=0.3)
        assert said == ["waiting"]
        lock(second, first.close)  # whoever holds it ends meanwhile


def test_a_file_system_without_locks_is_an_os_error(tmp_path, monkeypatch):
    def refuse(*_):
        raise portalocker.LockException("not supported")

    monkeypatch.setattr(portalocker, "lock", refuse)
    with (tmp_path / "lock").open("w") as file, pytest.raises(OSError, match="not supported"):
        lock(file, nobody_waits)
