"""Average precision: every number is the float that pycocotools gives."""

import copy
import gc
import json
import sys

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from aligndetr.evaluation import box_ap
from aligndetr.evaluation.box_ap import GroundTruth, evaluate_boxes, paused_gc
from tests.evaluation.worlds import CATEGORY_IDS, coco_results, make_world


def pycocotools_says(content, results, image_ids=None, max_detections=(1, 10, 100)):
    """The way its own documentation goes, from a json to the numbers."""
    coco = COCO()
    coco.dataset = copy.deepcopy(content)
    coco.createIndex()
    evaluation = COCOeval(coco, coco.loadRes(copy.deepcopy(results)), "bbox")
    evaluation.params.maxDets = list(max_detections)
    if image_ids is not None:
        evaluation.params.imgIds = image_ids
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


def we_say(content, results, tmp_path, **options):
    path = tmp_path / "world.json"
    path.write_text(json.dumps(content))
    return evaluate_boxes(GroundTruth.from_json(str(path)), copy.deepcopy(results), **options)


def assert_equal_to_the_last_bit(ours, theirs):
    np.testing.assert_array_equal(ours.eval["precision"], theirs.eval["precision"])
    np.testing.assert_array_equal(ours.eval["recall"], theirs.eval["recall"])
    np.testing.assert_array_equal(ours.stats, theirs.stats)


@pytest.mark.parametrize("seed", range(6))
def test_equal_to_pycocotools(seed, tmp_path):
    content, detections = make_world(seed)
    results = coco_results(detections)
    theirs = pycocotools_says(content, results)
    assert_equal_to_the_last_bit(we_say(content, results, tmp_path), theirs)
    assert 0 < theirs.stats[0] < 1


@pytest.mark.parametrize("seed", range(6))
def test_equal_where_a_precision_rests_on_one_detection(seed, tmp_path):
    # Few objects and detections: curves that begin with one right detection and a wrong one.
    content, detections = make_world(seed, num_images=3, max_objects=4, num_detections=3)
    results = coco_results(detections)
    assert_equal_to_the_last_bit(
        we_say(content, results, tmp_path), pycocotools_says(content, results)
    )


def test_precision_of_one_detection_is_a_little_less_than_one(tmp_path):
    box = [0.0, 0.0, 40.0, 40.0]
    content, _ = make_world(0)
    image_id = content["images"][0]["id"]
    entry = {"image_id": image_id, "category_id": CATEGORY_IDS[0], "bbox": box}
    content["annotations"] = [{**entry, "id": 1, "area": 1600.0, "iscrowd": 0}]
    ours = we_say(content, [{**entry, "score": 0.5}], tmp_path)
    assert ours.eval["precision"][0, 0, 0, 0, 2] == 1 / (1 + 2**-52) < 1


@pytest.mark.parametrize("num_objects", [1, 2, 3, 4, 5, 8, 9])
@pytest.mark.parametrize("num_right", [1, 2, 3])
def test_first_detections_right_then_one_wrong(num_objects, num_right, tmp_path):
    content, _ = make_world(0)
    image_id, category = content["images"][0]["id"], CATEGORY_IDS[0]
    boxes = [[0.0, 20.0 * row, 10.0, 10.0] for row in range(num_objects)]
    content["annotations"] = [
        {
            "id": number,
            "image_id": image_id,
            "category_id": category,
            "bbox": box,
            "area": 100.0,
            "iscrowd": 0,
        }
        for number, box in enumerate(boxes, start=1)
    ]
    wrong = [100.0, 100.0, 10.0, 10.0]
    found = [*boxes[:num_right], wrong, *boxes[num_right:]]
    results = [
        {"image_id": image_id, "category_id": category, "bbox": box, "score": 0.9 - 0.01 * rank}
        for rank, box in enumerate(found)
    ]
    assert_equal_to_the_last_bit(
        we_say(content, results, tmp_path), pycocotools_says(content, results)
    )


@pytest.mark.parametrize("max_detections", [10, 30, 100, 300])
def test_limit_on_detections_per_image_and_class(max_detections, tmp_path):
    content, detections = make_world(5, num_images=3, num_detections=300)
    detections = [(image_id, label % 2, score, box) for image_id, label, score, box in detections]
    results = coco_results(detections)
    most = max(sum(d[:2] == key for d in detections) for key in {(d[0], d[1]) for d in detections})
    assert most > 200
    ours = we_say(content, results, tmp_path, max_detections=max_detections)
    theirs = pycocotools_says(content, results, max_detections=(1, 10, max_detections))
    np.testing.assert_array_equal(ours.eval["precision"], theirs.eval["precision"])
    np.testing.assert_array_equal(ours.eval["recall"], theirs.eval["recall"])
    # pycocotools' own summary knows no other limit than 100 for its first number.
    assert ours.stats[0] > 0
    np.testing.assert_array_equal(ours.stats[1:], theirs.stats[1:])


