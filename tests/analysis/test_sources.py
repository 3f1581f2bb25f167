"""Where a report's data come from: results, a run's folder, a checkpoint; and what is refused."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from aligndetr.analysis import (
    commands,
    compare_runs,
    evaluation_of_run,
    read_evaluation,
    read_runs,
    report,
    report_of,
    runs,
)
from aligndetr.config import load_config
from tests.analysis.reports import BOX, CAT, NOWHERE, config_yaml, write_data

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def no_charts(monkeypatch):
    """Drawing them takes most of the time, and test_report.py looks at them."""
    monkeypatch.setattr(report, "as_picture", lambda figure: Image.new("L", (1, 1)))


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / "data")


def test_results_with_their_ground_truth(data, tmp_path):
    truth, results, images = data
    printed = report_of(results, ground_truth=truth, images=images, output=tmp_path / "out")
    assert "| localisation   |       1 |" in printed
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.html", "report.json"}


def test_a_run_is_read_with_the_data_of_its_config(data, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "coco_instances_results.json").write_text(data[1].read_text())
    (run / "config.yaml").write_text(config_yaml(tmp_path / "data"))
    found = evaluation_of_run(run)
    assert found.name == "run"
    assert found.class_names == ["cat <&>", "dog"]
    assert found.image_root == data[2]
    report_of(run)
    assert (run / "report.html").exists()


@pytest.fixture
def run_of_12(data, tmp_path):
    """A run whose config counts 12 detections of an image and class; image 1 has 15 cats."""
    truth, results, _ = data
    found = [
        {
            "image_id": 1,
            "category_id": CAT,
            "bbox": BOX if i == 13 else NOWHERE,
            "score": 1 - i / 20,
        }
        for i in range(15)
    ]
    results.write_text(json.dumps(found))
    run = tmp_path / "run"
    run.mkdir()
    results.rename(run / "coco_instances_results.json")
    (run / "config.yaml").write_text(
        config_yaml(tmp_path / "data") + "    max_dets_per_image: 12\n"
    )
    return run, truth


def test_as_many_detections_count_as_in_the_run(run_of_12):
    run, truth = run_of_12
    for options in ({}, {"ground_truth": truth}):
        report_of(run, **options)
        numbers = json.loads((run / "report.json").read_text())
        assert numbers["detections"] == 12
        assert numbers["metrics"]["AR12"] == 0  # the right one is the 14th
        assert numbers["metrics"]["AP"] == 0
        assert "AR100" not in numbers["metrics"]
        assert "<th>AR12<th>" in (run / "report.html").read_text()
    (_, other) = read_runs([run, run])
    assert len(other.matches.scores) == 12
    assert compare_runs([other, other], 2)["runs"][0]["metrics"]["AP"] == 0


def test_the_limit_is_cocos_where_no_config_says_it(run_of_12, caplog):
    run, truth = run_of_12
    (run / "config.yaml").write_text("train: {hooks: [{_target_: my_package.MyHook}]}")
    report_of(run, ground_truth=truth)
    assert json.loads((run / "report.json").read_text())["metrics"]["AR100"] > 0
    assert "100 detections of an image and class count; what the run" in caplog.text
    caplog.clear()
    (run / "config.yaml").unlink()
    assert evaluation_of_run(run, truth).max_detections == 100
    assert caplog.text == ""


def test_a_limit_that_has_no_recall_at_ten_is_named(run_of_12):
    run, _ = run_of_12
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("image: 12", "image: 5"))
    with pytest.raises(ValueError, match=r"`max_dets_per_image` \(=5\) must be"):
        report_of(run)


def test_a_checkpoint_is_evaluated_with_the_limit_of_its_config(run_of_12, monkeypatch, tmp_path):
    run, truth = run_of_12
    cfg = load_config(run / "config.yaml")
    cfg.train = {"device": "cpu"}
    given = []

    def evaluator(*args, **options):
        given.append(options["max_dets_per_image"])
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "load_trained", lambda cfg: {"": torch.nn.Identity()})
    monkeypatch.setattr(runs, "COCOEvaluator", evaluator)
    with pytest.raises(KeyboardInterrupt):
        runs.evaluate_layers(cfg, tmp_path)
    assert given == [12]

    results = run / "coco_instances_results.json"
    monkeypatch.setattr(commands, "config_of_checkpoint", lambda *args: cfg)
    monkeypatch.setattr(commands, "evaluate_layers", lambda *args: None)
    report_of(tmp_path / "model.pth", output=results.parent)
    assert json.loads((run / "report.json").read_text())["detections"] == 12


def test_what_cannot_be_used_is_named(data, tmp_path):
    truth, results, _ = data
    with pytest.raises(ValueError, match="need the ground truth: --ground-truth"):
        report_of(results)
    with pytest.raises(FileNotFoundError, match="has no coco_instances_results.json"):
        report_of(tmp_path)
    with pytest.raises(ValueError, match="must hold a list of detections"):
        read_evaluation("x", truth, truth)
    for text, message in (
        ('{"images": [], "categories": []}', r"is not a COCO json: no list \['annotations'\]"),
        ("{", "is not json"),
    ):
        (tmp_path / "odd.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_evaluation("x", results, tmp_path / "odd.json")
    results.write_text("[]")
    with pytest.raises(ValueError, match="holds no detection"):
        read_evaluation("x", results, truth)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": [1, 2]}, r"bbox \[1, 2\]; expected four finite numbers \[x, y, width, height\]"),
        ({"bbox": [1, 2, 3, float("nan")]}, r"bbox \[1, 2, 3, nan\]; expected four"),
        ({"bbox": [1, 2, 3, "4"]}, r"bbox \[1, 2, 3, '4'\]; expected four"),
        ({"bbox": [1, 2, 3, 10**400]}, r"bbox \[1, 2, 3, 1000.*; expected four"),
        ({"bbox": None}, "bbox None; expected four"),
        ({"score": "0.5"}, "score '0.5'; expected a finite number"),
        ({"score": None}, "score None; expected a finite number"),
        ({"category_id": [3]}, r"category_id \[3\]; expected a whole number"),
        ({"image_id": {}}, r"image_id \{\}; expected a number or a text"),
    ],
)
def test_a_detection_that_is_none_is_named(change, message, data):
    truth, results, _ = data
    content = json.loads(results.read_text())
    content[2] |= change
    results.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"detection \[2\] of '.*results.json' has {message}"):
        read_evaluation("x", results, truth)


def broken_truth(content, change):
    """A copy without `change`'s None, with its other values, in the second annotation or image."""
    for key, values in change.items():
        entry = content[key][1]
        for name, value in values.items():
            if value is None:
                del entry[name]
            else:
                entry[name] = value
    return content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotations": {"id": None}}, r"annotations\[1\] .* lacks 'id'"),
        ({"annotations": {"category_id": 77}}, "annotation 2 of image 2 .* has category_id 77"),
        ({"annotations": {"bbox": [1, 2]}}, r"annotation 2 of image 2 .* has bbox \[1, 2\]"),
        ({"annotations": {"iscrowd": "0"}}, "annotation 2 of image 2 .* has iscrowd"),
        ({"images": {"file_name": None}}, r"images\[1\] .* lacks 'file_name'"),
        ({"images": {"id": 1}}, "id 1 stands twice in images"),
        ({"categories": {"name": None}}, r"categories\[1\] .* lacks 'name'"),
        ({"categories": {"id": CAT}}, "id 3 stands twice in categories"),
    ],
)
def test_a_ground_truth_that_is_none_is_named(change, message, data):
    truth, results, _ = data
    truth.write_text(json.dumps(broken_truth(json.loads(truth.read_text()), change)))
    with pytest.raises(ValueError, match=message):
        read_evaluation("x", results, truth)


