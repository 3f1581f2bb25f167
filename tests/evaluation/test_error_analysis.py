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


def mixed_world(seed, num_images=8, num_classes=3):
    """Objects and detections around them, (image, category, box) and (…, score)."""
    rng = np.random.default_rng(seed)
    objects, detections = [], []
    for image in range(num_images):
        count = int(rng.integers(1, 8))
        boxes = np.concatenate([100 * rng.random((count, 2)), 10 + 60 * rng.random((count, 2))], 1)
        labels = rng.integers(0, num_classes, count)
        objects += [(image, int(k), box.tolist()) for k, box in zip(labels, boxes)]
        about = rng.integers(0, count, 40)
        found = boxes[about] + rng.normal(0, 8, (40, 4))
        found[:, 2:] = np.maximum(found[:, 2:], 1)
        wrong = rng.random(40) < 0.3
        labels = np.where(wrong, rng.integers(0, num_classes, 40), labels[about])
        scores = rng.random(40)
        detections += [
            (image, int(k), box.tolist(), float(score))
            for k, box, score in zip(labels, found, scores)
        ]
    return objects, detections


# By seed: AP50; counts and gains in the order of KINDS; gains without false positives, negatives.
TIDECV = {
    0: (
        25.591794,
        [17, 146, 24, 79, 25, 1],
        [0.534557, 36.231617, 2.336812, 1.682077, 0.534737, 0.551889],
        [62.196985, 2.948497],
    ),
    6: (
        24.222352,
        [35, 109, 28, 109, 14, 0],
        [2.353857, 11.165524, 4.272352, 3.826984, 0.978432, 0.0],
        [75.777648, 0.0],
    ),
    10: (
        22.656431,
        [20, 152, 38, 62, 25, 0],
        [3.496785, 29.187683, 1.720931, 1.033444, 2.204055, 0.0],
        [64.802315, 3.282181],
    ),
}


@pytest.mark.parametrize("seed", TIDECV)
def test_numbers_of_the_authors_tool(seed):
    """AP50, counts and gains that tidecv 1.0.1 prints for these worlds.

    (In worlds where a recall is one of the 101 exactly, gains differ in the second digit: COCO's
    recalls are those of `np.linspace`, tidecv's are i / 100.)
    """
    objects, detections = mixed_world(seed)
    content = {
        "images": [{"id": image} for image in range(8)],
        "categories": [{"id": category} for category in range(3)],
        "annotations": [
            {"id": i, "image_id": image, "category_id": category, "bbox": box}
            for i, (image, category, box) in enumerate(objects, start=1)
        ],
    }
    keys = ("image_id", "category_id", "bbox", "score")
    results = [dict(zip(keys, detection)) for detection in detections]
    matches = match_boxes(GroundTruth.from_content(content, source="test"), results)
    found = analyse_errors(matches)
    ap, counts, gains, without_false = TIDECV[seed]
    assert found.ap == pytest.approx(ap, abs=1e-6)
    assert list(found.counts.values()) == counts
    assert list(found.gains.values()) == pytest.approx(gains, abs=1e-6)
    assert [
        found.gain_without_false_positives,
        found.gain_without_false_negatives,
    ] == pytest.approx(without_false, abs=1e-6)


def test_nothing_to_find():
    found = analysis([], [(CAT, HERE, 0.9)])
    assert np.isnan(found.ap)
    assert found.counts["background"] == 1
