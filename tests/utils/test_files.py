"""A file appears whole or not at all."""

import signal

import pytest

from aligndetr.cli.parsing import errors_in_one_line
from aligndetr.utils.files import atomic_path


def test_a_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "new" / "table.csv"
    with atomic_path(path) as temporary:
        temporary.write_text("1,2")
        assert temporary.suffix == ".csv"
        assert not path.exists()
    assert path.read_text() == "1,2"
    assert list(path.parent.iterdir()) == [path]


def write_half(path, trouble):
    with errors_in_one_line(), atomic_path(path) as temporary:
        temporary.write_text("half")
        trouble()


def disk_full():
    raise OSError("disk full")


def test_after_an_error_the_earlier_file_is_there_and_nothing_else(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("earlier")
    with pytest.raises(SystemExit, match="error: disk full"):
        write_half(path, disk_full)
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_a_program_that_gets_sigterm_leaves_nothing_half(tmp_path):
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as end:
        write_half(tmp_path / "table.csv", lambda: signal.raise_signal(signal.SIGTERM))
    assert end.value.code == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) == handler
