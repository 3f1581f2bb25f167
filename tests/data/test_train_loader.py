"""Batches come in the same order and the same shape, whoever loads them and wherever one begins."""

import itertools
import logging

import numpy as np
import pytest
import torch

from aligndetr.data import DatasetError, build_detection_train_loader
from aligndetr.data.train_loader import TrainLoader

SIZES = [(5, 4), (4, 5), (6, 4), (4, 4), (7, 2), (3, 9), (4, 3)]  # four are wider than high
DATASET = [{"n": n, "width": w, "height": h} for n, (w, h) in enumerate(SIZES)]


def mapper(sample):
    return {"n": sample["n"], "noise": [np.random.rand(), torch.rand(1).item()]}


def make_loader(**changes):
    arguments = {"mapper": mapper, "total_batch_size": 2, "seed": 3}
    return build_detection_train_loader(DATASET, **(arguments | changes))


def take(count, loader):
    return list(itertools.islice(loader, count))


def test_workers_do_not_change_what_comes():
    alone = take(12, make_loader())
    assert len({noise for batch in alone for x in batch for noise in x["noise"]}) == 48
    for num_workers in (1, 2):
        assert take(12, make_loader(num_workers=num_workers)) == alone


@pytest.mark.parametrize("grouping", [True, False])
@pytest.mark.parametrize("taken", [0, 1, 5, 9])
def test_a_new_loader_goes_on_where_an_old_one_stood(grouping, taken, tmp_path):
    whole = take(14, make_loader(aspect_ratio_grouping=grouping))
    old = make_loader(aspect_ratio_grouping=grouping, num_workers=2)
    assert take(taken, old) == whole[:taken]  # though its workers have prepared more
    torch.save(old.state_dict(), tmp_path / "state")
    new = make_loader(aspect_ratio_grouping=grouping, seed=99)  # the seed of the run counts
    new.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert take(14 - taken, new) == whole[taken:]


def with_tensors(sample):
    return {
        "image": torch.full((3, 200, 200), sample["n"], dtype=torch.uint8),
        "boxes": torch.rand(7, 4)[::2],
        "none": torch.empty(0, 4),
        "half": torch.rand(2).bfloat16(),  # which numpy does not have
        "weight": torch.rand(2).requires_grad_(),
    }


def test_a_worker_shares_large_tensors_alone():
    """Each shared one is an open file of this process."""
    alone = take(3, make_loader(mapper=with_tensors))
    by_worker = take(3, make_loader(mapper=with_tensors, num_workers=1))
    for ours, theirs in zip(itertools.chain(*by_worker), itertools.chain(*alone), strict=True):
        for name, tensor in ours.items():
            assert torch.equal(tensor, theirs[name]), name
            assert tensor.dtype == theirs[name].dtype
            assert tensor.requires_grad == theirs[name].requires_grad
        assert ours["image"].is_shared()
        assert not ours["boxes"].is_shared()
        ours["boxes"] += 1  # may be written to, without a warning


def test_upright_and_lying_images_come_apart():
    for batch in take(20, make_loader()):
        assert len({x["n"] in (0, 2, 4, 6) for x in batch}) == 1
    mixed = take(20, make_loader(aspect_ratio_grouping=False))
    assert any(len({x["n"] in (0, 2, 4, 6) for x in batch}) == 2 for batch in mixed)


def test_the_seed_decides_order_and_augmentation():
    assert take(3, make_loader()) == take(3, make_loader())
    assert take(3, make_loader(seed=4)) != take(3, make_loader())
    for drawn in (None, -1):
        np.random.seed(0)
        one = take(3, make_loader(seed=drawn))
        np.random.seed(0)
        assert take(3, make_loader(seed=drawn)) == one


def test_loading_leaves_the_global_generators_alone():
    states = torch.get_rng_state(), np.random.get_state()[1].tolist()
    for num_workers in (0, 1):
        take(3, make_loader(num_workers=num_workers))
        assert torch.equal(torch.get_rng_state(), states[0])
        assert np.random.get_state()[1].tolist() == states[1]


def test_another_batch_size_goes_on_after_as_many_images_and_says_so(caplog):
    old = make_loader(aspect_ratio_grouping=False)
    take(9, old)
    new = make_loader(aspect_ratio_grouping=False, total_batch_size=3)
    with caplog.at_level(logging.WARNING):
        new.load_state_dict(old.state_dict())
    assert "images in a batch of a process: 2 then, 3 now" in caplog.text
    expected = take(12, make_loader(aspect_ratio_grouping=False, total_batch_size=3))[6:]
    assert take(6, new) == expected


def test_same_batches_are_taken_up_in_silence(caplog):
    old = make_loader()
    take(2, old)
    make_loader().load_state_dict(old.state_dict())
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


def test_images_without_size_can_be_loaded_but_not_grouped():
    dataset = [{"n": 1, "file_name": "a.png", "width": None, "height": 3}]
    with pytest.raises(DatasetError, match=r"a\.png.*width None.*aspect_ratio_grouping=False"):
        build_detection_train_loader(dataset, mapper=mapper, total_batch_size=1)
    loader = build_detection_train_loader(
        dataset, mapper=mapper, total_batch_size=1, aspect_ratio_grouping=False
    )
    assert take(1, loader)[0][0]["n"] == 1


@pytest.mark.parametrize("size", [0, -2])
def test_a_batch_needs_images(size):
    with pytest.raises(ValueError, match=rf"`total_batch_size` \(={size}\)"):
        make_loader(total_batch_size=size)
    with pytest.raises(DatasetError, match="no image"):
        build_detection_train_loader([], mapper=mapper, total_batch_size=1)


def test_a_sampler_of_ones_own_is_followed():
    loader = TrainLoader(DATASET, mapper, 2, seed=3, sampler=[4, 4, 1, 0, 6, 6])
    assert [[x["n"] for x in batch] for batch in take(3, loader)] == [[4, 4], [1, 0], [6, 6]]


@pytest.mark.parametrize(
    ("batch_size", "num_workers", "prefetch_factor", "ahead"),
    [(10, 2, None, 20), (1, 2, None, 4), (1, 2, 3, 6)],
    ids=["two batches", "two images of each worker", "as asked for"],
)
def test_while_a_batch_is_used_workers_prepare_the_next(
    batch_size, num_workers, prefetch_factor, ahead
):
    drawn = []

    def noted():
        for index in itertools.cycle(range(len(DATASET))):
            drawn.append(index)
            yield index

    loader = TrainLoader(
        DATASET, mapper, batch_size, seed=3, sampler=noted(),
        num_workers=num_workers, prefetch_factor=prefetch_factor,
    )  # fmt: skip
    next(iter(loader))
    assert len(drawn) == batch_size + ahead
