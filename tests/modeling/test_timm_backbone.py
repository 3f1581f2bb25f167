"""Backbones of timm: channels and strides are found, and images fit."""

import pytest
import torch
from torch import nn

from aligndetr.modeling import ChannelMapper, TimmBackbone
from tests.builders import golden_tiny_batch, tiny_model


@pytest.fixture
def timm():
    return pytest.importorskip("timm")


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize("name", ["test_convnext", "test_resnet", "test_efficientnet"])
def test_shapes_are_what_is_promised(name):
    backbone = TimmBackbone(name, out_indices=[1, 2, 3]).eval()
    maps = backbone(torch.zeros(2, 3, 64, 96))
    shapes = backbone.output_shape()
    assert list(maps) == list(shapes) == ["stage1", "stage2", "stage3"]
    for name, feature in maps.items():
        stride = shapes[name].stride
        assert feature.shape == (2, shapes[name].channels, 64 // stride, 96 // stride)
    assert backbone.size_divisibility == max(shape.stride for shape in shapes.values())


@pytest.mark.slow
@pytest.mark.usefixtures("timm")
def test_maps_of_channels_last_models_are_turned():
    backbone = TimmBackbone("swin_tiny_patch4_window7_224", out_indices=[3], drop_path_rate=0.1)
    (feature,) = backbone.eval()(torch.zeros(1, 3, 224, 224)).values()
    assert feature.shape == (1, 768, 7, 7)


@pytest.mark.usefixtures("timm")
def test_a_detector_finds_channels_and_pads_to_the_stride():
    neck = ChannelMapper(None, None, 32, kernel_size=1, norm_layer=nn.GroupNorm(8, 32), num_outs=4)
    model = tiny_model(backbone=TimmBackbone("test_convnext"), neck=neck)
    assert [conv.conv.in_channels for conv in model.neck.convs] == [32, 48, 64]
    batch = golden_tiny_batch()
    assert model.preprocess_image(batch[1:]).tensor.shape[-2:] == (128, 160)  # of 112 x 144
    losses = model.train()(batch)
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.usefixtures("timm")
def test_frozen_batch_norms_have_no_statistics_to_update():
    free, frozen = (TimmBackbone("test_resnet", freeze_batch_norm=f) for f in (False, True))
    assert any(isinstance(m, nn.BatchNorm2d) for m in free.modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in frozen.modules())
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    frozen.train()(torch.randn(2, 3, 64, 64))
    assert all(torch.equal(value, before[name]) for name, value in frozen.state_dict().items())


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model_name": "convnxt_tiny"}, r"convnxt_tiny'\) is no model of timm"),
        ({"model_name": "hf-hub:someone/model"}, "is no model of timm"),
        ({"model_name": "local-dir:/tmp/x"}, "is no model of timm"),
        ({"model_name": "test_convnext", "out_indices": [1, 9]}, r"out_indices \[1, 9\]"),
        (
            {"model_name": "test_convnext", "out_indices": [3, 1]},
            r"out_indices` \(=\[3, 1\]\)",
        ),
        (
            {"model_name": "test_convnext", "out_indices": [2, 2]},
            r"out_indices` \(=\[2, 2\]\)",
        ),
        ({"model_name": "test_convnext", "out_indices": [-2, -1]}, "must be 0 or more and rise"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        TimmBackbone(**arguments)
