"""The schedule and the length of the training come from one number."""

import pytest
import torch
from detectron2.config import instantiate
from detectron2.solver import LRMultiplier

from aligndetr.config import ITERS_PER_EPOCH, coco_schedule


def rates(lr_multiplier, max_iter, iterations):
    """The learning rate at some iterations, as detectron2's LRMultiplier sets it."""
    multiplier = instantiate(lr_multiplier)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = LRMultiplier(optimizer, multiplier, max_iter)
    rates = []
    for iteration in iterations:
        scheduler.last_epoch = iteration
        rates.append(scheduler.get_lr()[0])
    return rates


def test_an_epoch_is_coco_in_batches_of_16():
    assert ITERS_PER_EPOCH * 12 == 90_000
    images_of_train2017 = 118_287
    assert abs(ITERS_PER_EPOCH * 16 / images_of_train2017 - 1) < 0.02


@pytest.mark.parametrize(("epochs", "decay_epoch"), [(12, 11), (24, 20), (36, 30)])
def test_falls_to_a_tenth_exactly_at_the_epoch(epochs, decay_epoch):
    max_iter, lr_multiplier = coco_schedule(epochs, decay_epoch)
    decay = decay_epoch * 7500
    assert max_iter == epochs * 7500
    assert rates(lr_multiplier, max_iter, [0, decay - 1, decay, max_iter - 1]) == [1, 1, 0.1, 0.1]


@pytest.mark.parametrize("max_iter", [20, 120, 5000, 180_000])
def test_overriding_max_iter_alone_keeps_the_shape(max_iter):
    _, lr_multiplier = coco_schedule(epochs=12, decay_epoch=9)
    decay = max_iter * 9 // 12
    assert rates(lr_multiplier, max_iter, [0, decay - 1, decay, max_iter - 1]) == [1, 1, 0.1, 0.1]


def test_warm_up_rises_linearly_from_a_thousandth():
    max_iter, lr_multiplier = coco_schedule(epochs=12, decay_epoch=11, warmup_steps=1000)
    found = rates(lr_multiplier, max_iter, [0, 500, 1000, 2000])
    assert found == pytest.approx([0.001, 0.5005, 1, 1])
    shorter = rates(lr_multiplier, max_iter // 10, [0, 50, 100, 200])
    assert shorter == pytest.approx(found)


@pytest.mark.parametrize(
    ("epochs", "decay_epoch", "warmup_steps", "name"),
    [(12, 12, 0, "decay_epoch"), (12, 0, 0, "decay_epoch"), (0, 0, 0, "decay_epoch"),
     (12, 11, -1, "warmup_steps"), (12, 1, 7500, "warmup_steps")],
)  # fmt: skip
def test_impossible_schedules_are_refused(epochs, decay_epoch, warmup_steps, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        coco_schedule(epochs, decay_epoch, warmup_steps)
