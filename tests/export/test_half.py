"""A file with weights in float16, from `export_model`: what it holds, and that it must agree."""

import shutil

import pytest
import torch

from aligndetr.export import ParityError, RunningDetector, export, export_model, load_onnx
from aligndetr.export.export import HALF_TOLERANCE
from aligndetr.export.ranking import imposed, ranking_name
from tests.export.conftest import IMAGES

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def half_file(onnx_file, predictor, tmp_path_factory):
    path = tmp_path_factory.mktemp("half") / "model.onnx"
    lines = []
    with pytest.MonkeyPatch.context() as patch:
        # Tracing the same model again would give the same graph, after seconds.
        patch.setattr("aligndetr.export.onnx_file.to_onnx", lambda _: onnx_file.read_bytes())
        comparisons = export_model(predictor, path, IMAGES[:1], half=True, report=lines.append)
    assert f"more than {HALF_TOLERANCE.box} px or {HALF_TOLERANCE.score}" in lines[0]
    assert all(c.compared >= 20 * c.batch and not c.apart for c in comparisons)
    assert 0 < max(c.score for c in comparisons) <= HALF_TOLERANCE.score
    return path


def test_the_weights_in_the_file_are_float16(half_file, onnx_file):
    content = onnx.load(half_file)
    assert {x.key: x.value for x in content.metadata_props}["weights"] == "float16"
    weights = content.graph.initializer
    halved = [w for w in weights if w.data_type == onnx.TensorProto.FLOAT16]
    assert len(halved) > len(weights) / 2
    assert half_file.stat().st_size < 0.8 * onnx_file.stat().st_size


def test_boxes_and_scores_are_those_of_pytorch(half_file, predictor):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (2, 3, 110, 131), dtype=torch.uint8, generator=generator)
    name = ranking_name(predictor.model)
    *found, ranking = load_onnx(half_file, ranking=name).run(images)
    with torch.no_grad(), imposed(predictor.model, ranking) as rankings:
        expected = predictor.model.predict(images)
    assert rankings[0].gap <= HALF_TOLERANCE.gap
    for theirs, ours in ((found, expected), (expected, found)):
        for boxes, scores, classes, other_boxes, other_scores, other_classes in zip(*theirs, *ours):
            assert (scores > 0.05).sum() >= 10
            # Scores that nearly tie come in either order: each must be somewhere.
            box = (boxes[:, None] - other_boxes).abs().amax(-1) <= HALF_TOLERANCE.box
            score = (scores[:, None] - other_scores).abs() <= HALF_TOLERANCE.score
            partner = box & score & (classes[:, None] == other_classes)
            assert partner[scores > 0.05].any(1).all()


@pytest.mark.parametrize(("shift", "fine"), [(1.5, True), (2.5, False)])
def test_boxes_may_differ_by_two_pixels(shift, fine, half_file, predictor, tmp_path, monkeypatch):
    real = export.load_onnx

    def shifted(path, **options):
        detector = real(path, **options)

        def run(images):
            boxes, *more = detector.run(images)
            return boxes + torch.tensor([shift, 0, shift, 0]), *more

        return RunningDetector(run, detector.metadata)

    monkeypatch.setattr(export, "write_onnx", lambda _, path, *__: shutil.copy(half_file, path))
    monkeypatch.setattr(export, "load_onnx", shifted)
    path = tmp_path / "model.onnx"
    if fine:
        export_model(predictor, path, IMAGES[:1], half=True)
    else:
        with pytest.raises(ParityError, match="was not written"):
            export_model(predictor, path, IMAGES[:1], half=True)
    assert [*tmp_path.iterdir()] == [path] * fine
