"""A small run that uses all that must be resumed, and can be made to kill itself anywhere.

Each image is augmented by chance, each step draws noise, and so does each evaluation; images come
in two shapes, eleven of them for batches of two, so that an epoch never ends with an iteration.
"""

import io
import json
import multiprocessing
import os
import random
import signal
from pathlib import Path

import numpy as np
import torch
from detectron2.config import LazyCall as L
from detectron2.engine import HookBase
from detectron2.utils import comm

from aligndetr.data import build_detection_train_loader
from aligndetr.engine import curves, do_train, setup, train_loop
from tests.engine.stand_in import StandIn, arguments, stand_in_config

ITERATIONS = 12


class NoisyStandIn(StandIn):
    """Draws from all global generators, in training and in evaluation."""

    def forward(self, batch):
        tick("step" if self.training else "evaluation")
        noise = torch.rand(1).item() + np.random.rand() + random.random()
        batch = [{**x, "image": x["image"] + 0.1 * noise * torch.rand(1)} for x in batch]
        return super().forward(batch)


def images():
    shapes = [(5, 6) if n % 3 else (6, 5) for n in range(11)]
    return [{"image_id": n, "height": h, "width": w} for n, (h, w) in enumerate(shapes)]


class Augment:
    def __call__(self, sample):
        image = np.random.rand(3, sample["height"], sample["width"]) * random.random()
        image = torch.from_numpy(image).float() + sample["image_id"] * torch.rand(1)
        return {**sample, "image": image}


def noisy_config(folder, num_workers=0, **train):
    cfg = stand_in_config(folder, max_iter=ITERATIONS, log_period=1, **train)
    cfg.train.grad_accum_steps = 2
    cfg.train.model_ema.enabled = True
    cfg.model = L(NoisyStandIn)()
    cfg.dataloader.train = L(build_detection_train_loader)(
        dataset=L(images)(),
        mapper=L(Augment)(),
        total_batch_size=2,
        num_workers=num_workers,
        seed="${train.seed}",
    )
    return cfg


class Recorder(HookBase):
    """Writes each iteration's loss, to every bit, where no smoothing touches it."""

    def __init__(self, folder):
        self._file = Path(folder) / "losses.txt"

    def after_step(self):
        if not comm.is_main_process():
            return
        loss = self.trainer.storage.history("total_loss").latest()
        with open(self._file, "a") as file:
            file.write(f"{self.trainer.iter} {loss.hex()}\n")


class StopAt(HookBase):
    """Lets this process receive a signal in an iteration."""

    def __init__(self, iteration, number=signal.SIGUSR1):
        self._iteration, self._number = iteration, number

    def after_step(self):
        if self.trainer.iter == self._iteration:
            os.kill(os.getpid(), self._number)


def recorded_losses(folder) -> dict[int, set[str]]:
    """All values that each iteration has had, in all runs of this folder."""
    losses: dict[int, set[str]] = {}
    for line in (Path(folder) / "losses.txt").read_text().splitlines():
        iteration, loss = line.split()
        losses.setdefault(int(iteration), set()).add(loss)
    return losses


def train_recorded(folder, resume=False, num_workers=0, hooks=(), record_in=None, **train):
    cfg = noisy_config(folder, num_workers, **train)
    setup(cfg, arguments(resume=resume))
    make_hooks = train_loop._hooks
    train_loop._hooks = lambda *args: [Recorder(record_in or folder), *hooks, *make_hooks(*args)]
    try:
        return do_train(cfg, resume=resume)
    finally:
        train_loop._hooks = make_hooks


_countdown: dict[str, int] = {}
_ticks: list[str] = []


def tick(event):
    """Called at each moment at which a run may be killed; ends the process when its time is up."""
    _ticks.append(event)
    for key in ("any", event):
        if key in _countdown:
            _countdown[key] -= 1
            if _countdown[key] == 0:
                os.kill(os.getpid(), signal.SIGKILL)


class SlowFile(io.FileIO):
    """One that can be killed when half of a checkpoint is written."""

    def write(self, data):
        middle = len(data) // 2
        super().write(data[:middle])
        tick("checkpoint")
        super().write(data[middle:])
        return len(data)


def _save_in_parts(data, file, save=torch.save):
    buffer = io.BytesIO()
    save(data, buffer)
    tick("checkpoint")  # an empty file is there
    SlowFile(file.fileno(), "wb", closefd=False).write(buffer.getvalue())
    tick("checkpoint")  # whole, under its temporary name


def _process(folder, resume, num_workers, countdown):
    torch.set_num_threads(1)
    curves.plot_curves = lambda metrics, picture: None  # as in conftest.py
    multiprocessing.set_start_method("fork", force=True)  # of the loader's workers
    _countdown.update(countdown)
    torch.save = _save_in_parts
    replace = os.replace

    def replace_and_tick(*args):
        replace(*args)
        tick("checkpoint")  # model_*.pth is new, `last_checkpoint` not

    os.replace = replace_and_tick
    train_recorded(folder, resume, num_workers)
    (Path(folder) / "ticks.json").write_text(json.dumps(_ticks))


def run_in_process(folder, resume=False, num_workers=0, **countdown) -> int:
    """Train in a process of its own; its exit code, -9 if killed.

    Args:
        countdown: the event ("step", "evaluation", "checkpoint", "any") and how many of them
            the process lives for.
    """
    # Forked from a server that has imported all of it: starting takes no seconds.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.engine.resumable"])
    process = context.Process(target=_process, args=(str(folder), resume, num_workers, countdown))
    process.start()
    process.join(400)
    if process.is_alive():  # not to be taken for the kill that a test waits for
        process.kill()
        process.join()
        raise AssertionError("the training has not ended within 400 s")
    return process.exitcode
