"""The evaluator: what detectron2's gives, from arrays, and nothing read before it is needed."""

import json
import pickle

import numpy as np
import pytest
import torch
from detectron2 import evaluation as detectron2_evaluation
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils import comm

from aligndetr.config import check_targets
from aligndetr.evaluation import COCOEvaluator
from aligndetr.evaluation.detections import GatheredDetections
from tests.evaluation.worlds import make_world, model_outputs, ranks, register


def run(evaluator, content, detections, **options):
    evaluator.reset()
    for inputs, outputs in model_outputs(content, detections):
        evaluator.process(inputs, outputs)
    return evaluator.evaluate(**options)


def assert_same_results(ours, theirs):
    assert list(ours["bbox"]) == list(theirs["bbox"])
    np.testing.assert_array_equal(list(ours["bbox"].values()), list(theirs["bbox"].values()))


@pytest.fixture
def world(tmp_path):
    content, detections = make_world(1)
    return content, detections, register(tmp_path, content)


def test_numbers_file_and_tables_are_detectron2s(world, tmp_path, caplog, capsys):
    content, detections, name = world
    printed, logged, results = [], [], []
    for cls in (COCOEvaluator, detectron2_evaluation.COCOEvaluator):
        caplog.clear()
        with caplog.at_level("INFO"):
            evaluator = cls(name, output_dir=str(tmp_path / cls.__module__))
            results.append(run(evaluator, content, detections))
        printed.append([x for x in capsys.readouterr().out.splitlines() if "Average" in x])
        logged.append([x for x in caplog.messages if "|" in x])
    assert_same_results(*results)
    assert results[0]["bbox"]["AP-class 3"] > 0
    assert np.isnan(results[0]["bbox"]["AP-class 90"])  # there is none of it
    assert printed[0] == printed[1]
    assert logged[0] == logged[1]
    assert len(logged[0]) == 2
    ours, theirs = (
        (tmp_path / cls.__module__ / "coco_instances_results.json").read_text()
        for cls in (COCOEvaluator, detectron2_evaluation.COCOEvaluator)
    )
    assert ours == theirs


@pytest.mark.parametrize("options", [{"max_dets_per_image": 20}, {"use_fast_impl": False}])
def test_options_give_detectron2s_numbers(options, world):
    content, detections, name = world
    assert_same_results(
        run(COCOEvaluator(name, **options), content, detections),
        run(detectron2_evaluation.COCOEvaluator(name, **options), content, detections),
    )


@pytest.mark.parametrize("limit", [9, 0, -1, 100.0, "100", True])
def test_a_limit_that_would_not_be_counted_is_refused(limit, world):
    with pytest.raises(
        ValueError, match=rf"`max_dets_per_image` \(={limit!r}\).* from 10 on, .*=null"
    ):
        COCOEvaluator(world[2], max_dets_per_image=limit)


def test_some_images_only_as_in_a_fast_dev_run(world):
    content, detections, name = world
    some = [image["id"] for image in content["images"][:2]]
    assert_same_results(
        run(COCOEvaluator(name), content, detections, img_ids=some),
        run(detectron2_evaluation.COCOEvaluator(name), content, detections, img_ids=some),
    )


@pytest.mark.parametrize("where", ["score", "box"])
def test_predictions_that_are_not_finite_are_named_by_image(where, world):
    content, detections, name = world
    image, label, score, box = detections[3]
    spoiled = (float("nan"), box) if where == "score" else (score, [float("inf")] * 4)
    detections[3] = (image, label, *spoiled)
    with pytest.raises(FloatingPointError, match=rf"for image {image!r}"):
        run(COCOEvaluator(name), content, detections)


def test_no_detections_are_nan_and_a_warning(world, caplog):
    content, _, name = world
    results = run(COCOEvaluator(name), content, [])
    assert_same_results(results, run(detectron2_evaluation.COCOEvaluator(name), content, []))
    assert all(np.isnan(list(results["bbox"].values())))
    assert "No predictions" in caplog.text


def test_no_image_at_all_has_no_results(world, caplog):
    assert run(COCOEvaluator(world[2]), {"images": []}, []) == {}
    assert "was given no image" in caplog.text


def test_evaluator_can_be_used_again(world):
    content, detections, name = world
    evaluator = COCOEvaluator(name)
    first = run(evaluator, content, detections)
    assert run(evaluator, content, detections[:30]) != first
    assert_same_results(run(evaluator, content, detections), first)


def test_json_is_read_once_at_the_first_evaluation(world, tmp_path):
    content, detections, name = world
    path = tmp_path / "ground_truth.json"
    text = path.read_text()
    path.unlink()
    evaluator = COCOEvaluator(name)
    path.write_text(text)
    first = run(evaluator, content, detections)
    path.unlink()
    assert_same_results(run(evaluator, content, detections), first)


