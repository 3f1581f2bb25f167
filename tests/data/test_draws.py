"""What is drawn when, with which random numbers."""

import itertools
import random

import numpy as np
import pytest
import torch
from detectron2.data.samplers import TrainingSampler

from aligndetr.data import DatasetError
from aligndetr.data.draws import Draw, DrawnDataset, ShuffledIndices, batches_of_draws


def first(count, iterable):
    return list(itertools.islice(iterable, count))


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_the_ranks_share_the_stream_of_one(world_size):
    whole = first(40, ShuffledIndices(5, seed=3))
    for rank in range(world_size):
        part = first(5, ShuffledIndices(5, 3, rank, world_size))
        assert part == whole[rank::world_size][:5]


def test_each_pass_is_another_order_of_all_images():
    passes = list(zip(*[iter(first(44, ShuffledIndices(11, seed=3)))] * 11, strict=True))
    assert all(sorted(order) == list(range(11)) for order in passes)
    assert len(set(passes)) == 4
    assert first(44, ShuffledIndices(11, seed=4)) != first(44, ShuffledIndices(11, seed=3))


def test_the_order_is_that_of_detectron2():
    assert first(33, ShuffledIndices(11, seed=3)) == first(33, TrainingSampler(11, seed=3))


def test_draws_are_numbered_over_all_ranks():
    batches = batches_of_draws([8, 9, 8], 1, rank=1, world_size=3)
    assert list(batches) == [[Draw(8, 1)], [Draw(9, 4)], [Draw(8, 7)]]


def test_a_batch_holds_one_group_and_no_draw_is_lost():
    groups = [0, 0, 0, 1, 1]
    batches = first(20, batches_of_draws(ShuffledIndices(5, seed=3), 2, groups=groups))
    for batch in batches:
        assert len({groups[draw.index] for draw in batch}) == 1
    numbers = sorted(draw.number for batch in batches for draw in batch)
    assert len(set(numbers)) == 40
    assert numbers[-1] <= 41  # one of each group may still wait


def mapper(sample):
    return sample["n"], random.random(), np.random.rand(), torch.rand(1).item()


def test_a_sample_depends_on_seed_and_number_of_its_draw():
    dataset = [{"n": n} for n in range(3)]
    drawn = DrawnDataset(dataset, mapper, seed=1)
    sample = drawn[Draw(2, 5)]
    np.random.rand(), torch.rand(1), random.random()
    assert drawn[Draw(2, 5)] == sample
    for other in (drawn[Draw(2, 6)], DrawnDataset(dataset, mapper, seed=2)[Draw(2, 5)]):
        assert other[0] == sample[0] == 2
        assert all(a != b for a, b in zip(other[1:], sample[1:], strict=True))


def test_another_image_takes_the_place_of_one_that_is_left_out():
    def odd_only(sample):
        return sample if sample["n"] % 2 else None

    drawn = DrawnDataset([{"n": n} for n in range(9)], odd_only, seed=1)
    taken = [drawn[Draw(0, number)]["n"] for number in range(60)]
    assert set(taken) == {1, 3, 5, 7}
    assert taken == [drawn[Draw(0, number)]["n"] for number in range(60)]
    with pytest.raises(DatasetError, match="left out 100 images"):
        DrawnDataset([{"n": 0}], odd_only, seed=1)[Draw(0, 0)]
