"""DC5: the weights of a plain ResNet, and a last map of stride 16."""

import pytest
import torch
from detectron2.modeling.backbone import BasicStem

from aligndetr.modeling import ResNet, dilated_stages


def backbone(stages):
    stem = BasicStem(in_channels=3, out_channels=64, norm="FrozenBN")
    return ResNet(stem, stages, out_features=["res4", "res5"], freeze_at=0)


@pytest.fixture(scope="module")
def pair():
    options = {"depth": 50, "stride_in_1x1": False, "norm": "FrozenBN"}
    with torch.device("meta"):
        return backbone(ResNet.make_default_stages(**options)), backbone(dilated_stages(**options))


def test_the_weights_are_those_of_the_plain_one(pair):
    plain, dilated = ({n: w.shape for n, w in net.state_dict().items()} for net in pair)
    assert plain == dilated


def test_the_last_map_is_as_fine_as_the_one_before(pair):
    _, dilated = pair
    shapes = dilated.output_shape()
    assert (shapes["res5"].stride, shapes["res5"].channels) == (16, 2048)
    maps = dilated(torch.zeros(1, 3, 70, 90, device="meta"))
    assert maps["res5"].shape[2:] == maps["res4"].shape[2:] == (5, 6)
    assert [block.conv2.dilation for block in dilated.res5] == [(2, 2)] * 3
    assert [block.conv2.dilation for block in dilated.res4] == [(1, 1)] * 6


def test_other_depths_are_refused():
    with pytest.raises(ValueError, match="`depth` .=18. must be 50, 101 or 152"):
        dilated_stages(18)
