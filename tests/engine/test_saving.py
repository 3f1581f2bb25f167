"""Stopping by a signal, a disk that is full, a checkpoint that is damaged, and the best one."""

import logging
import os
import shutil
import signal

import pytest
import torch
from detectron2.engine import HookBase

from aligndetr.checkpoint import Checkpointer, CheckpointError, read_checkpoint
from aligndetr.engine import evaluating, saving
from aligndetr.engine.signals import EXIT_NOT_SAVED, EXIT_STOPPED, TrainingStopped
from tests.engine.resumable import ITERATIONS, recorded_losses, train_recorded
from tests.engine.stand_in import MeanBrightness


class Send(HookBase):
    """Sends this process a signal in an iteration."""

    def __init__(self, number, iteration=4):
        self._number, self._iteration = number, iteration

    def before_step(self):
        if self.trainer.iter == self._iteration:
            os.kill(os.getpid(), self._number)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    train_recorded(folder)
    return folder


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_saves_after_the_step_and_the_run_goes_on_exactly(whole, tmp_path, name):
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with pytest.raises(TrainingStopped) as stopped:
        train_recorded(tmp_path, hooks=[Send(number)])
    assert stopped.value.code == EXIT_STOPPED == 75
    assert signal.getsignal(number) == before
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000004.pth"
    train_recorded(tmp_path, resume=True)
    assert recorded_losses(tmp_path).keys() == set(range(ITERATIONS))
    for iteration, losses in recorded_losses(tmp_path).items():
        assert losses == recorded_losses(whole)[iteration]


def test_a_second_sigint_is_left_to_the_system(tmp_path):
    class Look(Send):
        def after_step(self):
            if self.trainer.iter == 4:
                handlers.append(signal.getsignal(signal.SIGINT))

    handlers = []
    with pytest.raises(TrainingStopped):
        train_recorded(tmp_path, hooks=[Look(signal.SIGINT)])
    assert handlers == [signal.SIG_DFL]


def full_disk(monkeypatch, failures):
    """`torch.save` fails the first `failures` times, with half a file written."""
    save, left = torch.save, [failures]

    def fails_first(data, file):
        if left[0]:
            left[0] -= 1
            file.write(b"half a checkpoint")
            raise OSError(28, "No space left on device")
        save(data, file)

    monkeypatch.setattr(torch, "save", fails_first)


def test_a_full_disk_does_not_end_the_run_which_tries_again(whole, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(saving, "RETRY_SECONDS", 0.0)
    full_disk(monkeypatch, failures=2)
    train_recorded(tmp_path)
    assert caplog.text.count("CHECKPOINT NOT WRITTEN") == 2
    assert "No space left on device" in caplog.text
    numbers = sorted(int(path.stem[6:]) for path in tmp_path.glob("model_0*.pth"))
    assert numbers == [4, 5, 8, 11]  # 2, and 3 in its place, failed; after 4 it is every third
    assert (tmp_path / "model_final.pth").exists()
    assert recorded_losses(tmp_path) == recorded_losses(whole)


def test_a_stop_that_could_not_be_saved_has_another_code(tmp_path, monkeypatch):
    full_disk(monkeypatch, failures=99)
    with pytest.raises(TrainingStopped) as stopped:
        train_recorded(tmp_path, hooks=[Send(signal.SIGTERM, iteration=1)])
    assert stopped.value.code == EXIT_NOT_SAVED == 74


def test_the_final_checkpoint_is_tried_several_times_before_that_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "RETRY_SECONDS", 0.0)
    full_disk(monkeypatch, failures=10**6)
    with pytest.raises(OSError, match=r"model_final\.pth.*No space left.*MiB free"):
        train_recorded(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "empty", "a bit"])
