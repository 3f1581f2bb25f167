"""Threshold, confusion matrix and image quality, worked by hand."""

import numpy as np
import pytest

from aligndetr.evaluation.operating_point import best_f1, confusion_matrix, panoptic_quality
from tests.evaluation.test_error_analysis import BESIDE, CAT, DOG, HERE, NOWHERE, THERE, matches_of


def test_the_threshold_of_the_highest_f1():
    # true, false, true, false of three objects. F1 = 2 TP / (detections + objects):
    # 2/4, 2/5, 4/6, 4/7.
    matches = matches_of(
        [(CAT, HERE), (CAT, THERE), (DOG, BESIDE)],
        [(CAT, HERE, 0.9), (CAT, NOWHERE, 0.8), (CAT, THERE, 0.5), (DOG, NOWHERE, 0.3)],
    )
    point = best_f1(matches)
    assert (point.score, point.precision, point.recall) == (0.5, 2 / 3, 2 / 3)
    assert point.f1 == pytest.approx(2 / 3)


def test_a_threshold_takes_all_detections_of_its_score():
    matches = matches_of([(CAT, HERE)], [(CAT, HERE, 0.5), (CAT, NOWHERE, 0.5)])
    assert best_f1(matches).precision == 0.5


@pytest.mark.parametrize("detections", [[], [(CAT, NOWHERE, 0.5)]])
def test_without_a_true_positive_there_is_no_threshold(detections):
    assert np.isnan(best_f1(matches_of([(CAT, HERE)], detections)).score)


def test_confusion_matrix():
    matches = matches_of(
        [(CAT, HERE), (CAT, THERE), (DOG, NOWHERE)],
        [
            (CAT, HERE, 0.9),  # right
            (DOG, THERE, 0.8),  # a cat called a dog
            (DOG, THERE, 0.7),  # the same again: that cat is taken
            (CAT, [30.0, 0.0, 9.0, 9.0], 0.6),  # nothing
            (DOG, NOWHERE, 0.1),  # right, but below the threshold
        ],
    )
    #                         cat dog nothing detected
    assert confusion_matrix(matches, 0.5).tolist() == [[1, 1, 0], [0, 0, 1], [1, 1, 0]]
    assert confusion_matrix(matches, 0.0).tolist() == [[1, 1, 0], [0, 1, 0], [1, 1, 0]]


def test_the_right_class_goes_before_a_higher_score():
    # A dog of score 0.9 lies on the cat that the cat of score 0.2 finds.
    matches = matches_of([(CAT, HERE)], [(DOG, HERE, 0.9), (CAT, HERE, 0.2)])
    assert confusion_matrix(matches, 0.0).tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]


def test_quality_of_an_image():
    # IoU 0.6; one false positive, one object left: 0.6 / (1 + 1/2 + 1/2).
    matches = matches_of(
        [(CAT, HERE), (CAT, THERE)], [(CAT, [0.0, 0.0, 10.0, 6.0], 0.9), (CAT, NOWHERE, 0.8)]
    )
    assert panoptic_quality(matches, 0.5).tolist() == pytest.approx([0.3])
    # Without the false positive: 0.6 / (1 + 1/2).
    assert panoptic_quality(matches, 0.85).tolist() == pytest.approx([0.4])


def test_an_image_with_nothing_in_it_has_no_quality():
    matches = matches_of([], [(CAT, HERE, 0.3)])
    assert np.isnan(panoptic_quality(matches, 0.5)).all()
    assert panoptic_quality(matches, 0.2).tolist() == [0.0]
