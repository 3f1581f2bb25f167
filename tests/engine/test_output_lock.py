"""Two trainings started at the same moment both find a free folder: one of them must get it."""

import subprocess
import sys
from pathlib import Path

import portalocker
import pytest

from aligndetr.engine import output_lock
from aligndetr.engine.output_lock import lock_output_dir
from tests.engine.stand_in import arguments
from tests.engine.test_two_machines import PLACES

ROOT = Path(__file__).parents[2]

HOLD_UNTIL_KILLED = """
import sys, time
from aligndetr.engine import lock_output_dir
from tests.engine.stand_in import arguments
with lock_output_dir(sys.argv[1], arguments()):
    print("locked", flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(output_lock, "WAIT", 0.2)
    for name in PLACES:
        monkeypatch.delenv(name, raising=False)


def test_a_second_training_is_refused_until_the_first_has_ended(tmp_path, caplog):
    folder = str(tmp_path / "new" / "run")
    with lock_output_dir(folder, arguments()):
        with pytest.raises(FileExistsError, match="another training") as error:
            lock_output_dir(folder, arguments())
        assert repr(folder) in str(error.value)
        assert repr(str(Path(folder, ".lock"))) in str(error.value)
        assert "waiting up to 0.2 s" in caplog.text
        with lock_output_dir(str(tmp_path / "other"), arguments()):
            pass
    with lock_output_dir(folder, arguments()):
        pass


def test_a_run_that_resumes_waits_for_the_end_of_one_that_was_killed(tmp_path, caplog):
    command = [sys.executable, "-c", HOLD_UNTIL_KILLED, str(tmp_path)]
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout.readline() == "locked\n"
        with pytest.raises(FileExistsError):
            lock_output_dir(str(tmp_path), arguments())
        caplog.clear()
        killing = "import sys, time, os; time.sleep(1); os.kill(int(sys.argv[1]), 9)"
        with (
            subprocess.Popen([sys.executable, "-c", killing, str(first.pid)]),
            lock_output_dir(str(tmp_path), arguments(resume=True)),
        ):
            assert "waiting up to 120 s" in caplog.text
    finally:
        first.kill()
        first.wait()
        first.stdout.close()


@pytest.mark.parametrize(
    "options",
    [{"eval_only": True}, {"num_machines": 2, "machine_rank": 1}],
    ids=["evaluation", "second machine"],
)
def test_evaluation_and_further_machines_share_the_folder(options, tmp_path):
    with (
        lock_output_dir(str(tmp_path), arguments()),
        lock_output_dir(str(tmp_path), arguments(**options)),
    ):
        pass


def test_of_torchruns_processes_rank_0_takes_the_folder(tmp_path, monkeypatch):
    two = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "host", "MASTER_PORT": "1"}
    for name, value in two.items():
        monkeypatch.setenv(name, value)

    def start(rank):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        return lock_output_dir(str(tmp_path), arguments())

    with start(rank=0), start(rank=1), pytest.raises(FileExistsError):
        start(rank=0)


def test_a_file_system_without_locks_trains_with_a_warning(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise portalocker.LockException("no locks available")

    monkeypatch.setattr("portalocker.lock", refuse)
    with lock_output_dir(str(tmp_path), arguments()):
        assert "no locks available" in caplog.text
        assert "would go unnoticed" in caplog.text
