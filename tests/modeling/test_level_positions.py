"""Positions that are kept equal positions that are computed, and only what may be kept is."""

from threading import Thread

import pytest
import torch
from torch import nn

from aligndetr.layers import PositionEmbeddingSine
from aligndetr.modeling import LevelPositions, padding_masks

CPU = torch.device("cpu")
SIZE, MAPS = (64, 96), [(8, 12), (4, 6)]


class Counting(PositionEmbeddingSine):
    calls = 0

    def forward(self, mask):
        self.calls += 1
        return super().forward(mask)


class Positions(LevelPositions):
    """Asked for one embedding only."""

    def __init__(self, embedding):
        super().__init__(capacity=2)
        self.embedding = embedding

    def __call__(self, *args):
        return super().__call__(self.embedding, *args)


@pytest.fixture
def positions():
    return Positions(Counting(8, normalize=True, offset=-0.5))


def assert_computed(positions, sizes, padded=SIZE, maps=MAPS):
    masks, embedded = positions(sizes, padded, maps, CPU)
    expected = padding_masks(sizes, padded, maps, CPU)
    for mask, position, truth in zip(masks, embedded, expected, strict=True):
        assert torch.equal(mask, truth)
        assert torch.equal(position, PositionEmbeddingSine.forward(positions.embedding, truth))


def test_equal_to_computing_them(positions):
    for sizes in ([SIZE], [SIZE] * 3, [SIZE, (50, 96)], [(50, 90), (64, 70)]):
        for _ in range(2):
            assert_computed(positions, sizes)


def test_a_size_is_embedded_once_for_batches_of_any_number(positions):
    for batch in (1, 3, 2):
        assert_computed(positions, [SIZE] * batch)
    assert positions.embedding.calls == len(MAPS)


def test_padded_batches_are_not_kept(positions):
    for _ in range(2):
        assert_computed(positions, [SIZE, (50, 96)])
    assert positions.embedding.calls == 2 * len(MAPS)
    assert not positions._kept


def test_the_least_recently_used_size_goes(positions):
    first, second, third = (((h, 96), [(h // 8, 12), (h // 16, 6)]) for h in (64, 80, 96))

    def compute(size, maps):
        assert_computed(positions, [size], size, maps)

    for size_and_maps in (first, second, first, third):
        compute(*size_and_maps)
    calls = positions.embedding.calls
    compute(*first)
    assert positions.embedding.calls == calls
    compute(*second)
    assert positions.embedding.calls == calls + len(MAPS)


def test_image_sizes_with_the_same_maps_share_an_entry(positions):
    for size in (SIZE, (60, 93)):
        assert_computed(positions, [size], size)
    assert positions.embedding.calls == len(MAPS)


def test_other_maps_of_one_image_size_are_another_entry(positions):
    assert_computed(positions, [SIZE])
    assert_computed(positions, [SIZE], maps=[(16, 24), (8, 12)])


def test_what_inference_mode_leaves_can_be_trained_with(positions):
    with torch.inference_mode():
        positions([SIZE], SIZE, MAPS, CPU)
    masks, embedded = positions([SIZE], SIZE, MAPS, CPU)
    assert not embedded[0].is_inference()
    weight = torch.ones(1, requires_grad=True)
    (embedded[0] * weight).masked_fill(masks[0][:, None], 0).sum().backward()


def test_an_embedding_that_learns_is_asked_every_time():
    class Learnt(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, mask):
            return (~mask)[:, None] * self.scale

    positions = Positions(Learnt())
    positions([SIZE], SIZE, MAPS, CPU)
    positions.embedding.scale.data.fill_(2)
    embedded = positions([SIZE], SIZE, MAPS, CPU)[1]
    assert embedded[0].unique().tolist() == [2]
    assert embedded[0].requires_grad


def test_another_embedding_is_another_entry(positions):
    assert_computed(positions, [SIZE])
    positions.embedding = Counting(8, normalize=False)
    assert_computed(positions, [SIZE])


def test_threads_may_ask_for_more_sizes_than_are_kept():
    positions = LevelPositions(capacity=1)
    embedding = PositionEmbeddingSine(2, normalize=True)
    maps = [[(1, width)] for width in range(1, 7)]
    finished = []

    def ask(start):
        for turn in range(1000):
            size = maps[(start + turn) % len(maps)]
            (mask,), _ = positions.unpadded(embedding, 1, size, CPU)
            assert mask.shape[1:] == size[0]
        finished.append(start)

    # No pool: it would wait for threads that never end.
    threads = [Thread(target=ask, args=(start,), daemon=True) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(finished) == list(range(8))
    assert len(positions._kept) == 1
