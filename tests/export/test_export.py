"""Exported files find what the model finds, at any size, and appear only if they do."""

import json
import shutil

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from torch import nn

import aligndetr
from aligndetr.data import DetrDatasetMapper
from aligndetr.export import (
    ParityError,
    RunningDetector,
    check_output,
    export,
    export_model,
    load_onnx,
    load_program,
)
from aligndetr.export.export import HALF_TOLERANCE
from aligndetr.export.graph import TensorDetector
from aligndetr.export.half import to_half
from aligndetr.inference import Predictor
from tests.builders import tiny_model
from tests.export.conftest import (
    DECODER_LAYERS,
    ENCODER_LAYERS,
    IMAGES,
    MAX_SIZE,
    NAMES,
    SHORT_EDGE,
)

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

# One, several, odd sizes, fewer cells than queries, one pixel.
SHAPES = [(1, 3, 100, 131), (3, 3, 160, 97), (2, 3, 16, 16), (1, 3, 1, 1)]


def assert_finds_what_the_model_finds(run, model, shapes):
    for shape in shapes:
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
        with torch.no_grad():
            boxes, scores, class_ids = model.predict(images)
        found = run(images)
        torch.testing.assert_close(found[0], boxes, atol=0.01, rtol=0)
        torch.testing.assert_close(found[1], scores, atol=1e-5, rtol=0)
        assert torch.equal(found[2], class_ids)


def test_onnx_takes_any_number_and_size_of_images(onnx_file, predictor):
    assert_finds_what_the_model_finds(load_onnx(onnx_file).run, predictor.model, SHAPES)


def test_predict_gives_the_boxes_of_forward(predictor):
    image = torch.randint(256, (3, 96, 128), dtype=torch.uint8)
    with torch.no_grad():
        boxes, scores, class_ids = predictor.model.predict(image[None])
        (found,) = predictor.model([{"image": image}])
        has_area = (boxes[0, :, 2:] > boxes[0, :, :2]).all(1)
    assert torch.equal(found["instances"].pred_boxes.tensor, boxes[0][has_area])
    assert torch.equal(found["instances"].scores, scores[0][has_area])
    assert torch.equal(found["instances"].pred_classes, class_ids[0][has_area])


def test_onnx_says_how_to_use_it(onnx_file, predictor):
    metadata = load_onnx(onnx_file).metadata
    assert metadata["aligndetr_version"] == aligndetr.__version__
    assert json.loads(metadata["class_names"]) == NAMES
    assert metadata["channel_order"] == "RGB"
    assert metadata["weights"] == "float32"
    assert json.loads(metadata["resize"]) == {
        "short_edge": SHORT_EDGE,
        "max_size": MAX_SIZE,
        "resampling": "Pillow bilinear",
    }
    mean = json.loads(metadata["normalisation"])["mean"]
    np.testing.assert_allclose(mean, predictor.model.pixel_mean.flatten(), rtol=1e-6)


def test_onnx_attends_by_grid_sample(onnx_file):
    import onnx

    count = sum(node.op_type == "GridSample" for node in onnx.load(onnx_file).graph.node)
    assert count == (ENCODER_LAYERS + DECODER_LAYERS) * 4  # levels


def test_half_the_weights_are_float16_and_no_location_is(onnx_file, tmp_path):
    import onnx

    model = to_half(onnx.load(onnx_file))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, tmp_path / "half.onnx")
    assert (tmp_path / "half.onnx").stat().st_size < 0.8 * onnx_file.stat().st_size
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    kept = [node for node in products if "sampling_offsets" in node.name]
    assert len(kept) == ENCODER_LAYERS + DECODER_LAYERS
    for node in products:
        weight = types.get(node.input[1])
        assert weight != onnx.TensorProto.FLOAT16 or node not in kept
    images = torch.randint(256, (2, 3, 100, 131), dtype=torch.uint8)
    found, expected = (load_onnx(path).run(images) for path in (tmp_path / "half.onnx", onnx_file))
    torch.testing.assert_close(found[1], expected[1], atol=HALF_TOLERANCE.score, rtol=0)


@pytest.mark.slow
def test_program_takes_any_number_and_size_of_images(predictor, tmp_path):
    export_model(predictor, tmp_path / "model.pt2", IMAGES)
    program = load_program(tmp_path / "model.pt2")
    assert json.loads(program.metadata["class_names"]) == NAMES
    assert_finds_what_the_model_finds(program.run, predictor.model, SHAPES[:2])
    with pytest.raises(ValueError, match="an image has 64 x 96 pixels.*65 or more"):
        program.run(torch.zeros(1, 3, 96, 64, dtype=torch.uint8))


def test_a_file_that_finds_something_else_does_not_appear(
    onnx_file, predictor, tmp_path, monkeypatch
):
    real = export.load_onnx

    def shifted(path, **options):
        detector = real(path, **options)

        def run(images):
            boxes, *more = detector.run(images)
            return boxes + torch.tensor([0.6, 0, 0.6, 0]), *more

        return RunningDetector(run, detector.metadata)

    monkeypatch.setattr(export, "write_onnx", lambda _, path, *__: shutil.copy(onnx_file, path))
    monkeypatch.setattr(export, "load_onnx", shifted)
    path = tmp_path / "model.onnx"
    path.write_text("an older one")
    lines = []
    with pytest.raises(ParityError, match="was not written"):
        export_model(predictor, path, IMAGES[:1], report=lines.append)
    assert "apart" in lines[0]
    assert path.read_text() == "an older one"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.engine", r"must end in .onnx or .pt2"),
        ("model.pt2", "float16 is for .onnx only"),
        ("folder.onnx", "is a folder"),
        ("file/model.onnx", "cannot be written"),
    ],
)
def test_what_cannot_be_written_is_refused_at_once(name, message, tmp_path):
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises((ValueError, OSError), match=message):
        check_output(tmp_path / name, half=name == "model.pt2")


def test_a_model_without_predict_is_named(predictor, tmp_path):
    other = Predictor(nn.Identity(), predictor.mapper, NAMES)
    other.model.pixel_mean = other.model.pixel_std = torch.ones(3)
    with pytest.raises(ValueError, match="Identity cannot be exported"):
        export_model(other, tmp_path / "model.onnx", IMAGES)


@pytest.mark.parametrize(
    ("augmentation", "fast_resize", "message"),
    [
        ([T.Resize((96, 96))], False, "must be one ResizeShortestEdge"),
        ([T.ResizeShortestEdge([96, 128])], False, "must be one ResizeShortestEdge"),
        ([], False, "must be one ResizeShortestEdge"),
        ([T.ResizeShortestEdge(96)], True, "fast_resize"),
    ],
)
def test_a_resize_that_cannot_be_described_is_named(augmentation, fast_resize, message, predictor):
    mapper = DetrDatasetMapper(augmentation, None, is_train=False, fast_resize=fast_resize)
    with pytest.raises(ValueError, match=message):
        aligndetr.export.describe(Predictor(predictor.model, mapper, NAMES))


def test_image_files_are_needed(predictor, tmp_path):
    with pytest.raises(ValueError, match="no image to compare on"):
        export_model(predictor, tmp_path / "model.onnx", [])
    with pytest.raises(FileNotFoundError, match="does not exist"):
        export_model(predictor, tmp_path / "model.onnx", ["no/such.jpg"])


def test_a_backbone_that_wants_padded_images_is_refused(monkeypatch):
    model = tiny_model()
    monkeypatch.setattr(type(model.backbone), "size_divisibility", 32)
    with pytest.raises(ValueError, match="padded to multiples of 32 pixels"):
        TensorDetector(model)
