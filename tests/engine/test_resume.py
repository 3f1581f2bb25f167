"""A run that was killed goes on as if it had not been: to every bit, wherever it was killed."""

import json
import logging
import random
import signal
from datetime import timedelta
from functools import partial

import pytest
import torch
from detectron2.utils import comm

from aligndetr.checkpoint import read_checkpoint
from aligndetr.engine import RankFailedError, launch
from aligndetr.engine.signals import TrainingStopped
from tests.engine.resumable import (
    ITERATIONS,
    StopAt,
    recorded_losses,
    run_in_process,
    train_recorded,
)


def assert_same(found, expected, where="checkpoint"):
    assert type(found) is type(expected), where
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            assert_same(found[key], expected[key], f"{where}[{key!r}]")
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), where
        for index, pair in enumerate(zip(found, expected)):
            assert_same(*pair, f"{where}[{index}]")
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), where
    else:
        assert found == expected, where


def evaluations(folder):
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return {
        line["iteration"]: [line["bbox/AP"], line["ema/bbox/AP"]]
        for line in lines
        if "bbox/AP" in line
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    assert run_in_process(folder) == 0
    assert list(recorded_losses(folder)) == list(range(ITERATIONS))
    assert len({loss for losses in recorded_losses(folder).values() for loss in losses}) > 10
    return folder


def assert_equal_runs(folder, whole):
    """All losses ever computed, final weights and all other state, and what was evaluated."""
    assert recorded_losses(folder) == recorded_losses(whole)
    for name in ("model_final.pth", "model_best.pth"):
        found, expected = (read_checkpoint(str(path / name)) for path in (folder, whole))
        for content in (found, expected):
            content.pop("config")  # names the folder
        assert_same(found, expected, name)
    assert evaluations(folder) == evaluations(whole)
    assert list(folder.glob(".model_*")) == []


KILLS = {
    "a first micro-batch": {"step": 15},
    "a second micro-batch": {"step": 16},
    "the middle of the second epoch": {"step": 18},
    "an evaluation": {"evaluation": 2},
    "the evaluation of the averaged weights": {"evaluation": 10},
    "the last evaluation": {"evaluation": 16},
    "half a checkpoint": {"checkpoint": 7},
    "a checkpoint that is not named yet": {"checkpoint": 9},
    "the final checkpoint": {"checkpoint": 24},
}


SLOW = ("a first micro-batch", "the evaluation of the averaged weights", "the final checkpoint",
        "a checkpoint that is not named yet")  # fmt: skip


@pytest.mark.parametrize(
    "moment", [pytest.param(m, marks=pytest.mark.slow) if m in SLOW else m for m in KILLS]
)
def test_a_killed_run_goes_on_to_every_bit(whole, tmp_path, moment):
    # Workers of another number each time: they must not matter.
    first, second = (0, 2) if len(moment) % 2 else (2, 0)
    assert run_in_process(tmp_path, num_workers=first, **KILLS[moment]) == -9
    assert run_in_process(tmp_path, resume=True, num_workers=second) == 0
    assert_equal_runs(tmp_path, whole)


def test_a_killed_run_loses_no_more_than_the_steps_since_its_checkpoint(tmp_path):
    assert run_in_process(tmp_path, step=2 * 8) == -9  # in iteration 7; saved after 5
    lines = (tmp_path / "losses.txt").read_text().splitlines()
    assert [int(line.split()[0]) for line in lines] == list(range(7))
    assert run_in_process(tmp_path, resume=True) == 0
    lines = (tmp_path / "losses.txt").read_text().splitlines()[7:]
    assert [int(line.split()[0]) for line in lines] == list(range(6, 12))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(24))
