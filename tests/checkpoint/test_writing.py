"""Weights written for others give the same detections, and come back bit for bit."""

import json

import pytest
import torch
from safetensors import safe_open

from aligndetr.checkpoint import CheckpointError, load_weights, read_checkpoint, write_weights
from aligndetr.checkpoint.resnet_names import TORCHVISION
from tests.builders import golden, golden_tiny_batch, golden_tiny_model, tensor, tiny_model


@pytest.fixture(scope="module")
def trained():
    return golden_tiny_model().eval()


def assert_golden(model):
    """What the reference implementation computes for the first golden image."""
    with torch.no_grad():
        (result,) = model.eval()([golden_tiny_batch()[0]])
    want = {
        name.rpartition("/")[2]: tensor(array)
        for name, array in golden("tiny32_outputs").items()
        if name.startswith("eval/img0/f32/inst0/")
    }
    found = result["instances"]
    assert found.pred_classes.tolist() == want["pred_classes"].tolist()
    torch.testing.assert_close(found.scores, want["scores"], rtol=0, atol=1e-5)
    torch.testing.assert_close(found.pred_boxes.tensor, want["pred_boxes"], rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("to", ["safetensors", "detrex", "mmdet"])
def test_the_golden_model_through_each_format(trained, tmp_path, to):
    path = tmp_path / "weights"  # its name tells nothing, its content all
    names = list("abcde")
    write_weights(path, {"model": trained.state_dict(), "class_names": names}, to)
    checkpoint = read_checkpoint(str(path))
    assert checkpoint["class_names"] == names
    model = tiny_model()
    assert load_weights(model, checkpoint, "weights", strict=True).complete
    assert_golden(model)
    for name, value in trained.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_the_golden_model_with_its_backbone_from_torchvisions_names(trained, tmp_path):
    state = trained.state_dict()
    theirs = {
        TORCHVISION.theirs(name): value
        for name, value in state.items()
        if name.startswith("backbone.")
    }
    assert "layer2.0.downsample.1.running_var" in theirs
    torch.save(theirs, tmp_path / "resnet.pth")
    model = tiny_model()
    rest = {name: t for name, t in state.items() if not name.startswith("backbone.")}
    model.load_state_dict(rest, strict=False)
    checkpoint = read_checkpoint(str(tmp_path / "resnet.pth"))
    assert checkpoint["source"] == "ResNet of torchvision"
    load_weights(model, checkpoint, "resnet.pth", strict=False)
    assert_golden(model)


def test_safetensors_hold_what_a_detector_needs_and_no_training(trained, tmp_path):
    path = tmp_path / "a.safetensors"
    checkpoint = {
        "model": trained.state_dict(),
        "config": "model: {}\n",
        "class_names": ["Baum", "木"],
        "preprocessing": {"channel_order": "RGB"},
        "settings": {"model.position_embedding.temperature": 20},
        "trainer": {"optimizer": {"state": torch.ones(3)}},
        "iteration": 7,
    }
    write_weights(path, checkpoint, "safetensors")
    found = read_checkpoint(str(path))
    left_out = {"model", "trainer", "iteration"}
    assert {key: value for key, value in found.items() if key != "model"} == {
        key: value for key, value in checkpoint.items() if key not in left_out
    }
    with safe_open(path, framework="pt") as file:  # readable without us
        assert json.loads(file.metadata()["class_names"]) == ["Baum", "木"]
        assert file.metadata()["format"] == "pt"
    # The settings travel along, and are asked for again.
    with pytest.raises(CheckpointError, match="temperature=20"):
        load_weights(tiny_model(), found, "a.safetensors", strict=True)


def test_tied_weights_and_views_are_written_under_each_name(tmp_path):
    weight = torch.arange(12.0).view(4, 3)
    state = {
        "embed.weight": weight,
        "output.weight": weight,
        "half": weight[2:],
        "turned": weight.T,
    }
    write_weights(tmp_path / "a.safetensors", {"model": state}, "safetensors")
    found = read_checkpoint(str(tmp_path / "a.safetensors"))["model"]
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_a_writing_that_fails_leaves_the_old_file_whole(trained, tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    path.write_text("before")
    fail = "aligndetr.checkpoint.safetensors_files.save_file"
    monkeypatch.setattr(fail, lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_weights(path, {"model": trained.state_dict()}, "safetensors")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_an_unknown_format_is_named_with_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=r"'onnx'.*safetensors, detrex, mmdet"):
        write_weights(tmp_path / "a", {"model": {}}, "onnx")


@pytest.mark.parametrize("damage", ["cut", "lying", "json"])
def test_a_safetensors_file_that_is_none_is_refused(trained, tmp_path, damage):
    path = tmp_path / "a.safetensors"
    write_weights(path, {"model": trained.state_dict(), "class_names": ["a"]}, "safetensors")
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    changed = {
        "cut": content[:-5],
        "lying": (length + 80).to_bytes(8, "little") + content[8:],
        "json": content.replace(b'[\\"a\\"]', b'[\\"a\\";'),
    }[damage]
    assert changed != content
    path.write_bytes(changed)
    with pytest.raises(CheckpointError, match="not readable as data"):
        read_checkpoint(str(path))


@pytest.mark.parametrize(
    ("key", "value"),
    [("class_names", {"a": 1}), ("class_names", [1]), ("settings", [1]), ("filled", [["a"]])],
)
def test_an_entry_of_another_kind_is_refused_in_safetensors(trained, tmp_path, key, value):
    path = tmp_path / "a.safetensors"
    write_weights(path, {"model": trained.state_dict(), key: value}, "safetensors")
    with pytest.raises(CheckpointError, match=f"not readable as data: its '{key}' is not the"):
        read_checkpoint(str(path))


def test_a_torch_file_cannot_pose_as_a_conversion(tmp_path):
    content = {"model": {"a": torch.ones(1)}, "settings": 3, "filled": 4, "class_names": ["b"]}
    torch.save(content, tmp_path / "a.pth")
    checkpoint = read_checkpoint(str(tmp_path / "a.pth"))
    assert checkpoint.keys() == {"model", "class_names"}
