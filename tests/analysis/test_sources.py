"""Where a report's data come from: results, a run's folder, a checkpoint; and what is refused."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

from aligndetr.analysis import evaluation_of_run, read_evaluation, report, report_of
from tests.analysis.reports import config_yaml, write_data

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


def test_what_cannot_be_used_is_named(data, tmp_path):
    truth, results, _ = data
    with pytest.raises(ValueError, match="need the ground truth: --ground-truth"):
        report_of(results)
    with pytest.raises(FileNotFoundError, match="has no coco_instances_results.json"):
        report_of(tmp_path)
    with pytest.raises(ValueError, match="must hold a list of detections"):
        read_evaluation("x", truth, truth)
    for text, message in (
        ('{"images": [], "categories": []}', "has no 'annotations'"),
        ("{", "is not json"),
    ):
        (tmp_path / "odd.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_evaluation("x", results, tmp_path / "odd.json")
    results.write_text("[]")
    with pytest.raises(ValueError, match="holds no detection"):
        read_evaluation("x", results, truth)


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
