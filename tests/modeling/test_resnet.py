"""Our ResNet computes what detectron2's does, its frozen norms folded into convolutions."""

import copy

import pytest
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d, get_norm
from detectron2.modeling.backbone import BasicStem
from detectron2.modeling.backbone import ResNet as D2ResNet
from detectron2.modeling.backbone.resnet import BottleneckBlock
from torch import nn

from aligndetr.modeling import ResNet
from aligndetr.modeling.frozen_norm import fold_frozen_norms


def build(cls, norm="FrozenBN", freeze_at=1):
    """Two bottlenecks in two stages, in float64, with norms as a trained model has them."""
    torch.manual_seed(0)
    widths = {"bottleneck_channels": 4, "norm": norm}
    stages = [
        [BottleneckBlock(8, 16, stride=1, **widths)],
        [BottleneckBlock(16, 24, stride=2, num_groups=2, **widths)],
    ]
    stem = BasicStem(in_channels=3, out_channels=8, norm=norm)
    model = cls(stem, stages, out_features=["res2", "res3"], freeze_at=freeze_at).double()
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            for name, buffer in module.named_buffers():
                buffer.uniform_(0.5, 2) if "var" in name else buffer.normal_()
    return model


@pytest.fixture
def images():
    return torch.randn(
        2, 3, 24, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )


@pytest.mark.parametrize("freeze_at", [0, 1, 2])
def test_features_and_gradients_are_those_of_detectron2(images, freeze_at):
    ours, theirs = build(ResNet, freeze_at=freeze_at), build(D2ResNet, freeze_at=freeze_at)
    features, expected = ours(images), theirs(images)
    for name in ("res2", "res3"):
        torch.testing.assert_close(features[name], expected[name], rtol=1e-10, atol=1e-12)
    for found in (features, expected):
        (found["res2"].square().sum() + found["res3"].sin().sum()).backward()
    gradients = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert (parameter.grad is None) == (gradients[name].grad is None), name
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, gradients[name].grad, rtol=1e-8, atol=1e-8)


def test_the_norms_are_not_run_but_stay_in_the_state_dict(images):
    ours, theirs = build(ResNet), build(D2ResNet)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for module in ours.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.register_forward_hook(lambda *_: pytest.fail("a frozen norm ran on its own"))
    ours(images)


def test_statistics_loaded_later_count(images):
    ours = copy.deepcopy(build(ResNet))
    before = ours(images)["res3"]
    for module in ours.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.running_mean.add_(1)
    assert not torch.allclose(ours(images)["res3"], before)


def test_a_bias_before_the_norm_counts(images):
    torch.manual_seed(0)
    conv = Conv2d(3, 4, 3, bias=True, norm=get_norm("FrozenBN", 4)).double()
    conv.norm.running_mean.normal_()
    conv.norm.weight.normal_()
    expected = conv(images)
    fold_frozen_norms(conv)
    torch.testing.assert_close(conv(images), expected, rtol=1e-10, atol=1e-12)


def test_other_norms_run_as_they_are(images):
    def norm(channels):
        return nn.GroupNorm(2, channels)

    features, expected = build(ResNet, norm)(images), build(D2ResNet, norm)(images)
    assert torch.equal(features["res3"], expected["res3"])
