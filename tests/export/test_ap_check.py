"""`ap_check`: a file is written only if its AP on the val set is the model's, within 0.1."""

import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from aligndetr.cli import export as command
from aligndetr.config import apply_overrides, load_config
from aligndetr.export import (
    ParityError,
    RunningDetector,
    ap_check,
    evaluating,
    export,
    export_model,
    validation_images,
)
from aligndetr.inference import Predictor
from tests.export.conftest import IMAGES, MAX_SIZE, NAMES, SHORT_EDGE
from tests.own_detections import write_val_set

CONFIG = str(Path(__file__).parents[2] / "projects/aligndetr/configs/aligndetr_demo.py")


@pytest.fixture(scope="module")
def data(predictor, tmp_path_factory):
    """A val set whose objects are a part of what the model finds, moved a little."""
    root = tmp_path_factory.mktemp("data")
    write_val_set(root, predictor, IMAGES, NAMES)
    return root


@pytest.fixture
def trained(predictor, data, tmp_path):
    """The detector as its training left it: with a config, and results in its folder."""
    results = tmp_path / "output/coco_instances_results.json"
    results.parent.mkdir()
    results.write_text("of the training")
    options = {
        "dataset.root": data,
        "dataset.test_short_edge": SHORT_EDGE,
        "dataset.max_size": MAX_SIZE,
        "train.output_dir": results.parent,
    }
    cfg = apply_overrides(load_config(CONFIG), [f"{k}={v}" for k, v in options.items()])
    yield Predictor(predictor.model, predictor.mapper, NAMES, config=cfg)
    assert results.read_text() == "of the training"


@pytest.fixture
def written(request, monkeypatch):
    """In place of tracing: the file that was exported once, where onnxruntime is there."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    file = request.getfixturevalue("onnx_file")
    monkeypatch.setattr(export, "write_onnx", lambda _, path, *__: shutil.copy(file, path))


def reported(table):
    """AP, AP50 and AP75 of both."""
    rows = [line.split() for line in table.splitlines()]
    assert rows[0] == ["AP", "AP50", "AP75"]
    metrics = {row[0]: [*map(float, row[1:])] for row in rows[2:]}
    assert metrics.keys() == {"model", "exported"}
    return metrics


@pytest.mark.usefixtures("written")
def test_the_command_reports_the_ap_of_both(trained, data, tmp_path, monkeypatch, capsys):
    assert validation_images(trained) == [str(data / "val" / path.name) for path in IMAGES]
    monkeypatch.setattr(Predictor, "from_checkpoint", lambda *_, **__: trained)
    path = tmp_path / "model.onnx"
    words = ["--checkpoint", "model_final.pth", "--output", str(path), "--eval"]
    monkeypatch.setattr(sys, "argv", ["export", *words])
    command.main()
    assert path.exists()
    said = capsys.readouterr().out.splitlines()
    (start,) = (i for i, line in enumerate(said) if line.split() == ["AP", "AP50", "AP75"])
    metrics = reported("\n".join(said[start : start + 4]))
    assert 5 < metrics["model"][0] < 95  # neither nothing nor all: it says something
    assert metrics["exported"] == pytest.approx(metrics["model"], abs=0.1)


@pytest.mark.usefixtures("written")
def test_a_file_of_another_ap_does_not_stay(trained, tmp_path, monkeypatch):
    """One that agrees on the images compared and finds other boxes in the val set."""
    real = export.load_onnx

    def moody(path, **options):
        detector = real(path, **options)

        def run(images):
            boxes, *more = detector.run(images)
            return boxes + torch.tensor([3, 0, 3, 0]), *more

        return detector if options else RunningDetector(run, detector.metadata)

    monkeypatch.setattr(export, "load_onnx", moody)
    folder = tmp_path / "exported"
    folder.mkdir()
    lines = []
    check = ap_check(trained, report=lines.append)
    with pytest.raises(ParityError, match=r"AP .* differs by \d+\.\d+, more than 0.1"):
        export_model(trained, folder / "model.onnx", IMAGES[:1], check=check, report=str)
    metrics = reported(lines[0])
    assert metrics["exported"][0] < metrics["model"][0] - 0.1
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    ("model", "exported", "said"),
    [
        (50, 50.09, None),
        (50, 49.91, None),
        (50, 50.11, "differs by 0.110, more than 0.1"),
        (50, 49.89, "differs by 0.110, more than 0.1"),
        (50, math.nan, "differs by nan"),
    ],
)
def test_how_much_is_allowed(model, exported, said, trained, monkeypatch):
    running = RunningDetector(lambda _: (), {})
    ap = {trained.model: model, running: exported}
    monkeypatch.setattr(
        evaluating, "evaluate", lambda who, *_: {"bbox": dict.fromkeys(evaluating.METRICS, ap[who])}
    )
    lines = []
    check = ap_check(trained, report=lines.append)
    if said is None:
        check(running)
    else:
        with pytest.raises(ParityError, match=said):
            check(running)
    metrics = reported(lines[0])
    assert metrics["model"] == [model] * 3
    np.testing.assert_equal(metrics["exported"], [exported] * 3)  # NaN is NaN


def test_more_may_be_allowed(trained, monkeypatch):
    aps = iter([50, 50.5])
    monkeypatch.setattr(
        evaluating, "evaluate", lambda *_: {"bbox": dict.fromkeys(evaluating.METRICS, next(aps))}
    )
    ap_check(trained, max_difference=0.6)(RunningDetector(lambda _: (), {}))


def test_a_detector_without_a_config_has_no_val_set(predictor):
    with pytest.raises(ValueError, match="made without a config"):
        ap_check(predictor)
