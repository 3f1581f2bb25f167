"""Files of other codebases, with their exact names and shapes, become ours and theirs again."""

import os
import pickle
import sys
import types

import numpy as np
import pytest
import torch

from aligndetr.checkpoint import CheckpointError, load_weights, read_checkpoint, write_weights
from aligndetr.checkpoint.aliases import with_aliases, without_aliases
from aligndetr.checkpoint.mmdet_names import from_mmdet, to_mmdet
from aligndetr.checkpoint.recognising import with_our_names
from aligndetr.config import load_config
from aligndetr.engine import build_model
from tests.checkpoint import sources

CONFIG = "projects/aligndetr/configs/aligndetr_k=2_r50_4scale_12ep.py"
DINO_SETTINGS = {
    "model.position_embedding.temperature": 20,
    "model.position_embedding.offset": 0.0,
}


@pytest.fixture(scope="module")
def model():
    cfg = load_config(CONFIG)
    cfg.train.device = "cpu"
    return build_model(cfg)


def saved(path, content, **options):
    """Written by torch.save, or pickled with arrays for the name .pkl."""
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(content, protocol=3))
    else:
        torch.save(content, path, **options)
    return str(path)


def as_arrays(state):
    return {name: tensor.numpy() for name, tensor in state.items()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
        assert found[name].dtype == tensor.dtype


def test_the_tables_have_as_many_tensors_as_the_models():
    ours = sources.align_detr_shapes()
    assert len(ours) == 634
    assert len(sources.mmdet_align_detr()) == len(without_aliases(ours)) == 578
    # Made from different tables; both are ResNet-50.
    assert len(sources.torchvision_resnet()) == 320 == 265 + 53 + 2  # counters and classifier
    assert len(sources.caffe2_resnet()) == 265 - 2 * 53 + 2  # no statistics


@pytest.mark.parametrize("zip_format", [True, False], ids=["new", "old"])
def test_mmdetections_align_detr_fills_the_model_and_goes_back(tmp_path, model, zip_format):
    theirs = sources.mmdet_align_detr()
    meta = {"dataset_meta": {"classes": tuple("abc")}, "epoch": 12}
    path = saved(
        tmp_path / "align_detr.pth",
        {"meta": meta, "state_dict": theirs},
        # tools/model_converters/publish_model.py of mmdetection writes the old format.
        _use_new_zipfile_serialization=zip_format,
    )
    checkpoint = read_checkpoint(path)
    assert checkpoint["source"] == "AlignDETR of mmdetection"
    assert checkpoint["class_names"] == ["a", "b", "c"]
    shapes = {name: tuple(tensor.shape) for name, tensor in checkpoint["model"].items()}
    assert shapes == without_aliases(sources.align_detr_shapes())
    assert load_weights(model, checkpoint, path, strict=True).complete
    assert_same(to_mmdet(model.state_dict()), theirs)


def test_mmdetections_dino_gets_biases_of_zero_and_loses_them_on_the_way_back(tmp_path, model):
    theirs = sources.mmdet_dino()
    path = saved(tmp_path / "dino.pth", {"meta": {}, "state_dict": theirs})
    checkpoint = read_checkpoint(path)
    assert checkpoint["source"] == "DINO of mmdetection"
    assert len(checkpoint["filled"]) == 4
    assert all(not checkpoint["model"][name].any() for name in checkpoint["filled"])
    assert len(checkpoint["dropped"]) == 53  # counters
    counted = {name: t for name, t in theirs.items() if not name.endswith("num_batches_tracked")}
    assert_same(to_mmdet(checkpoint["model"], set(checkpoint["filled"])), counted)
    # It needs other settings than our config's.
    before = model.class_embed[0].weight.clone()
    with pytest.raises(CheckpointError, match=r"temperature=20 model\.position_embedding\.offset"):
        load_weights(model, checkpoint, path, strict=False)
    assert torch.equal(model.class_embed[0].weight, before)


def test_mmdetections_dino_loads_where_the_config_matches(tmp_path, model, monkeypatch):
    checkpoint = read_checkpoint(saved(tmp_path / "dino.pth", {"state_dict": sources.mmdet_dino()}))
    assert checkpoint["settings"].items() >= DINO_SETTINGS.items()
    for key, value in DINO_SETTINGS.items():
        monkeypatch.setattr(model.position_embedding, key.rpartition(".")[2], value)
    report = load_weights(model, checkpoint, "dino.pth", strict=True)
    assert report.complete
    assert sorted(report.filled) == sorted(checkpoint["filled"])


def test_a_bias_that_was_trained_since_is_kept_on_the_way_back():
    theirs = sources.mmdet_dino()
    converted = from_mmdet(theirs, None)
    converted.model["neck.convs.1.conv.bias"][3] = 0.5
    back = to_mmdet(converted.model, set(converted.filled))
    assert back["neck.convs.1.conv.bias"][3] == 0.5
    assert "neck.convs.0.conv.bias" not in back


def test_what_mmdetection_has_no_name_for_cannot_go_there():
    state = {"backbone.blocks.0.weight": torch.ones(2, 2)}
    with pytest.raises(ValueError, match=r"'backbone\.blocks\.0\.weight'.*published architecture"):
        to_mmdet(state)


@pytest.mark.parametrize(
    ("prefix", "once"), [("", False), ("module.", True)], ids=["heads twice", "ddp, heads once"]
)
def test_detrexs_align_detr_and_dino_have_our_names(tmp_path, model, prefix, once):
    state = with_aliases(sources.made_up(without_aliases(sources.align_detr_shapes())))
    theirs = without_aliases(state) if once else state
    content = {"model": {prefix + name: tensor for name, tensor in theirs.items()}, "iteration": 9}
    checkpoint = read_checkpoint(saved(tmp_path / "dino.pth", content))
    assert checkpoint["iteration"] == 9
    assert load_weights(model, checkpoint, "dino.pth", strict=True).complete
    assert_same(dict(model.state_dict()), state)


BACKBONES = {
    "torchvision": (sources.torchvision_resnet, "resnet50.pth", {}, 55),
    "detectron2": (
        sources.detectron2_resnet,
        "R-50.pkl",
        {"__author__": "torchvision", "matching_heuristics": True},
        55,
    ),
    "safetensors": (sources.torchvision_resnet, "resnet50.safetensors", {}, 55),
}


@pytest.mark.parametrize(
    "kind",
    [
        "torchvision",
        pytest.param("detectron2", marks=pytest.mark.slow),
        pytest.param("safetensors", marks=pytest.mark.slow),
    ],
)
def test_a_backbone_fills_the_backbone_and_nothing_else(tmp_path, model, kind):
    make, name, beside, num_dropped = BACKBONES[kind]
    theirs, path = make(), tmp_path / name
    if kind == "safetensors":
        write_weights(path, {"model": theirs}, "safetensors")
    elif kind == "detectron2":
        saved(path, {"model": as_arrays(theirs), **beside})
    else:
        saved(path, theirs)  # torchvision publishes bare state dicts
    checkpoint = read_checkpoint(str(path))
    assert len(checkpoint["dropped"]) == num_dropped
    head = model.class_embed[0].weight.clone()
    report = load_weights(model, checkpoint, str(path), strict=False)
    backbone = dict(model.backbone.state_dict())
    assert sorted(report.loaded) == sorted(f"backbone.{name}" for name in backbone)
    assert torch.equal(model.class_embed[0].weight, head)
    named = sources.detectron2_resnet()  # by detectron2's own rules
    assert_same(backbone, {name: named[name] for name in backbone})


@pytest.mark.parametrize("author", ["torchvision", "MSRA"])
def test_a_backbone_of_detectron2s_model_zoo_gets_its_place(author):
    """Tensors of one number each: what a file of it holds decides, not the shapes."""
    names = [
        "stem.conv1.weight",
        "stem.conv1.norm.bias",
        "res2.0.conv1.weight",
        "res5.2.conv3.norm",
    ]
    others = ["stem.fc.weight", "res2.0.conv1.norm.num_batches_tracked"]
    state = {name: torch.tensor(float(i)) for i, name in enumerate([*names, *others])}
    found = with_our_names({"model": state, "__author__": author})
    assert_same(found["model"], {f"backbone.{name}": state[name] for name in names})
    assert found["dropped"] == others
    # torchvision's has its strides in the 3x3 convolutions; of others that is not known.
    stride = {"model.backbone.stages.stride_in_1x1": False}
    assert found["settings"] == (stride if author == "torchvision" else {})


def test_a_resnet_also_fills_timms_which_has_torchvisions_names(tmp_path):
    timm = pytest.importorskip("timm")
    backbone = timm.create_model("resnet18", features_only=True)
    detector = torch.nn.ModuleDict({"backbone": torch.nn.ModuleDict({"body": backbone})})
    theirs = timm.create_model("resnet18").state_dict()
    checkpoint = read_checkpoint(saved(tmp_path / "resnet18.pth", theirs))
    report = load_weights(detector, checkpoint, "resnet18.pth", strict=False)
    assert report.unexpected == []
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name


def test_caffe2_wants_its_images_and_strides_and_scales_and_shifts_as_there(tmp_path, model):
    theirs = sources.caffe2_resnet()
    blobs = {"blobs": {**as_arrays(theirs), "conv1_w_momentum": np.zeros(1, np.float32)}}
    checkpoint = read_checkpoint(saved(tmp_path / "R-50.pkl", blobs))
    assert checkpoint["dropped"] == ["fc1000_w", "fc1000_b", "conv1_w_momentum"]
    with pytest.raises(CheckpointError, match=r"stride_in_1x1=True .*pixel_mean=\[103\.53,116\.28"):
        load_weights(model, checkpoint, "R-50.pkl", strict=False)

    report = load_weights(model, checkpoint | {"settings": {}}, "R-50.pkl", strict=False)
    assert len([name for name in report.loaded if name.startswith("backbone.")]) == 265
    # An affine layer: scale * x + bias.
    norm = model.backbone.res4[2].conv3.norm
    x = torch.randn(1, 1024, 3, 2, generator=torch.Generator().manual_seed(1))
    scale, bias = (theirs[f"res4_2_branch2c_bn_{s}"][:, None, None] for s in "sb")
    torch.testing.assert_close(norm(x), scale * x + bias, rtol=1e-6, atol=1e-6)


def test_a_checkpoint_amid_an_mmengine_training_is_read_without_its_log(tmp_path):
    """Its log is made of objects of a class that is not here; they are not built."""
    module = types.ModuleType("mmengine.logging.history_buffer")

    class HistoryBuffer:
        def __init__(self):
            self._log_history = np.arange(3.0)
            self.statistics_methods = {"mean": HistoryBuffer.mean}

        def mean(self):
            raise AssertionError("nobody asked for this")

        def __setstate__(self, state):
            raise AssertionError("it was built")

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = module.__name__, "HistoryBuffer"
    HistoryBuffer.mean.__module__ = module.__name__
    HistoryBuffer.mean.__qualname__ = "HistoryBuffer.mean"
    module.HistoryBuffer = HistoryBuffer
    names = ("mmengine", "mmengine.logging", module.__name__)
    modules = [types.ModuleType(names[0]), types.ModuleType(names[1]), module]
    content = {
        "meta": {"epoch": 3, "dataset_meta": {"classes": ["a"]}, "best": np.float64(0.5)},
        "state_dict": {"a.weight": torch.arange(3.0)},
        "message_hub": {"log_scalars": {"train/loss": HistoryBuffer()}},
    }
    try:
        sys.modules.update(zip(names, modules, strict=True))
        path = saved(tmp_path / "epoch_3.pth", content)
    finally:
        for name in names:
            sys.modules.pop(name, None)
    trusted = set(torch.serialization.get_safe_globals())
    checkpoint = read_checkpoint(path)
    assert checkpoint["model"]["a.weight"].tolist() == [0, 1, 2]
    assert checkpoint["message_hub"] == {"log_scalars": {}}
    assert checkpoint["meta"] == {"epoch": 3, "dataset_meta": {"classes": ["a"]}}
    assert set(torch.serialization.get_safe_globals()) == trusted  # nothing more than before


def test_such_a_checkpoint_may_not_name_anything_else(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "it_ran"),)

    content = {"state_dict": {"a": torch.ones(1)}, "log": np.float64(1), "x": Hostile()}
    path = saved(tmp_path / "epoch_3.pth", content)
    with pytest.raises(CheckpointError, match=r"(posix|nt)\.mkdir"):
        read_checkpoint(path)
    assert not (tmp_path / "it_ran").exists()
