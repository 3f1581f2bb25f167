"""Ranks of candidates within their object's bag."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from aligndetr.losses import get_local_rank


def indices_of(*gt_per_image):
    return [(torch.arange(len(gt)), torch.tensor(gt, dtype=torch.long)) for gt in gt_per_image]


def test_best_candidate_of_each_object_has_rank_zero():
    quality = torch.tensor([0.3, 0.6, 0.5, 0.1, 0.9])
    assert get_local_rank(quality, indices_of([0, 0, 0, 1, 1])).tolist() == [2, 0, 1, 1, 0]


def test_bags_of_unequal_size():
    quality = torch.tensor([0.2, 0.4, 0.3, 0.1, 0.8, 0.9])
    assert get_local_rank(quality, indices_of([0, 1, 1], [0, 2, 2])).tolist() == [0, 0, 1, 0, 1, 0]


def test_objects_without_a_candidate_do_not_shift_the_others():
    # More objects than queries: objects 0, 2 and 3 found no query.
    quality = torch.tensor([0.2, 0.7, 0.5])
    assert get_local_rank(quality, indices_of([1, 4, 4])).tolist() == [0, 0, 1]


def test_same_object_number_in_two_images_is_two_bags():
    quality = torch.tensor([0.1, 0.2, 0.3, 0.4])
    assert get_local_rank(quality, indices_of([0, 0], [], [0, 0])).tolist() == [1, 0, 1, 0]


def test_ties_keep_input_order():
    assert get_local_rank(torch.full((5,), 0.5), indices_of([0, 1, 0, 1, 0])).tolist() == [
        0, 0, 1, 1, 2,
    ]  # fmt: skip


def test_nothing_matched():
    assert get_local_rank(torch.zeros(0), indices_of([], [])).tolist() == []
    assert get_local_rank(torch.zeros(0), []).dtype == torch.long


images = st.lists(
    st.lists(st.tuples(st.integers(0, 4), st.sampled_from([0.1, 0.3, 0.5, 0.9])), max_size=9),
    max_size=4,
)


@given(images)
def test_rank_counts_the_better_candidates_of_the_same_object(batch):
    quality = torch.tensor([q for image in batch for _, q in image])
    rank = get_local_rank(quality, indices_of(*[[gt for gt, _ in image] for image in batch]))
    expected = [
        sum(
            gt == other_gt and (other_q > q or (other_q == q and j < i))
            for j, (other_gt, other_q) in enumerate(image)
        )
        for image in batch
        for i, (gt, q) in enumerate(image)
    ]
    assert rank.tolist() == expected


def test_any_integer_dtype():
    indices = [(torch.tensor([0, 1]), torch.tensor([0, 0], dtype=torch.int32))]
    assert get_local_rank(torch.tensor([0.1, 0.9]), indices).tolist() == [1, 0]