def test_the_checkpoint_before_a_damaged_one_is_taken(whole, tmp_path, damage, caplog):
    for path in (*whole.glob("model_00000*.pth"), whole / "config.yaml"):
        shutil.copy(path, tmp_path)
    last = tmp_path / "model_0000008.pth"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    kept = {"cut": content[: len(content) // 2], "empty": b"", "a bit": content}[damage]
    last.write_bytes(kept)
    (tmp_path / "model_0000011.pth").unlink()
    (tmp_path / "last_checkpoint").write_text(last.name)
    with caplog.at_level(logging.WARNING):
        train_recorded(tmp_path, resume=True)
    assert "model_0000008.pth' is damaged" in caplog.text
    assert "model_0000005.pth instead" in caplog.text
    assert min(recorded_losses(tmp_path)) == 6


def test_where_all_are_damaged_the_first_is_named(tmp_path):
    (tmp_path / "model_0000001.pth").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"model_0000001\.pth"):
        Checkpointer(torch.nn.Linear(2, 3), str(tmp_path)).load_newest()


def test_the_best_checkpoint_is_that_of_the_highest_metric(whole):
    best = read_checkpoint(str(whole / "model_best.pth"))
    lines = (whole / "log.txt").read_text()
    assert best["best_metric"]["name"] == "bbox/AP"
    assert f"{best['best_metric']['value']:.4f}" in lines
    assert best["iteration"] == best["best_metric"]["iteration"]


def test_a_best_checkpoint_that_was_not_written_does_not_count(whole, tmp_path, monkeypatch):
    """The second best is then the best that there is, and is kept."""
    refused, write = [], Checkpointer.save

    def refuses_the_first_best(self, name, **content):
        if name == "model_best" and not refused:
            refused.append(content["best_metric"]["value"])
            raise saving.CheckpointWriteError("the disk is full")
        write(self, name, **content)

    monkeypatch.setattr(Checkpointer, "save", refuses_the_first_best)
    monkeypatch.setattr(evaluating.EvalHook, "_is_best", lambda hook: note(hook))
    values = iter([0.5, 0.4, 0.3, 0.2, 0.1])

    def note(hook):
        value = next(values)
        if value <= hook._best.get("value", -1):
            return False
        hook._best = {"name": "bbox/AP", "value": value}
        return True

    train_recorded(tmp_path)
    assert refused == [0.5]
    assert read_checkpoint(str(tmp_path / "model_best.pth"))["best_metric"]["value"] == 0.4


def test_every_checkpoint_knows_the_best_metric(tmp_path, monkeypatch, caplog):
    """In a folder without model_best.pth, only what is better than it was makes one."""
    # After iterations 3 and 7, and at the end; each time of the model, then of its average.
    values = iter([0.5, 0.1, 0.3, 0.1, 0.6, 0.1])
    monkeypatch.setattr(
        MeanBrightness, "evaluate", lambda evaluator: {"bbox": {"AP": next(values)}}
    )
    first, second = tmp_path / "first", tmp_path / "second"
    with pytest.raises(TrainingStopped):
        train_recorded(first, hooks=[Send(signal.SIGTERM, iteration=5)])
    second.mkdir()
    shutil.copy(first / "model_0000005.pth", second)
    trainer = read_checkpoint(str(second / "model_0000005.pth"))["trainer"]
    best = {"name": "bbox/AP", "value": 0.5, "iteration": 3}
    assert trainer["hooks"]["EvalHook"]["best_metric"] == best

    class Look(HookBase):
        def before_step(self):
            if self.trainer.iter == 11:
                seen.append((second / "model_best.pth").exists())

    seen = []
    train_recorded(second, resume=True, hooks=[Look()])
    assert "an evaluation above 0.5000 makes one" in caplog.text
    assert seen == [False]
    assert read_checkpoint(str(second / "model_best.pth"))["best_metric"]["value"] == 0.6


def test_an_unknown_metric_is_named_and_does_not_end_the_run(tmp_path, caplog):
    saver = {"period": 0, "max_to_keep": None, "best_metric": "bbox/APP"}
    train_recorded(tmp_path, checkpointer=saver)
    assert "bbox/APP" in caplog.text
    assert not (tmp_path / "model_best.pth").exists()


def test_deterministic_runs_are_the_same_bits_and_the_drawn_seed_repeats_them(tmp_path):
    try:
        train_recorded(tmp_path / "a", deterministic=True, seed=-1)
        assert torch.are_deterministic_algorithms_enabled()
        seed = read_checkpoint(str(tmp_path / "a" / "model_final.pth"))["config"]
        seed = int(seed.split("seed: ")[-1].split()[0])
        train_recorded(tmp_path / "b", deterministic=True, seed=seed)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic = False
    assert recorded_losses(tmp_path / "a") == recorded_losses(tmp_path / "b")


class FolderGone(HookBase):
    """For some iterations the folder of the run is a file: nothing can be written there."""

    def __init__(self, folder, first, last):
        self._folder, self._first, self._last = folder, first, last
        self._away = folder.with_name("away")

    def before_step(self):
        if self.trainer.iter == self._first:
            self._folder.rename(self._away)
            self._folder.write_text("no folder")
        if self.trainer.iter == self._last + 1:
            self._folder.unlink()
            self._away.rename(self._folder)


def test_a_folder_that_cannot_be_written_to_costs_what_was_to_be_written_only(
    whole, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(saving, "RETRY_SECONDS", 0.0)
    folder = tmp_path / "run"
    folder.mkdir()
    train_recorded(folder, hooks=[FolderGone(folder, first=2, last=8)], record_in=tmp_path)
    assert "CHECKPOINT NOT WRITTEN" in caplog.text
    assert "TensorBoardWriter COULD NOT WRITE" in caplog.text
    assert len(list(folder.glob("events.out.*"))) == 2  # the second since the folder is back
    assert (folder / "model_final.pth").exists()
    assert recorded_losses(tmp_path) == recorded_losses(whole)
