"""Differences with their confidence: exact where they can be known, sound where they are drawn."""

import dataclasses

import numpy as np
import pytest

from aligndetr.evaluation.bootstrap import _difference, bootstrap_differences
from aligndetr.evaluation.box_ap import GroundTruth
from aligndetr.evaluation.matching import match_boxes

BOX = [0.0, 0.0, 10.0, 10.0]


def matches_of(found, placed_well=True):
    """An image for each item, with one object, which a detection finds or not."""
    content = {
        "images": [{"id": i} for i in range(len(found))],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [
            {"id": i + 1, "image_id": i, "category_id": 1, "bbox": BOX} for i in range(len(found))
        ],
    }
    box = BOX if placed_well else [0.0, 0.0, 10.0, 6.0]  # IoU 0.6
    results = [
        {"image_id": i, "category_id": 1, "bbox": box, "score": 0.5}
        for i, yes in enumerate(found)
        if yes
    ]
    return match_boxes(GroundTruth.from_content(content, source="test"), results)


def test_equal_runs_do_not_differ():
    run = matches_of([1, 0, 1])
    ((found),) = bootstrap_differences([run, run], num_resamples=20)
    for difference in found.values():
        assert (difference.value, difference.low, difference.high) == (0, 0, 0)
        assert difference.p_better == 0.5


def test_a_run_that_is_better_on_every_image_is_better_in_every_draw():
    better, worse = matches_of([1] * 6), matches_of([1] * 6, placed_well=False)
    (found,) = bootstrap_differences([worse, better], num_resamples=20)
    # IoU 0.6 is enough for 3 of the 10 thresholds.
    assert found["AP"].value == pytest.approx(70)
    assert (found["AP"].low, found["AP"].high) == pytest.approx((70, 70))
    assert found["AP50"].value == pytest.approx(0)
    assert found["AP75"].value == pytest.approx(100)
    assert found["AP75"].p_better == 1


def test_spread_is_that_of_drawing_images():
    # The runs find every second image each, so AP50 is the share of drawn images that a run
    # finds. The difference of two shares that add up to 1 has a deviation of 1 / sqrt(n).
    n = 400
    even = np.arange(n) % 2 == 0
    (found,) = bootstrap_differences([matches_of(even), matches_of(~even)], num_resamples=400)
    half_width = (found["AP50"].high - found["AP50"].low) / 2
    assert half_width == pytest.approx(100 * 1.96 / n**0.5, rel=0.15)
    assert found["AP50"].low < 0 < found["AP50"].high


def test_bounds_leave_out_a_fortieth_on_either_side():
    found = _difference(0.0, np.arange(1001) / 10)
    assert (found.low, found.high) == pytest.approx((2.5, 97.5))


def test_the_same_seed_gives_the_same_numbers():
    runs = [matches_of([1, 0, 1, 1]), matches_of([0, 1, 1, 1])]
    assert bootstrap_differences(runs, 50, seed=3) == bootstrap_differences(runs, 50, seed=3)
    assert bootstrap_differences(runs, 50, seed=3) != bootstrap_differences(runs, 50, seed=4)


def test_runs_on_other_data_are_refused():
    with pytest.raises(ValueError, match="same images"):
        bootstrap_differences([matches_of([1, 1]), matches_of([1, 1, 1])])
    with pytest.raises(ValueError, match="needs 2 of each"):
        bootstrap_differences([matches_of([1])])


def test_without_an_object_no_difference_is_known():
    content = {"images": [{"id": 0}], "categories": [{"id": 1, "name": "a"}], "annotations": []}
    run = match_boxes(GroundTruth.from_content(content, source="test"), [])
    (found,) = bootstrap_differences([run, run], num_resamples=2)
    assert all(np.isnan(dataclasses.astuple(difference)).all() for difference in found.values())
