"""The engine: what a training iteration of the demo takes besides forward, backward and optimizer.

    python benchmarks/engine.py

The whole training runs, with its log files and hooks, on the demo's data (first
tools/prepare_demo_data.py). An iteration is from one optimizer step to the next. Of it the
model's forward pass, the backward pass and the optimizer's step are measured; waiting for data is
what the training itself logs as such; the rest is the engine: gradients to zero, norms, clipping,
the check for NaN, learning rate, log and console. Evaluations and checkpoints are left out.
First, two steps of the engine are compared with a plain loop: the weights must be equal bit by bit.
"""

import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs without being installed

import aligndetr.quiet  # noqa: F401 (before detectron2)

# isort: split

import torch
from detectron2.engine import default_argument_parser
from detectron2.utils.events import EventStorage
from torch import nn

from aligndetr.config import apply_overrides, load_config
from aligndetr.engine import Trainer, build_optimizer, do_train, setup
from benchmarks.model import DEMO, build_model, random_batch
from benchmarks.timing import Report, command_line
from projects.aligndetr.modeling import AlignDETR

WARM_UP = 5  # iterations that are not counted
PARTS = ("forward", "backward", "optimizer", "data")


class Clock:
    """Seconds of watched functions, iteration by iteration."""

    def __init__(self) -> None:
        self.iterations: list[dict[str, float]] = []
        self._current: dict[str, float] = defaultdict(float)
        self._last_lap: float | None = None

    def watched(self, function: Callable, part: str, ends_iteration: bool = False) -> Callable:
        def timed(*args, **kwargs):
            start = time.perf_counter()
            result = function(*args, **kwargs)
            end = time.perf_counter()
            self._current[part] += end - start
            if ends_iteration:
                self._lap(end)
            return result

        return timed

    def _lap(self, now: float) -> None:
        if self._last_lap is not None:
            total = now - self._last_lap
            parts = {part: self._current[part] for part in PARTS}
            self.iterations.append({**parts, "engine": total - sum(parts.values()), "step": total})
        self._current.clear()
        self._last_lap = now


def verify() -> None:
    """Raise AssertionError unless the engine's steps are those of a plain loop, bit by bit."""
    cfg = load_config(DEMO)
    batch = random_batch([(64, 96)] * 2, cfg.model.num_classes, objects=3)
    weights = []
    for step in (_engine_step, _plain_step):
        model = build_model(cfg).train()
        run = step(model, build_optimizer(cfg, model), dict(cfg.train.clip_grad.params), batch)
        torch.manual_seed(0)  # the noise of the denoising queries
        for _ in range(2):
            run()
        weights.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert torch.equal(*weights), "the engine's steps differ from those of a plain loop"


def _engine_step(model, optimizer, clip, batch) -> Callable[[], None]:
    trainer = Trainer(model, [batch] * 2, optimizer, clip_grad=clip, log_period=10)
    trainer.iter, trainer.max_iter = 0, 10

    def run() -> None:
        with EventStorage():
            trainer.run_step()

    return run


def _plain_step(model, optimizer, clip, batch) -> Callable[[], None]:
    # In the optimizer's order, as the engine: the last digit of a sum depends on it.
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def run() -> None:
        optimizer.zero_grad()
        sum(model(batch).values()).backward()
        nn.utils.clip_grad_norm_(parameters, **clip)
        optimizer.step()

    return run


def measure(iterations: int, batch_size: int) -> list[dict[str, float]]:
    """Train the demo for `iterations` and a few more; seconds of the parts of each counted one."""
    clock = Clock()
    optimizer = torch.optim.AdamW
    watched = (
        (AlignDETR, "forward", "forward", False),
        (torch.Tensor, "backward", "backward", False),
        (Trainer, "_next_batches", "data", False),
        (optimizer, "step", "optimizer", True),
    )
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for owner, name, part, is_last in watched:
            function = clock.watched(getattr(owner, name), part, is_last)
            stack.enter_context(patch.object(owner, name, function))
        options = [
            f"train.output_dir={folder}",
            f"train.max_iter={iterations + WARM_UP + 1}",
            f"dataloader.train.total_batch_size={batch_size}",
            "train.eval_period=0",
            "train.checkpointer.period=0",
        ]
        cfg = apply_overrides(load_config(DEMO), options)
        setup(cfg, default_argument_parser().parse_args([]))
        do_train(cfg)
    return clock.iterations[WARM_UP:]


def main() -> None:
    parser = command_line(__doc__, repeats=50)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    report = Report(args.threads)
    verify()
    print("engine, plain loop: equal weights after two steps (bit by bit)")
    counted = measure(min(args.repeats, 10), 2) if args.quick else measure(args.repeats, 8)
    median = {part: statistics.median(i[part] for i in counted) for part in counted[0]}
    report.note("median seconds of an iteration", **median)
    for part in ("engine", "data"):
        shares = [i[part] / i["step"] for i in counted]
        report.note(
            f"{part}, share of an iteration",
            median=statistics.median(shares),
            lowest=min(shares),
            highest=max(shares),
            all_iterations=sum(i[part] for i in counted) / sum(i["step"] for i in counted),
            iterations=len(counted),
        )
    report.save(args.json)


if __name__ == "__main__":
    main()
