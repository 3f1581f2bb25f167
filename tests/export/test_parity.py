"""Comparing detections, by cases worked by hand."""

import math
import re
from dataclasses import replace

import pytest
import torch
from detectron2.structures import Boxes, Instances

from aligndetr.export import Comparison, compare, render_table
from aligndetr.export.parity import Tolerance, agree
from aligndetr.export.ranking import RankingDifference

TOLERANCE = Tolerance(box=0.5, score=1e-3, gap=5e-4)
IMAGES = [("a.png", torch.zeros(3, 100, 120, dtype=torch.uint8))]
FOUND = [((10, 10, 20, 20), 0.9, 0), ((30, 10, 40, 20), 0.5, 1), ((0, 0, 5, 5), 0.04, 0)]


def detector(detections):
    """One that finds the same in every image; `detections` may be a function of the image."""

    def run(inputs):
        return [{"instances": instances(x["image"])} for x in inputs]

    def instances(image):
        found = detections(image) if callable(detections) else detections
        boxes, scores, classes = zip(*found)
        result = Instances(tuple(image.shape[1:]))
        result.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
        result.scores, result.pred_classes = torch.tensor(scores), torch.tensor(classes)
        return result

    return run


def changed(index, box=None, score=None, class_id=None):
    old = FOUND[index]
    new = (box or old[0], score or old[1], old[2] if class_id is None else class_id)
    return sorted([*FOUND[:index], new, *FOUND[index + 1 :]], key=lambda d: -d[1])


def compared(exported, model=FOUND):
    return compare(detector(model), detector(exported), IMAGES, TOLERANCE)


def test_two_sizes_and_three_batches():
    comparisons = compared(FOUND)
    assert [(c.size, c.batch) for c in comparisons] == [
        ((100, 120), 1), ((100, 120), 2), ((75, 90), 1), ((75, 90), 3),
    ]  # fmt: skip
    assert all(c.box == c.score == 0 == c.apart for c in comparisons)
    assert [c.compared for c in comparisons] == [6, 12, 6, 18]  # either side's


def test_images_are_not_made_too_small_for_a_program():
    images = [("a.png", torch.zeros(3, 70, 90, dtype=torch.uint8))]
    sizes = {c.size for c in compare(detector(FOUND), detector(FOUND), images, TOLERANCE)}
    assert sizes == {(70, 90), (65, 68)}


@pytest.mark.parametrize(
    ("exported", "apart", "box", "score"),
    [
        (changed(0, box=(10, 10, 20.25, 20)), 0, 0.25, 0),
        (changed(0, score=0.90048828125), 0, 0, 0.00048828125),
        (changed(0, box=(10, 9, 20, 20)), 2, 1, 0),
        (changed(0, score=0.902), 2, 0, 0.002),
        (changed(1, class_id=0), 2, math.inf, math.inf),
        (FOUND[1:], 1, math.inf, math.inf),  # one is missing
        ([*FOUND, ((50, 5, 60, 15), 0.03, 2)], 1, math.inf, math.inf),  # one too many
        (changed(1, box=(30, 10, math.nan, 20)), 2, math.nan, 0),
    ],
)
def test_differences(exported, apart, box, score):
    first = compared(exported)[0]
    assert first.apart == apart
    assert first.box == pytest.approx(box, abs=0, nan_ok=True)
    assert first.score == pytest.approx(score, abs=1e-7)


def test_order_does_not_matter():
    model = [((10, 10, 20, 20), 0.5, 0), ((11, 10, 21, 20), 0.5, 0)]
    assert compared(model[::-1], model)[0].box == 0


def test_only_detections_that_count_are_compared():
    """Ten count at least; of more, those over 0.05."""
    many = [((i, i, i + 5, i + 5), 0.9, 0) for i in range(12)]
    low = ((50, 5, 60, 15), 0.04, 0)
    moved = ((50, 5, 60, 25), 0.04, 0)
    assert compared([*many, moved], [*many, low])[0].box == 0


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, True),
        ({"apart": 1}, False),
        ({"ranking": RankingDifference(moved=3, gap=1e-5)}, True),
        ({"ranking": RankingDifference(moved=2, gap=1e-3)}, False),
        ({"ranking": RankingDifference(moved=2, gap=math.nan)}, False),
    ],
)
def test_no_detection_may_be_apart_and_no_gap_wide(change, expected):
    ranking = RankingDifference(moved=0, gap=0)
    fine = Comparison("a", (1, 1), 1, compared=100, apart=0, box=0, score=0, ranking=ranking)
    assert agree([fine, replace(fine, **change)], TOLERANCE) is expected


def test_the_table_counts_what_is_apart():
    table = render_table(compared(changed(0, box=(10, 9, 20, 20))), TOLERANCE)
    assert "more than 0.5 px or 0.001" in table
    assert re.search(r"a.png +120 x 100 +2 +12 +4 +1.0000 +0.000000 +0 +0.0e\+00", table)
