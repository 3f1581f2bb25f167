"""Learning rate schedules, their length in epochs, and the rate that follows the batch."""

import math

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.solver import LRMultiplier
from torch import nn

from aligndetr.config import apply_overrides, config_from_yaml, config_to_yaml, load_config
from aligndetr.engine import build_optimizer, check_run, cosine_lr, multi_step_lr, setup
from tests.engine.stand_in import StandIn, arguments, stand_in_config
from tests.engine.test_corrupt_images import records

FINETUNE = "projects/aligndetr/configs/finetune.py"


def rates(schedule, max_iter):
    """What the hook of the training sets, iteration by iteration, for a rate of 1."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    multiplier = LRMultiplier(optimizer, schedule, max_iter)
    found = []
    for _ in range(max_iter):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        multiplier.step()
    return found


def test_steps_fall_at_their_share_of_the_run():
    expected = [1.0] * 6 + [0.5] * 3 + [0.25] * 3
    schedule = multi_step_lr(max_iter=12, milestones=[0.5, 0.75], gamma=0.5)
    assert rates(schedule, 12) == pytest.approx(expected)


def test_a_step_falls_at_the_nearest_iteration():
    assert rates(multi_step_lr(max_iter=10, milestones=[0.37]), 10) == [1.0] * 4 + [0.1] * 6


def test_cosine_by_hand():
    found = rates(cosine_lr(max_iter=8, end_factor=0.2), 8)
    assert found == pytest.approx(
        [0.2 + 0.8 * (1 + math.cos(math.pi * i / 8)) / 2 for i in range(8)]
    )


@pytest.mark.parametrize("max_iter", [20, 200])
def test_warm_up_takes_its_iterations_whatever_the_length(max_iter):
    steps = rates(multi_step_lr(max_iter, [0.5], warmup_iters=5, warmup_factor=0.0), max_iter)
    assert steps[:7] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1, 1])
    plain, warmed = (rates(cosine_lr(max_iter, warmup_iters=n), max_iter) for n in (0, 5))
    assert warmed[5:] == pytest.approx(plain[5:])
    assert warmed[0] == pytest.approx(0.001)
    assert warmed[:6] == sorted(warmed[:6])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: multi_step_lr(12, [11]), r"`milestones` \(=\[11\]\).*shares"),
        (lambda: multi_step_lr(12, [0.9, 0.8]), "must increase"),
        (lambda: multi_step_lr(12, [0.9], gamma=10), "`gamma`"),
        (lambda: cosine_lr(12, warmup_iters=12), "`warmup_iters`.*12 iterations"),
        (lambda: cosine_lr(12, end_factor=-0.1), "`end_factor`"),
        (lambda: cosine_lr(12, warmup_factor=2), "`warmup_factor`"),
    ],
)
def test_what_is_out_of_range_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_schedule_is_data_and_follows_the_length():
    cfg = load_config(FINETUNE)
    cfg.lr_multiplier = L(cosine_lr)(max_iter="${train.max_iter}", warmup_iters=10)
    cfg = config_from_yaml(config_to_yaml(cfg))
    cfg = apply_overrides(cfg, ["train.max_iter=40", "lr_multiplier.end_factor=0.1"])
    found = rates(instantiate(cfg.lr_multiplier), 40)
    assert found[10] == max(found)
    assert found[-1] == pytest.approx(0.1, abs=0.01)


def config_of(tmp_path, num_images=30, **train):
    cfg = stand_in_config(tmp_path, **train)
    cfg.dataloader.train.dataset = L(records)(folder="", count=num_images)
    return cfg


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ({"max_epochs": 3}, 23),  # 90 images, 4 per step
        ({"max_epochs": 0.5}, 4),
        ({"max_epochs": 3, "grad_accum_steps": 2}, 12),
        ({"max_epochs": None}, 8),
        ({"max_epochs": 3, "fast_dev_run": {"enabled": True}}, 20),
    ],
)
def test_epochs_become_iterations(tmp_path, train, expected):
    cfg = config_of(tmp_path, **train)
    check_run(cfg, arguments())
    assert cfg.train.max_iter == expected
    check_run(cfg, arguments())  # of a config.yaml that holds both
    assert cfg.train.max_iter == expected


def test_epochs_or_iterations_not_both(tmp_path):
    with pytest.raises(ValueError, match=r"max_iter.*max_epochs.*max_epochs=null"):
        check_run(config_of(tmp_path, max_epochs=3), arguments(opts=["train.max_iter=9"]))


@pytest.mark.parametrize("epochs", [0, -1, "12", True])
def test_epochs_must_be_a_number(tmp_path, epochs):
    with pytest.raises(ValueError, match=r"train\.max_epochs"):
        check_run(config_of(tmp_path, max_epochs=epochs), arguments())


def test_epochs_need_data_of_a_known_size(tmp_path):
    with pytest.raises(ValueError, match=r"train\.max_epochs` \(=2\).*dataloader\.train\.dataset"):
        check_run(stand_in_config(tmp_path, max_epochs=2), arguments())


@pytest.mark.parametrize(("accum", "factor"), [(1, 0.25), (8, 2.0)])
def test_rates_follow_the_images_per_step(tmp_path, accum, factor):
    plain = build_optimizer(config_of(tmp_path), StandIn())
    cfg = config_of(tmp_path, auto_scale_lr=True, grad_accum_steps=accum)
    scaled = build_optimizer(cfg, StandIn())
    for a, b in zip(plain.param_groups, scaled.param_groups, strict=True):
        assert b["lr"] == pytest.approx(factor * a["lr"])
    assert cfg.optimizer.lr == 0.01  # saved and built again, it is not scaled twice


def test_a_length_that_follows_the_data_is_in_the_log(tmp_path):
    setup(config_of(tmp_path, max_epochs=3), arguments())
    assert "`train.max_iter` follows the data: 23 iterations" in (tmp_path / "log.txt").read_text()
