"""examples/onnx_predict.py gives the Predictor's boxes by numpy, Pillow and onnxruntime alone."""

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.export.conftest import IMAGES, MAX_SIZE, SHORT_EDGE

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples/onnx_predict.py"
THIRD_PARTY = {"numpy", "onnxruntime", "PIL"}


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("onnx_predict", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def detector(example, onnx_file):
    return example.OnnxDetector(onnx_file)


def test_imports_neither_torch_nor_detectron2_nor_us():
    nodes = list(ast.walk(ast.parse(EXAMPLE.read_text(encoding="utf-8"))))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names | THIRD_PARTY


def test_runs_where_neither_can_be_imported(onnx_file):
    """And nothing that it imports imports them."""
    code = f"""
import runpy, sys
for name in ("torch", "detectron2", "aligndetr"):
    sys.modules[name] = None  # importing it raises
sys.argv = ["onnx_predict.py", {str(onnx_file)!r}, {str(IMAGES[0])!r}, "--score-threshold", "0"]
runpy.run_path({str(EXAMPLE)!r}, run_name="__main__")
"""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    name, class_name, score, *box = result.stdout.splitlines()[0].rsplit(maxsplit=6)
    assert name == f"{IMAGES[0]}:"
    assert 0 <= float(score) <= 1
    assert len(box) == 4


# Landscape, portrait, square, longer than max_size allows, exactly half a pixel, enlarged.
@pytest.mark.parametrize(
    "size", [(640, 480), (333, 500), (97, 97), (1000, 301), (301, 1000), (144, 99), (20, 31)]
)
def test_makes_the_pixels_of_the_test_mapper(size, detector, predictor):
    pixels = np.random.default_rng(0).integers(256, size=(*size[::-1], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    (made,) = detector.prepare(image)
    np.testing.assert_array_equal(made, predictor.mapper.map_image(image, {})["image"])
    assert min(made.shape[1:]) == SHORT_EDGE or max(made.shape[1:]) == MAX_SIZE


def test_finds_what_the_predictor_finds(detector, predictor, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # lying
    Image.open(IMAGES[1]).save(tmp_path / "lying.jpg", exif=exif)
    for path in (*IMAGES, tmp_path / "lying.jpg"):
        expected = predictor(path, score_threshold=0.05)
        with Image.open(path) as image:
            boxes, scores, class_ids = detector(image, score_threshold=0.05)
        assert len(boxes) == len(expected) > 3
        np.testing.assert_allclose(boxes, expected.boxes, atol=0.02)
        np.testing.assert_allclose(scores, expected.scores, atol=1e-5)
        np.testing.assert_array_equal(class_ids, expected.class_ids)


def test_an_image_of_more_than_8_bits_is_refused(detector, tmp_path):
    Image.fromarray(np.full((50, 40), 4095, np.uint16)).save(tmp_path / "deep.png")
    with (
        Image.open(tmp_path / "deep.png") as image,
        pytest.raises(ValueError, match=r"deep.png has more than 8 bits"),
    ):
        detector(image)


def test_another_onnx_file_is_named(example, tmp_path):
    import onnx

    helper = onnx.helper
    copied = [helper.make_tensor_value_info(x, onnx.TensorProto.FLOAT, [1]) for x in "xy"]
    identity = helper.make_node("Identity", ["x"], ["y"])
    graph = helper.make_graph([identity], "other", copied[:1], copied[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(ValueError, match="other.onnx was not written by AlignDETR"):
        example.OnnxDetector(tmp_path / "other.onnx")


@pytest.mark.parametrize("content", [None, b"", b"no model"])
def test_a_model_that_cannot_be_loaded_is_named_in_one_line(
    example, tmp_path, monkeypatch, content
):
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setattr(sys, "argv", ["onnx_predict.py", str(path), str(IMAGES[0])])
    with pytest.raises(SystemExit, match=r"^error: .*model\.onnx cannot be used: .+") as end:
        example.main()
    assert "\n" not in end.value.code