def test_results_in_the_place_of_the_ground_truth_are_named(data):
    _, results, _ = data
    with pytest.raises(ValueError, match="results.json' holds a list, as results do; the ground"):
        read_evaluation("x", results, results)


def test_annotations_may_share_an_id_which_nothing_goes_by(data):
    truth, results, _ = data
    content = broken_truth(json.loads(truth.read_text()), {"annotations": {"id": 1}})
    truth.write_text(json.dumps(content))
    assert len(read_evaluation("x", results, truth).truth.content["annotations"]) == 4


def test_tool_says_what_is_wrong_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["report.py", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"^error: .* has no coco_instances_results.json"):
        runpy.run_path(str(ROOT / "tools/report.py"), run_name="__main__")


def test_images_of_json_without_results_for_them(data, tmp_path):
    truth, results, _ = data
    content = json.loads(results.read_text())
    results.write_text(json.dumps(content[:1]))
    report_of(results, ground_truth=truth)
    numbers = json.loads((results.parent / "report.json").read_text())
    assert numbers["images"] == 3
    assert numbers["detections"] == 1


def test_a_config_that_does_not_tell_its_ground_truth_is_named(data, tmp_path, monkeypatch):
    run = tmp_path / "run"
    run.mkdir()
    (run / "coco_instances_results.json").write_text(data[1].read_text())
    (run / "config.yaml").write_text("train: {seed: 1}")
    with pytest.raises(ValueError, match=r"no `dataloader.evaluator.dataset_name`.*--ground-truth"):
        report_of(run)
    (run / "config.yaml").write_text("dataloader: {evaluator: {dataset_name: no_json}}")
    with pytest.raises(ValueError, match="'no_json' has no json; give the ground truth: --gr"):
        report_of(run)