def test_runs_killed_at_random_moments_go_on_to_every_bit(whole, tmp_path, seed):
    """Each is killed three times, at moments drawn from all there are."""
    draw = random.Random(seed)
    num_moments = len(json.loads((whole / "ticks.json").read_text()))
    kills = 0
    for _ in range(3):
        code = run_in_process(
            tmp_path,
            resume=kills > 0,
            num_workers=draw.choice([0, 2]),
            any=draw.randint(1, num_moments),
        )
        assert code in (0, -9)
        if code == 0:  # it had less left to do than it was given to live
            break
        kills += 1
    assert kills
    assert run_in_process(tmp_path, resume=True, num_workers=draw.choice([0, 2])) == 0
    assert_equal_runs(tmp_path, whole)


def _stop_and_resume(folder):
    """On each of two ranks: a run, and one that rank 1 alone is told to stop."""
    torch.manual_seed(comm.get_rank())
    train_recorded(f"{folder}/whole")
    with pytest.raises(TrainingStopped):
        train_recorded(f"{folder}/stopped", hooks=[StopAt(4)] if comm.get_rank() == 1 else [])
    train_recorded(f"{folder}/stopped", resume=True)


def test_two_ranks_stop_for_a_signal_to_one_and_go_on_to_every_bit(tmp_path):
    launch(_stop_and_resume, 2, args=(str(tmp_path),), device="cpu", timeout=timedelta(seconds=300))
    assert (tmp_path / "stopped" / "model_0000004.pth").exists()
    assert not (tmp_path / "whole" / "model_0000004.pth").exists()
    assert_equal_runs(tmp_path / "stopped", tmp_path / "whole")


def _train_until_killed(folder, killed_at, resume=False):
    hooks = [StopAt(killed_at, signal.SIGKILL)] if comm.get_rank() == 1 else []
    train_recorded(folder, resume=resume, hooks=hooks)


def test_two_ranks_of_which_one_is_killed_go_on_to_every_bit(tmp_path):
    on_two = partial(launch, num_processes=2, device="cpu", timeout=timedelta(seconds=300))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    on_two(_train_until_killed, args=(whole, None))
    with pytest.raises(RankFailedError, match="SIGKILL"):
        on_two(_train_until_killed, args=(killed, 8))
    assert not (killed / "model_final.pth").exists()
    on_two(_train_until_killed, args=(killed, None, True))
    assert_equal_runs(killed, whole)


def test_metrics_of_steps_that_are_done_again_are_kept_elsewhere(tmp_path):
    assert run_in_process(tmp_path, step=2 * 8) == -9
    before = (tmp_path / "metrics.json").read_text()
    with open(tmp_path / "metrics.json", "a") as file:
        file.write('{"iteration": 7, "total_l')  # cut short
    assert run_in_process(tmp_path, resume=True) == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    trained = [line["iteration"] for line in lines if "total_loss" in line]
    assert trained == list(range(ITERATIONS))
    assert (tmp_path / "metrics.before_6.json").read_text().startswith(before)


def test_another_seed_is_another_run(whole, tmp_path):
    """Or the tests above would pass for a run without any chance in it."""
    train_recorded(tmp_path, seed=4)
    assert all(recorded_losses(tmp_path)[i] != recorded_losses(whole)[i] for i in range(ITERATIONS))


def test_a_run_without_its_random_states_is_another_run(whole, tmp_path, monkeypatch):
    assert run_in_process(tmp_path, step=2 * 8) == -9
    monkeypatch.setattr("aligndetr.engine.run_state.set_random_states", lambda *_: None)
    train_recorded(tmp_path, resume=True)
    assert len(recorded_losses(tmp_path)[11]) == 1
    assert recorded_losses(tmp_path)[11] != recorded_losses(whole)[11]


def test_a_checkpoint_of_an_earlier_version_starts_its_data_anew_and_says_so(tmp_path, caplog):
    assert run_in_process(tmp_path, step=2 * 8) == -9
    path = tmp_path / "model_0000005.pth"
    content = read_checkpoint(str(path))
    del content["run_state"]
    torch.save(content, path)
    with caplog.at_level(logging.WARNING):
        train_recorded(tmp_path, resume=True)
    assert "of an earlier version" in caplog.text
