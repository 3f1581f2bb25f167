"""The report that a run writes by itself: of its own results, by one process, and never fatal."""

import json
import time

import pytest
from detectron2.config import LazyCall as L
from omegaconf import OmegaConf
from PIL import Image

from aligndetr.analysis import after_evaluation, report, report_of_finished_run
from aligndetr.data import register_dataset
from aligndetr.evaluation import COCOEvaluator
from tests.analysis.reports import write_data

LOGGER = "aligndetr.analysis.after_evaluation"


@pytest.fixture
def cfg(tmp_path, monkeypatch):
    """Of a run in `tmp_path/run` that has just been evaluated."""
    monkeypatch.setattr(report, "as_picture", lambda figure: Image.new("L", (1, 1)))
    truth, results, images = write_data(tmp_path)
    (tmp_path / "run").mkdir()
    results.rename(tmp_path / "run/coco_instances_results.json")
    names = L(register_dataset)(
        split="val", root=None, json_file=str(truth), image_root=str(images)
    )
    return OmegaConf.create(
        {
            "train": {
                "report": True,
                "fast_dev_run": {"enabled": False},
                "model_ema": {"enabled": False},
            },
            "dataloader": {
                "evaluator": L(COCOEvaluator)(dataset_name=names, output_dir=str(tmp_path / "run"))
            },
        },
        flags={"allow_objects": True},
    )


def files(tmp_path):
    return {path.name for path in (tmp_path / "run").iterdir()} - {"coco_instances_results.json"}


def test_page_and_numbers_lie_beside_the_results(cfg, tmp_path):
    assert report_of_finished_run(cfg, time.time() - 60) == tmp_path / "run/report.html"
    assert files(tmp_path) == {"report.html", "report.json"}
    content = json.loads((tmp_path / "run/report.json").read_text())
    assert (content["name"], content["objects"]) == ("run", 4)


def test_as_many_detections_count_as_the_evaluator_has_counted(cfg, tmp_path):
    cfg.dataloader.evaluator.max_dets_per_image = 300
    report_of_finished_run(cfg, time.time() - 60)
    assert "AR300" in json.loads((tmp_path / "run/report.json").read_text())["metrics"]


def test_averaged_weights_are_evaluated_last_and_named(cfg, tmp_path):
    cfg.train.model_ema.enabled = True
    report_of_finished_run(cfg, time.time() - 60)
    assert (
        json.loads((tmp_path / "run/report.json").read_text())["name"] == "run (averaged weights)"
    )


@pytest.mark.parametrize("key", ["train.report=False", "train.fast_dev_run.enabled=True"])
def test_not_where_it_is_not_wanted(key, cfg, tmp_path):
    OmegaConf.update(cfg, *[key.split("=")[0], key.endswith("True")])
    assert report_of_finished_run(cfg, 0) is None
    assert files(tmp_path) == set()


def test_the_main_process_alone_writes(cfg, tmp_path, monkeypatch):
    monkeypatch.setattr(after_evaluation.comm, "is_main_process", lambda: False)
    assert report_of_finished_run(cfg, 0) is None
    assert files(tmp_path) == set()


def test_results_of_an_earlier_run_are_not_reported(cfg, tmp_path, caplog):
    with caplog.at_level("INFO", LOGGER):
        assert report_of_finished_run(cfg, time.time() + 60) is None
    assert files(tmp_path) == set()
    assert "has left no coco_instances_results.json" in caplog.text


def test_an_evaluator_that_writes_no_results_has_no_report(cfg, caplog):
    cfg.dataloader.evaluator = L(object)()
    with caplog.at_level("INFO", LOGGER):
        assert report_of_finished_run(cfg, 0) is None
    assert "has left no coco_instances_results.json" in caplog.text


def test_nothing_found_is_a_warning(cfg, tmp_path, caplog):
    (tmp_path / "run/coco_instances_results.json").write_text("[]")
    assert report_of_finished_run(cfg, 0) is None
    assert files(tmp_path) == set()
    assert "No report was written: " in caplog.text
    assert "holds no detection" in caplog.text
    assert "Traceback" not in caplog.text


def test_a_mistake_of_ours_is_a_warning_with_its_place(cfg, monkeypatch, caplog):
    monkeypatch.setattr(after_evaluation, "write_report", lambda *_: {}["missing"])
    assert report_of_finished_run(cfg, 0) is None
    assert "No report was written: 'missing'" in caplog.text
    assert "Traceback" in caplog.text
