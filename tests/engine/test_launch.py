"""Several processes on the CPU: they equal one, and fail together."""

import contextlib
import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import nn

from aligndetr.checkpoint import read_checkpoint
from aligndetr.engine import (
    NonFiniteLossError,
    NonFiniteStepError,
    RankFailedError,
    Trainer,
    create_ddp_model,
    do_train,
    launch,
    lifeline,
    setup,
)
from aligndetr.engine.launch import TIMEOUT, _worker, free_port
from aligndetr.utils.errors import NonFinitePredictionError
from tests.engine.stand_in import Images, StandIn, arguments, stand_in_config


def train(folder, world_size):
    assert comm.get_world_size() == world_size
    cfg = stand_in_config(folder, max_iter=6)
    cfg.train.clip_grad.params.max_norm = 0.01
    setup(cfg, arguments(num_gpus=world_size))
    do_train(cfg)


def diverge(folder):
    """Train until the loss of rank 1 is NaN; leave the error's text, and check the weights."""
    torch.manual_seed(0)
    model = create_ddp_model(StandIn())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    # id 5: rank 1, second batch
    trainer = Trainer(model, Images(4, poisoned_id=5), optimizer, max_bad_steps=1)
    vectors = []
    model.register_forward_pre_hook(
        lambda *_: vectors.append(nn.utils.parameters_to_vector(model.parameters()).clone())
    )
    with pytest.raises(NonFiniteLossError) as caught:
        trainer.train(0, 4)
    assert len(vectors) == 2
    assert torch.equal(nn.utils.parameters_to_vector(model.parameters()), vectors[1])
    Path(folder, f"rank{comm.get_rank()}").write_text(str(caught.value))


class NaNPrediction(StandIn):
    def forward(self, batch):
        if batch[0]["image_id"] == 5:  # rank 1, second batch
            raise NonFinitePredictionError("encoder proposals", 1)
        return super().forward(batch)


def predict_nan(folder):
    """Train until rank 1 has predictions that are not finite; leave the error of each rank."""
    model = create_ddp_model(NaNPrediction())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(model, Images(4), optimizer, max_bad_steps=1)
    expected = (NonFiniteLossError, NonFiniteStepError)[comm.get_rank()]
    with pytest.raises(expected) as caught:
        trainer.train(0, 4)
    Path(folder, f"prediction_of_rank{comm.get_rank()}").write_text(str(caught.value))


def all_that_needs_two_processes(folder):
    assert dist.get_backend() == "gloo"
    assert comm.get_local_rank() == comm.get_rank()
    train(f"{folder}/two", world_size=2)
    diverge(folder)
    predict_nan(folder)
    if comm.get_rank() == 1:
        raise RuntimeError("rank 1 has had enough")
    comm.synchronize()  # rank 0 would wait here for ever


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """Two processes, started once since that takes seconds: (folder, the error they ended with)."""
    folder = tmp_path_factory.mktemp("launched")
    with pytest.raises(RankFailedError) as caught:
        launch(
            all_that_needs_two_processes,
            2,
            args=(str(folder),),
            device="cpu",
            timeout=timedelta(seconds=100),
        )
    return folder, str(caught.value)


def test_two_processes_equal_one_with_the_same_total_batch(launched, tmp_path):
    two = launched[0] / "two"
    launch(train, 1, args=(str(tmp_path), 1), device="cpu")
    expected = read_checkpoint(str(tmp_path / "model_final.pth"))["model"]
    found = read_checkpoint(str(two / "model_final.pth"))["model"]
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-7, rtol=1e-5)

    expected, found = (
        [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
        for folder in (tmp_path, two)
    )
    for a, b in zip(expected, found, strict=True):
        for name in {"total_loss", "loss_square", "grad_norm", "bbox/AP"} & a.keys():
            assert b[name] == pytest.approx(a[name], rel=1e-4), name


def test_non_finite_loss_on_one_rank_stops_all_before_the_step(launched):
    messages = [(launched[0] / f"rank{rank}").read_text() for rank in (0, 1)]
    assert messages[0] == messages[1]
    assert "iteration 1" in messages[0]
    assert "rank 1" in messages[0]
    assert "rank 0" not in messages[0]
    assert "5 (5.png)" in messages[0]


def test_nan_predictions_of_one_rank_stop_all_before_backward(launched):
    other, own = ((launched[0] / f"prediction_of_rank{rank}").read_text() for rank in (0, 1))
    for part in ("encoder proposals", "iteration 1", "7 (7.png)"):
        assert part in own
        assert part in other
    assert "rank 1: encoder proposals" in other


def test_error_of_one_process_ends_the_others(launched):
    assert "rank 1 has had enough" in launched[1]


def test_one_process_is_this_one():
    seen = []
    launch(seen.append, 1, args=("called",), device="cpu")
    assert seen == ["called"]


def test_auto_url_is_for_one_machine():
    with pytest.raises(ValueError, match="--dist-url tcp://HOST:PORT"):
        launch(print, 1, num_machines=2, device="cpu")


@pytest.mark.parametrize("rank", [-1, 2])
def test_rank_of_a_machine_that_is_not_there(rank):
    with pytest.raises(ValueError, match=rf"--machine-rank \(={rank}\).*\(=2\)"):
        launch(print, 1, 2, rank, "tcp://127.0.0.1:12345", device="cpu")


def lose_one(killed):
    """Rank 1 is killed while rank 0 waits for something that no broken connection ends."""
    lifeline.GRACE = 5
    if comm.get_rank() == 1:
        killed.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)


def test_a_killed_process_ends_the_others_within_a_minute(tmp_path, capfd):
    killed = tmp_path / "killed"
    with pytest.raises(RankFailedError, match="SIGKILL"):
        launch(lose_one, 2, args=(killed,), device="cpu")
    assert time.time() - killed.stat().st_mtime < 60
    printed = capfd.readouterr().err
    assert re.search(r"rank 1 \(process \d+ on .*\) ended without an error", printed)
    assert "in lose_one" in printed  # where rank 0 was


def stop_together():
    signal.signal(signal.SIGUSR1, lambda *_: sys.exit(85))
    comm.synchronize()
    if comm.get_rank() == 0:
        os.kill(os.getppid(), signal.SIGUSR1)
    time.sleep(600)


def test_signals_reach_every_process_and_their_exit_code_comes_back():
    with pytest.raises(SystemExit) as caught:
        launch(stop_together, 2, device="cpu")
    assert caught.value.code == 85


def test_ctrl_c_ends_a_run_that_waits_for_its_other_machine():
    port = free_port()
    program = (
        "from aligndetr.engine import launch\n"
        f"launch(print, 1, 2, 0, 'tcp://127.0.0.1:{port}', device='cpu')"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    waiting = subprocess.Popen([sys.executable, "-c", program], env=environment)
    try:
        while True:  # until rank 0 listens
            assert waiting.poll() is None
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.1)
        waiting.send_signal(signal.SIGINT)
        assert waiting.wait(120) == 128 + signal.SIGINT
    finally:
        waiting.kill()


def test_a_rank_whose_starter_is_gone_does_not_start(monkeypatch):
    monkeypatch.setattr(os, "setpgrp", lambda: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(
        multiprocessing, "parent_process", lambda: Mock(**{"is_alive.return_value": False})
    )
    with pytest.raises(SystemExit) as caught:
        _worker(0, [], "", (), "cpu", TIMEOUT, "")
    assert caught.value.code == 1
