"""The measures of docs/alignment.md, worked by hand."""

import numpy as np
import pytest

from aligndetr.evaluation.alignment import (
    Alignment,
    assign,
    best_regressed_recall,
    calibration,
    correlations,
)
from aligndetr.evaluation.alignment_summary import summarise_alignment
from aligndetr.evaluation.objects import ImageObjects


def objects_of(boxes, classes=None, crowd=()):
    boxes = np.array(boxes, dtype=float).reshape(-1, 4)
    crowd = np.array(crowd, dtype=float).reshape(-1, 4)
    return ImageObjects(
        boxes=boxes,
        classes=np.array(classes if classes is not None else [0] * len(boxes), dtype=int),
        areas=boxes[:, 2] * boxes[:, 3],
        countable=np.ones(len(boxes), dtype=bool),
        crowd_boxes=crowd,
        crowd_classes=np.zeros(len(crowd), dtype=int),
    )


def measured(candidates, objects):
    """Candidates are (score, class, XYWH)."""
    scores, classes, boxes = zip(*candidates) if candidates else ((), (), ())
    return Alignment.of_image(
        np.array(scores, dtype=float),
        np.array(classes, dtype=int),
        np.array(boxes, dtype=float).reshape(-1, 4),
        objects,
    )


# An object of 10 x 10; boxes of its width and these heights have IoU 1.0, 0.8 and 0.5 with it.
OBJECT = [0.0, 0.0, 10.0, 10.0]
TALL, MIDDLE, LOW = OBJECT, [0.0, 0.0, 10.0, 8.0], [0.0, 0.0, 10.0, 5.0]
FAR = [60.0, 60.0, 10.0, 10.0]


def test_each_candidate_has_a_score_a_nearest_and_an_assigned_iou():
    found = measured([(0.3, 0, TALL), (0.9, 0, MIDDLE), (0.6, 0, FAR)], objects_of([OBJECT]))
    assert found.scores.tolist() == [0.9, 0.6, 0.3]
    assert found.nearest_iou.tolist() == pytest.approx([0.8, 0, 1.0])
    assert found.assigned_iou.tolist() == pytest.approx([0.8, 0, 0])  # the better one is a repeat
    assert found.object_scores.tolist() == [0.9]
    assert found.object_ious.tolist() == pytest.approx([0.8])
    assert found.best_iou.tolist() == pytest.approx([1.0])
    assert found.best_rank.tolist() == [2]


def test_a_candidate_is_assigned_within_its_class():
    found = measured([(0.9, 1, TALL), (0.2, 0, LOW)], objects_of([OBJECT], classes=[0]))
    assert found.nearest_iou.tolist() == pytest.approx([0, 0.5])
    assert found.assigned_iou.tolist() == pytest.approx([0, 0.5])
    # Best regressed is a matter of boxes alone.
    assert found.best_iou.tolist() == pytest.approx([1.0])
    assert found.best_rank.tolist() == [0]


def test_assignment_takes_the_free_object_of_the_highest_iou():
    iou = np.array([[0.9, 0.6], [0.8, 0.3], [0.7, 0.5], [0.05, 0.05]])
    assert assign(iou).tolist() == [0, 1]
    assert assign(iou[3:]).tolist() == [-1, -1]  # below 0.1
    assert assign(iou[:0]).tolist() == [-1, -1]


def test_candidates_in_a_crowd_are_left_out_unless_assigned():
    crowd = [[0.0, 0.0, 40.0, 40.0]]
    found = measured(
        [(0.9, 0, TALL), (0.8, 0, LOW), (0.7, 0, FAR)], objects_of([OBJECT], None, crowd)
    )
    assert found.scores.tolist() == [0.9, 0.7]


def test_recall_of_best_regressed_samples():
    # Two objects. The first's best box has the highest score, the second's the third highest:
    # among the top 2 is one of two, among the top 4 both.
    second = [30.0, 30.0, 10.0, 10.0]
    worse = [30.0, 30.0, 10.0, 7.0]
    found = measured(
        [(0.9, 0, TALL), (0.8, 0, worse), (0.7, 0, second), (0.1, 0, FAR)],
        objects_of([OBJECT, second]),
    )
    assert found.object_counts.tolist() == [2, 2]
    assert best_regressed_recall(found, 1) == 0.5
    assert best_regressed_recall(found, 2) == 1.0