def test_other_ranks_read_nothing_and_have_no_results(world, tmp_path, monkeypatch):
    content, detections, name = world
    (tmp_path / "ground_truth.json").unlink()
    monkeypatch.setattr(comm, "gather", lambda *_, **__: [])
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    assert run(COCOEvaluator(name, output_dir=str(tmp_path)), content, detections) == {}
    assert list(tmp_path.iterdir()) == []


def test_parts_of_several_ranks_give_the_same_numbers(world, monkeypatch):
    content, detections, name = world
    alone = run(COCOEvaluator(name), content, detections)
    for rank in ranks(3, monkeypatch):
        mine = {"images": content["images"][rank::3]}
        results = run(COCOEvaluator(name), mine, detections)
    assert_same_results(results, alone)


def test_detections_travel_as_arrays():
    instances = Instances(
        (10, 10),
        pred_boxes=Boxes(torch.rand(1000, 4)),
        scores=torch.rand(1000),
        pred_classes=torch.zeros(1000, dtype=torch.long),
    )
    part = GatheredDetections.of_image(1, instances)
    arrays = part.boxes.nbytes + part.scores.nbytes + part.classes.nbytes
    assert len(pickle.dumps(part)) < arrays + 2000


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_numbers_keep_the_models_precision(dtype):
    value = torch.tensor([0.1], dtype=dtype)
    instances = Instances(
        (10, 10),
        pred_boxes=Boxes(torch.zeros(1, 4)),
        scores=value,
        pred_classes=torch.tensor([2]),
    )
    instances.pred_boxes.tensor = torch.tensor([[0.1, 0.1, 2.0, 3.0]], dtype=dtype)
    (result,) = GatheredDetections.of_image("x", instances).to_results([5, 6, 7])
    assert result["score"] == value.item()
    assert result["bbox"][0] == value.item()
    assert (result["image_id"], result["category_id"]) == ("x", 7)


def test_a_test_set_is_predicted_and_not_evaluated(world, tmp_path, caplog):
    content, detections, _ = world
    del content["annotations"]
    name = register(tmp_path, content, "world without answers")
    with caplog.at_level("INFO"):
        assert run(COCOEvaluator(name, output_dir=str(tmp_path)), content, detections) == {}
    assert "no annotations" in caplog.text
    saved = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert len(saved) == len(detections)


def test_old_results_survive_a_failure(world, tmp_path, monkeypatch):
    content, detections, name = world
    path = tmp_path / "coco_instances_results.json"
    path.write_text("old")
    monkeypatch.setattr(json, "dumps", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(COCOEvaluator(name, output_dir=str(tmp_path)), content, detections)
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2


def test_results_that_cannot_be_written_do_not_cost_the_metrics(world, tmp_path, caplog):
    content, detections, name = world
    (tmp_path / "coco_instances_results.json" / "in the way").mkdir(parents=True)
    results = run(COCOEvaluator(name, output_dir=str(tmp_path)), content, detections)
    assert_same_results(results, run(COCOEvaluator(name), content, detections))
    assert "coco_instances_results.json COULD NOT BE WRITTEN" in caplog.text


def test_data_set_without_a_json_gets_one(tmp_path):
    record = {
        "file_name": "1.jpg",
        "image_id": 1,
        "height": 160,
        "width": 160,
        "annotations": [
            {"bbox": [0, 0, 40, 40], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "iscrowd": 0}
        ],
    }
    DatasetCatalog.register("records only", lambda: [record])
    MetadataCatalog.get("records only").thing_classes = ["tree"]
    with pytest.raises(ValueError, match="needs `output_dir`"):
        COCOEvaluator("records only")
    evaluator = COCOEvaluator("records only", output_dir=str(tmp_path))
    results = run(evaluator, {"images": [{"id": 1}]}, [(1, 0, 0.5, [0.0, 0.0, 40.0, 40.0])])
    assert results["bbox"]["AP50"] == pytest.approx(100)


def test_label_without_a_class_is_named(world):
    content, detections, name = world
    detections[0] = (detections[0][0], 4, *detections[0][2:])
    with pytest.raises(ValueError, match=r"label 4, .* 0 to 3; correct `num_classes`"):
        run(COCOEvaluator(name), content, detections)


def test_masks_and_other_tasks_are_refused(world):
    with pytest.raises(ValueError, match=r"`tasks` .*detectron2.evaluation.COCOEvaluator"):
        COCOEvaluator(world[2], tasks=("bbox", "segm"))
    COCOEvaluator(world[2], tasks=["bbox"])
    instances = Instances((8, 8), pred_masks=torch.zeros(0, 8, 8))
    with pytest.raises(ValueError, match="predicts 'pred_masks'"):
        COCOEvaluator(world[2]).process([{"image_id": 1}], [{"instances": instances}])


def test_data_configs_may_name_both_evaluators():
    for name in ("aligndetr.evaluation.COCOEvaluator", "detectron2.evaluation.COCOEvaluator"):
        check_targets({"_target_": name, "dataset_name": "coco_2017_val"})
