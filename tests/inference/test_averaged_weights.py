"""Whatever takes `ema` writes the averaged weights of a checkpoint, and the others without it."""

import logging
import sys

import pytest
import torch

from aligndetr.checkpoint import read_checkpoint
from aligndetr.cli import convert, export
from aligndetr.engine.ema import ModelEMA
from aligndetr.inference import convert_checkpoint, save_pretrained
from tests.data.coco_json import COCO_TINY
from tests.inference.small_checkpoint import SMALL_IMAGES, save_trained, small_model

IMAGE = str(next(COCO_TINY.glob("val/*.jpg")))
OPTIONS = [
    *SMALL_IMAGES,
    "model.num_queries=20",
    "model.transformer.encoder.num_layers=1",
    "model.transformer.decoder.num_layers=1",
    "model.criterion.match_num=[6,1]",
]
TRAINED, AVERAGED = "model", "ema_state"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """model_final.pth whose averaged weights are nowhere its weights."""
    model, cfg = small_model(OPTIONS)
    ema = ModelEMA(model, decay=0.5)
    ema.start(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    ema.update(model)
    return save_trained(model, cfg, tmp_path_factory.mktemp("averaged"), ema_state=ema)


def assert_weights_are(found, path, part):
    """Every tensor of `found`, and there are some, is that of `part` and not of the other."""
    checkpoint = read_checkpoint(str(path))
    (other,) = {TRAINED, AVERAGED} - {part}
    assert found
    for name, tensor in found.items():
        assert torch.equal(tensor, checkpoint[part][name]), name
        assert not torch.equal(tensor, checkpoint[other][name]), name


both = pytest.mark.parametrize(("ema", "part"), [(True, AVERAGED), (False, TRAINED)])


@both
def test_a_converted_file(ema, part, path, tmp_path):
    convert_checkpoint(str(path), tmp_path / "file", ema=ema)
    found = read_checkpoint(str(tmp_path / "file"))
    assert AVERAGED not in found
    assert_weights_are(found["model"], path, part)


def test_a_converted_file_of_weights_without_a_config(path, tmp_path):
    checkpoint = read_checkpoint(str(path))
    bare = tmp_path / "bare.pth"
    torch.save({part: dict(checkpoint[part]) for part in (TRAINED, AVERAGED)}, bare)
    convert_checkpoint(str(bare), tmp_path / "file", ema=True)
    assert_weights_are(read_checkpoint(str(tmp_path / "file"))["model"], path, AVERAGED)


@both
def test_a_folder_for_sharing(ema, part, path, tmp_path):
    save_pretrained(str(path), tmp_path / "cats", ema=ema)
    found = read_checkpoint(str(tmp_path / "cats/model.safetensors"))
    assert_weights_are(found["model"], path, part)


def run(monkeypatch, command, *words):
    monkeypatch.setattr(sys, "argv", ["command", *map(str, words)])
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    command.main()


def test_the_command_convert(path, tmp_path, monkeypatch):
    run(monkeypatch, convert, path, tmp_path / "file", "--ema")
    assert_weights_are(read_checkpoint(str(tmp_path / "file"))["model"], path, AVERAGED)


def test_the_command_export_also_in_half(path, tmp_path, monkeypatch):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    file = tmp_path / "model.onnx"
    run(
        monkeypatch,
        export,
        "--checkpoint",
        path,
        "--output",
        file,
        "--images",
        IMAGE,
        "--ema",
        "--half",
    )
    content = onnx.load(file)
    assert {x.key: x.value for x in content.metadata_props}["weights"] == "float16"
    # The tracer folds and renames the others.
    found = {
        tensor.name.removeprefix("model."): torch.tensor(onnx.numpy_helper.to_array(tensor))
        for tensor in content.graph.initializer
        if tensor.name.startswith("model.") and tensor.data_type == onnx.TensorProto.FLOAT
    }
    assert {"transformer.level_embeds", "transformer.tgt_embed.weight"} <= found.keys()
    assert_weights_are(found, path, AVERAGED)
