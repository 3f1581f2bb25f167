"""Matches and the AP made of them are those of pycocotools; the rest is worked by hand."""

import copy

import numpy as np
import pytest

from aligndetr.evaluation.average_precision import WeightedAP, interpolated_ap, mean_ap
from aligndetr.evaluation.box_ap import GroundTruth, evaluate_boxes
from aligndetr.evaluation.matching import match_boxes
from tests.evaluation.worlds import coco_results, make_world


def truth_of(content):
    return GroundTruth.from_content(content, source="test")


def one_image(objects, crowd=()):
    """Ground truth of image 7 with boxes of category 1, crowd regions behind the objects."""
    boxes = [*((box, 0) for box in objects), *((box, 1) for box in crowd)]
    annotations = [
        {"id": i, "image_id": 7, "category_id": 1, "bbox": box, "iscrowd": is_crowd}
        for i, (box, is_crowd) in enumerate(boxes, start=1)
    ]
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    return truth_of({"images": [{"id": 7}], "annotations": annotations, "categories": categories})


def result(box, score, category=1):
    return {"image_id": 7, "category_id": category, "bbox": box, "score": score}


def resampled(content, results, draws):
    """The data set with image number i as often as `draws` has i, as a COCO json and results."""
    ids = sorted(image["id"] for image in content["images"])
    images, annotations, found = [], [], []
    for new_id, number in enumerate(draws, start=1):
        images.append({"id": new_id})
        own = [a for a in content["annotations"] if a["image_id"] == ids[number]]
        annotations += [{**a, "image_id": new_id} for a in own]
        found += [{**r, "image_id": new_id} for r in results if r["image_id"] == ids[number]]
    annotations = [{**a, "id": i} for i, a in enumerate(annotations, start=1)]
    return {**content, "images": images, "annotations": annotations}, found


@pytest.mark.parametrize("seed", range(12))
def test_ap_at_every_threshold_is_that_of_pycocotools(seed, capsys):
    content, detections = make_world(seed)
    results = coco_results(detections)
    truth = truth_of(content)
    matches = match_boxes(truth, results, max_detections=20)
    official = evaluate_boxes(truth, copy.deepcopy(results), max_detections=20, fast=False)
    expected = official.eval["precision"][:, :, :, 0, -1].mean(axis=1)  # (T, K), -1 for no objects
    for t, row in enumerate(expected):
        _, aps = mean_ap(
            matches.classes, matches.is_true[t], matches.is_false[t], matches.objects_per_class()
        )
        np.testing.assert_array_equal(np.isnan(aps), row == -1)
        np.testing.assert_allclose(aps[row != -1], row[row != -1], rtol=0, atol=1e-12)
    np.testing.assert_allclose(
        WeightedAP(matches)(np.ones(matches.num_images)),
        [row[row != -1].mean() for row in expected],
        rtol=0,
        atol=1e-12,
    )


@pytest.mark.parametrize("seed", range(4))
def test_weights_stand_for_repeated_images(seed, capsys):
    content, detections = make_world(seed)
    # Scores that never tie within a class: of equal ones pycocotools takes the first image's.
    rng = np.random.default_rng(seed)
    detections = [(i, k, float(s), box) for (i, k, _, box), s in zip(detections, rng.random(9999))]
    results = coco_results(detections)
    draws = rng.integers(0, len(content["images"]), len(content["images"]))
    weights = np.bincount(draws, minlength=len(content["images"]))
    weighted = WeightedAP(match_boxes(truth_of(content), results))(weights)
    repeated = evaluate_boxes(truth_of(resampled(content, results, draws)[0]),
                              resampled(content, results, draws)[1])  # fmt: skip
    precision = repeated.eval["precision"][:, :, :, 0, -1].mean(axis=1)
    expected = [row[row != -1].mean() for row in precision]
    np.testing.assert_allclose(weighted, expected, rtol=0, atol=1e-12)


def test_an_object_is_found_once_and_by_the_highest_score():
    box = [0.0, 0.0, 10.0, 10.0]
    matches = match_boxes(one_image([box]), [result(box, 0.4), result(box, 0.9)])
    assert matches.scores.tolist() == [0.9, 0.4]
    assert matches.found[0].tolist() == [0, -1]
    assert matches.is_false[0].tolist() == [False, True]
    assert matches.same_object.tolist() == [0, 0]  # a duplicate knows what it repeats
    assert matches.is_found().tolist() == [True]


def test_of_equally_near_objects_the_last_is_found_as_in_pycocotools():
    truth = one_image([[0.0, 0.0, 10.0, 10.0], [4.0, 0.0, 10.0, 10.0]])
    matches = match_boxes(truth, [result([2.0, 0.0, 10.0, 10.0], 0.9)])
    assert matches.found[0].tolist() == [1]


def test_an_annotation_with_id_0_is_never_found_as_in_pycocotools(capsys):
    content = {
        "images": [{"id": 7}],
        "annotations": [{"id": 0, "image_id": 7, "category_id": 1, "bbox": [0, 0, 10, 10]}],
        "categories": [{"id": 1, "name": "a"}],
    }
    found = [result([0.0, 0.0, 10.0, 10.0], 0.9)]
    matches = match_boxes(truth_of(content), found)
    assert matches.is_false[0].tolist() == [True]
    assert evaluate_boxes(truth_of(content), found, fast=False).stats[1] == 0


def test_each_threshold_is_matched_by_itself():
    # IoU 0.6 = 60 / 100: found up to the threshold 0.6.
    matches = match_boxes(one_image([[0.0, 0.0, 10.0, 10.0]]), [result([0.0, 0.0, 10.0, 6.0], 1.0)])
    assert matches.same_iou[0] == pytest.approx(0.6)
    assert matches.is_true[:, 0].tolist() == [True] * 3 + [False] * 7


def test_crowd_regions_excuse_what_finds_no_object():
    truth = one_image([[0.0, 0.0, 10.0, 10.0]], crowd=[[50.0, 50.0, 40.0, 40.0]])
    half_inside = [86.0, 50.0, 8.0, 8.0]
    matches = match_boxes(truth, [result(half_inside, 0.9), result(half_inside, 0.8, category=2)])
    assert matches.ignored[:, 0].tolist() == [True] + [False] * 9
    assert not matches.ignored[:, 1].any()  # of another class
    assert len(matches.object_images) == 1


def test_precision_by_hand():
    # true, false, true, with 4 objects: recall 1/4 at precision 1, 1/2 at precision 2/3. Of the
    # 101 recalls 26 are up to 0.25 and 25 more up to 0.5.
    true, false = np.array([1, 0, 1]), np.array([0, 1, 0])
    assert interpolated_ap(true, false, 4) == pytest.approx((26 + 25 * 2 / 3) / 101)
    assert interpolated_ap(true[:0], false[:0], 4) == 0


def test_nothing_found_and_nothing_there():
    empty = match_boxes(one_image([]), [])
    assert empty.found.shape == (10, 0)
    assert np.isnan(WeightedAP(empty)(np.ones(1))).all()
    assert WeightedAP(match_boxes(one_image([[0, 0, 9, 9]]), []))(np.ones(1)).tolist() == [0.0] * 10


def test_results_of_other_data_are_named():
    truth = one_image([])
    with pytest.raises(ValueError, match="image id 8"):
        match_boxes(truth, [{**result([0, 0, 1, 1], 0.5), "image_id": 8}])
    with pytest.raises(ValueError, match="category 3"):
        match_boxes(truth, [result([0, 0, 1, 1], 0.5, category=3)])