def test_some_images_only(tmp_path):
    content, detections = make_world(3)
    results = coco_results(detections)
    some = [image["id"] for image in content["images"][::2]]
    ours = we_say(content, results, tmp_path, image_ids=some)
    assert_equal_to_the_last_bit(ours, pycocotools_says(content, results, image_ids=some))
    assert ours.stats[0] != we_say(content, results, tmp_path).stats[0]


def test_ids_may_be_numbers_and_texts_in_one_file(tmp_path):
    content, detections = make_world(3)
    plain = we_say(content, coco_results(detections), tmp_path)
    last = max(image["id"] for image in content["images"])  # 2 and "1" would be in this order too
    for entry in (*content["images"], *content["annotations"]):
        key = "image_id" if "image_id" in entry else "id"
        entry[key] = "1" if entry[key] == last else entry[key]
    named = [("1" if d[0] == last else d[0], *d[1:]) for d in detections]
    assert_equal_to_the_last_bit(we_say(content, coco_results(named), tmp_path), plain)


def test_ids_may_be_texts_and_annotations_in_any_order(tmp_path):
    names = ["c", "a", "aa", "B", "10", "9", "é"]
    content, detections = make_world(4, image_ids=names)
    content["annotations"] = content["annotations"][::-1]
    results = coco_results(detections)
    assert_equal_to_the_last_bit(
        we_say(content, results, tmp_path), pycocotools_says(content, results)
    )


def test_annotation_id_0_counts_as_it_does_in_pycocotools(tmp_path, caplog):
    content, detections = make_world(6)
    for annotation in content["annotations"]:
        annotation["id"] -= 1
    results = coco_results(detections)
    ours = we_say(content, results, tmp_path)
    assert_equal_to_the_last_bit(ours, pycocotools_says(content, results))
    assert "annotation with id 0" in caplog.text


def test_nothing_found_and_nothing_to_find(tmp_path):
    content, detections = make_world(7)
    misses = coco_results(
        [(i, label, score, [150, 150, 151, 151]) for i, label, score, _ in detections]
    )
    assert_equal_to_the_last_bit(
        we_say(content, misses, tmp_path), pycocotools_says(content, misses)
    )
    content["annotations"] = []
    ours = we_say(content, misses, tmp_path)
    assert_equal_to_the_last_bit(ours, pycocotools_says(content, misses))
    assert (ours.stats == -1).all()


def test_same_numbers_and_one_line_without_faster_coco_eval(tmp_path, monkeypatch, caplog):
    content, detections = make_world(8)
    results = coco_results(detections)
    fast = we_say(content, results, tmp_path)
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    box_ap.faster_coco_eval.cache_clear()
    try:
        with caplog.at_level("INFO"):
            for _ in range(2):
                assert_equal_to_the_last_bit(we_say(content, results, tmp_path), fast)
    finally:
        box_ap.faster_coco_eval.cache_clear()
    assert caplog.text.count("pip install faster-coco-eval") == 1


def test_summary_reads_as_pycocotools_prints_it(tmp_path, capsys):
    content, detections = make_world(9)
    results = coco_results(detections)
    pycocotools_says(content, results)
    theirs = [line for line in capsys.readouterr().out.splitlines() if line.startswith(" Average")]
    we_say(content, results, tmp_path)
    assert capsys.readouterr().out.splitlines() == theirs
    assert len(theirs) == 12


def test_missing_area_and_crowd_mean_the_box_and_no_crowd(tmp_path):
    content, detections = make_world(10)
    for annotation in content["annotations"]:
        annotation.update(area=annotation["bbox"][2] * annotation["bbox"][3], iscrowd=0)
    results = coco_results(detections)
    full = we_say(content, results, tmp_path)
    for annotation in content["annotations"]:
        del annotation["area"], annotation["iscrowd"]
    assert_equal_to_the_last_bit(we_say(content, results, tmp_path), full)


def test_unknown_image_is_named(tmp_path):
    content, detections = make_world(11)
    results = coco_results(detections)
    results[0]["image_id"] = 12345
    with pytest.raises(ValueError, match=r"image id 12345.*same data set"):
        we_say(content, results, tmp_path)


def test_garbage_collection_goes_on_afterwards():
    with pytest.raises(ZeroDivisionError), paused_gc():
        assert 1 / int(gc.isenabled())
    assert gc.isenabled()
