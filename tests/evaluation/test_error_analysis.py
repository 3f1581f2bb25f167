"""Errors in cases where it is known which they are and what AP they cost."""

import numpy as np
import pytest

from aligndetr.evaluation.average_precision import mean_ap
from aligndetr.evaluation.box_ap import GroundTruth
from aligndetr.evaluation.error_analysis import KINDS, analyse_errors, error_kinds
from aligndetr.evaluation.matching import match_boxes
from tests.evaluation.worlds import coco_results, make_world

CAT, DOG = 1, 2
HERE = [0.0, 0.0, 10.0, 10.0]
THERE = [50.0, 50.0, 10.0, 10.0]
NOWHERE = [90.0, 90.0, 10.0, 10.0]
BESIDE = [5.0, 0.0, 10.0, 10.0]  # IoU 50 / 150 with HERE


def matches_of(objects, detections):
    """One image; objects are (category, box), detections (category, box, score)."""
    content = {
        "images": [{"id": 1}],
        "categories": [{"id": CAT, "name": "cat"}, {"id": DOG, "name": "dog"}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": category, "bbox": box}
            for i, (category, box) in enumerate(objects, start=1)
        ],
    }
    results = [
        {"image_id": 1, "category_id": category, "bbox": box, "score": score}
        for category, box, score in detections
    ]
    return match_boxes(GroundTruth.from_content(content, source="test"), results)


def analysis(objects, detections):
    return analyse_errors(matches_of(objects, detections))


def costs(found):
    """The kinds that cost anything."""
    return {name: gain for name, gain in found.gains.items() if gain}


def test_nothing_is_wrong():
    found = analysis([(CAT, HERE)], [(CAT, HERE, 0.9)])
    assert found.ap == pytest.approx(100)
    assert costs(found) == {}
    assert set(found.counts.values()) == {0}


@pytest.mark.parametrize(
    ("kind", "detection", "gain"),
    [
        # The one cat is not found. Given the right class or box it is: AP 0 -> 100.
        ("classification", (DOG, HERE, 0.9), 100),
        ("localisation", (CAT, BESIDE, 0.9), 100),
        # Removing these finds nothing.
        ("both", (DOG, BESIDE, 0.9), 0),
        ("background", (CAT, NOWHERE, 0.9), 0),
    ],
)
def test_one_detection_that_is_wrong(kind, detection, gain):
    found = analysis([(CAT, HERE)], [detection])
    assert found.ap == 0
    assert [name for name in list(KINDS)[:5] if found.counts[name]] == [kind]
    assert found.gains[kind] == pytest.approx(gain)
    # What an error is about is not missed as well.
    assert found.counts["missed"] == (gain == 0)


def test_what_a_false_positive_before_the_true_one_costs():
    # Precision 1/2 at all recalls; 1 without the background.
    found = analysis([(CAT, HERE)], [(CAT, NOWHERE, 0.9), (CAT, HERE, 0.8)])
    assert found.ap == pytest.approx(50)
    assert costs(found) == {"background": pytest.approx(50)}
    assert found.gain_without_false_positives == pytest.approx(50)
    assert found.gain_without_false_negatives == 0


def test_a_duplicate_costs_where_it_comes_before_another_object():
    # true, duplicate, true: recall 1/2 (51 of 101 recalls) at precision 1, the rest at 2/3.
    found = analysis(
        [(CAT, HERE), (CAT, THERE)], [(CAT, HERE, 0.9), (CAT, HERE, 0.8), (CAT, THERE, 0.7)]
    )
    assert found.counts["duplicate"] == 1
    assert costs(found) == {"duplicate": pytest.approx(100 * 50 / 101 / 3)}


def test_missed_objects_are_taken_out_of_the_count():
    # One of two objects: recalls up to 1/2, which are 51 of 101.
    found = analysis([(CAT, HERE), (CAT, THERE)], [(CAT, HERE, 0.9)])
    assert found.ap == pytest.approx(100 * 51 / 101)
    assert costs(found) == {"missed": pytest.approx(100 * 50 / 101)}
    assert found.gain_without_false_negatives == pytest.approx(100 * 50 / 101)


def test_a_class_of_missed_objects_only_stays_a_class():
    found = analysis([(CAT, HERE), (DOG, THERE)], [(CAT, HERE, 0.9)])
    assert found.ap == pytest.approx(50)
    assert found.gains["missed"] == 0


def test_an_object_is_repaired_once_by_the_highest_score():
    # The second of two poorly placed boxes would be a duplicate, so it goes. Repaired: true at
    # 0.9, background at 0.8, the other object at 0.7; that is recall 1/2 at 1 and then 2/3.
    found = analysis(
        [(CAT, HERE), (CAT, THERE)],
        [(CAT, BESIDE, 0.9), (CAT, BESIDE, 0.85), (CAT, NOWHERE, 0.8), (CAT, THERE, 0.7)],
    )
    # Before: false, false, false, true with recall 1/2 at precision 1/4.
    before = 51 / 101 / 4
    assert found.ap == pytest.approx(100 * before)
    after = (51 + 50 * 2 / 3) / 101
    assert found.gains["localisation"] == pytest.approx(100 * (after - before))
    assert found.counts["localisation"] == 2


def test_an_error_about_a_found_object_is_removed():
    # Second on its own object, but called a dog, before the dog is found: the dogs' precision
    # is 1/2, and 1 when it is removed. It cannot become a second cat.
    found = analysis(
        [(CAT, HERE), (DOG, THERE)], [(CAT, HERE, 0.9), (DOG, HERE, 0.8), (DOG, THERE, 0.7)]
    )
    assert found.counts["classification"] == 1
    assert costs(found) == {"classification": pytest.approx(25)}


def test_localisation_goes_before_classification():
    # A cat's box that lies on a dog and beside a cat: the order of the authors' tool.
    found = analysis([(CAT, BESIDE), (DOG, HERE)], [(CAT, HERE, 0.9)])
    assert found.counts["localisation"] == 1
    assert found.counts["classification"] == 0


@pytest.mark.parametrize("seed", range(6))
def test_every_false_positive_is_of_one_kind(seed):
    content, detections = make_world(seed)
    truth = GroundTruth.from_content(content, source="test")
    matches = match_boxes(truth, coco_results(detections))
    kinds = error_kinds(matches)
    np.testing.assert_array_equal(kinds >= 0, matches.is_false[0])
    found = analyse_errors(matches)
    assert sum(found.counts[name] for name in list(KINDS)[:5]) == matches.is_false[0].sum()
    ap, _ = mean_ap(
        matches.classes, matches.is_true[0], matches.is_false[0], matches.objects_per_class()
    )
    assert found.ap == 100 * ap
    # Nothing can gain more than perfect precision and perfect recall bring.
    assert max(found.gains.values()) <= 100 - found.ap


def test_nothing_to_find():
    found = analysis([], [(CAT, HERE, 0.9)])
    assert np.isnan(found.ap)
    assert found.counts["background"] == 1