def test_an_object_that_nothing_overlaps_has_no_best_sample():
    found = measured([(0.9, 0, FAR)], objects_of([OBJECT]))
    assert found.best_rank.tolist() == [1]
    assert best_regressed_recall(found, 2) == 0.0
    nothing = measured([], objects_of([OBJECT]))
    assert best_regressed_recall(nothing, 2) == 0.0
    assert np.isnan(best_regressed_recall(measured([], objects_of([])), 1))


def test_recall_counts_objects_over_images():
    one = measured([(0.9, 0, TALL)], objects_of([OBJECT]))
    none = measured([(0.9, 0, FAR)], objects_of([OBJECT, [20.0, 20.0, 5.0, 5.0]]))
    assert best_regressed_recall(Alignment.concatenate([one, none]), 1) == pytest.approx(1 / 3)


def test_recall_is_among_the_scores_of_the_same_image():
    first = measured([(0.2, 0, TALL)], objects_of([OBJECT]))
    second = measured([(0.9, 0, FAR), (0.8, 0, TALL)], objects_of([OBJECT]))
    both = Alignment.concatenate([first, second])
    assert best_regressed_recall(both, 1) == 0.5  # N is 1 in each, not 2
    assert best_regressed_recall(both, 2) == 1.0


def test_correlations():
    x = np.array([0.1, 0.2, 0.3, 0.9])
    assert correlations(x, 2 * x) == pytest.approx((1, 1))
    assert correlations(x, -x) == pytest.approx((-1, -1))
    assert correlations(x, x**5)[1] == pytest.approx(1)  # ranks agree
    assert correlations(x, x**5)[0] < 0.99
    assert np.isnan(correlations(x[:2], x[:2])).all()
    assert np.isnan(correlations(x, np.ones(4))).all()


def test_calibration_by_hand():
    # Two bins: mean score 0.2 with mean IoU 0.4, and 0.9 with 0.6.
    found = calibration(np.array([0.1, 0.3, 0.9]), np.array([0.5, 0.3, 0.6]), num_bins=2)
    assert found.counts.tolist() == [2, 1]
    assert found.mean_scores.tolist() == pytest.approx([0.2, 0.9])
    assert found.mean_ious.tolist() == pytest.approx([0.4, 0.6])
    assert found.error == pytest.approx((2 * 0.2 + 0.3) / 3)


def test_calibration_of_the_ends_and_of_nothing():
    assert calibration(np.array([0.0, 1.0]), np.array([0.0, 1.0]), 4).counts.tolist() == [
        1,
        0,
        0,
        1,
    ]
    assert np.isnan(calibration(np.zeros(0), np.zeros(0)).error)


def test_summary_by_size_and_class():
    big = [100.0, 100.0, 100.0, 100.0]
    image = measured(
        [(0.9, 0, TALL), (0.8, 1, big), (0.3, 1, big)], objects_of([OBJECT, big], classes=[0, 1])
    )
    summary = summarise_alignment({"first": image, "last": image}, ["tree", "house", "nothing"])
    assert [layer["name"] for layer in summary["layers"]] == ["first", "last"]
    counts = {row["name"]: row["objects"] for row in summary["sizes"] + summary["classes"]}
    assert counts == {"small": 1, "medium": 0, "large": 1, "tree": 1, "house": 1, "nothing": 0}
    last = summary["layers"][-1]
    assert last["candidates"] == 3
    assert last["matched"] == 2
    assert last["best_regressed_recall_1"] == 1.0
    assert last["assigned_iou"] == pytest.approx(1.0)
    assert last["calibration_error"] == pytest.approx((0.1 + 0.2 + 0.3) / 3)
    assert last["calibration_error_matched"] == pytest.approx((0.1 + 0.2) / 2)
    assert np.isnan(summary["classes"][2]["best_regressed_recall_1"])
    assert sum(summary["calibration"]["counts"]) == 3
