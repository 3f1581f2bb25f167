"""The global generators: taken up again where they stood, and seeded for a moment only."""

import random

import numpy as np
import torch

from aligndetr.utils.random_states import (
    get_random_states,
    preserved_random_states,
    seeded,
    set_random_states,
)


def draw():
    """Numbers of all generators; a normal one of each, for those are drawn in pairs."""
    normal = random.gauss(0, 1), np.random.randn(), torch.randn(1).item()
    return *normal, random.random(), np.random.rand(), torch.rand(1).item()


def test_generators_go_on_from_saved_states(tmp_path):
    draw()  # now each holds the second of a pair
    torch.save(get_random_states(), tmp_path / "states")
    expected = [draw() for _ in range(400)]  # beyond one refill of 624 words
    set_random_states(torch.load(tmp_path / "states", weights_only=True))
    assert [draw() for _ in range(400)] == expected


def test_a_block_that_preserves_states_can_draw_what_it_likes():
    states = get_random_states()
    expected = draw()
    set_random_states(states)
    with preserved_random_states():
        draw()
        torch.manual_seed(3)
    assert draw() == expected


def test_seeded_streams_depend_on_all_numbers_and_on_nothing_else():
    def stream(*numbers):
        with seeded(*numbers):
            return draw()

    first = stream(5, 7)
    draw()
    assert stream(5, 7) == first
    others = [stream(*numbers) for numbers in ((5, 8), (6, 7), (7, 5), (5,), (5, 7 + 2**32))]
    for position in range(6):
        assert len({numbers[position] for numbers in (first, *others)}) == 6


def test_seeding_a_block_leaves_the_generators_as_they_were():
    states = get_random_states()
    expected = draw()
    set_random_states(states)
    with seeded(1):
        draw()
    assert draw() == expected
