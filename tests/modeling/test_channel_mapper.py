import pytest
import torch
from detectron2.layers import ShapeSpec
from torch import nn

from aligndetr.modeling import ChannelMapper
from tests.builders import golden, tensor

CHANNELS = {"res3": 24, "res4": 32, "res5": 40}


def golden_neck(input_shapes):
    return ChannelMapper(
        input_shapes=input_shapes,
        in_features=list(CHANNELS),
        out_channels=32,
        kernel_size=1,
        num_outs=4,
        norm_layer=nn.GroupNorm(8, 32),
    )


@pytest.mark.parametrize(
    "shape_of", [lambda c: {"channels": c}, lambda c: ShapeSpec(channels=c)], ids=["dict", "spec"]
)
def test_golden_neck(shape_of):
    neck = golden_neck({name: shape_of(c) for name, c in CHANNELS.items()})
    arrays = golden("layers")
    weights = {
        name.removeprefix("neck/weights/"): tensor(array)
        for name, array in arrays.items()
        if name.startswith("neck/weights/")
    }
    neck.load_state_dict(weights)
    inputs = {name: tensor(arrays[f"neck/in/{name}"]) for name in CHANNELS}
    outs = neck(inputs)
    assert len(outs) == 4
    for level, out in enumerate(outs):
        torch.testing.assert_close(out, tensor(arrays[f"neck/out{level}"]), rtol=0, atol=2e-6)


def test_further_maps_halve_the_last_input_then_each_other():
    neck = ChannelMapper({"p": {"channels": 3}, "q": {"channels": 5}}, ["p", "q"], 7, num_outs=5)
    inputs = {"p": torch.randn(2, 3, 21, 26), "q": torch.randn(2, 5, 11, 13)}
    shapes = [tuple(out.shape) for out in neck(inputs)]
    assert shapes == [
        (2, 7, 21, 26),
        (2, 7, 11, 13),
        (2, 7, 6, 7),
        (2, 7, 3, 4),
        (2, 7, 2, 2),
    ]


def test_norms_are_not_shared_and_biases_start_at_zero():
    neck = golden_neck({name: {"channels": c} for name, c in CHANNELS.items()})
    units = [*neck.convs, *neck.extra_convs]
    assert len({id(unit.norm) for unit in units}) == 4
    assert all((unit.conv.bias == 0).all() for unit in units)


def test_bad_arguments_name_themselves():
    with pytest.raises(ValueError, match=r"in_features.*\['res6'\].*res3"):
        ChannelMapper({"res3": {"channels": 3}}, ["res6"], 4)
    with pytest.raises(ValueError, match=r"num_outs` \(=1\)"):
        ChannelMapper({"a": {"channels": 3}, "b": {"channels": 3}}, ["a", "b"], 4, num_outs=1)
    with pytest.raises(ValueError, match=r"norm_layer\.num_channels` \(=6\).*out_channels` \(=4\)"):
        ChannelMapper({"a": {"channels": 3}}, ["a"], 4, norm_layer=nn.GroupNorm(2, 6))


def test_all_maps_of_typed_shapes_in_their_order():
    neck = ChannelMapper({"q": {"channels": 5}, "p": {"channels": 3}}, None, 7)
    assert neck.in_features == ["q", "p"]


# Channels of the backbone


def test_channels_are_found_and_ordered_by_stride():
    shapes = {"deep": ShapeSpec(channels=7, stride=32), "fine": ShapeSpec(channels=3, stride=8)}
    neck = ChannelMapper(None, None, 5, kernel_size=1, num_outs=3)
    assert not neck.is_connected
    neck.connect(shapes)
    assert neck.in_features == ["fine", "deep"]
    assert [unit.conv.in_channels for unit in (*neck.convs, *neck.extra_convs)] == [3, 7, 7]
    typed = ChannelMapper(shapes, ["fine", "deep"], 5, kernel_size=1, num_outs=3)
    assert {n: v.shape for n, v in neck.state_dict().items()} == {
        n: v.shape for n, v in typed.state_dict().items()
    }


def test_some_of_the_backbones_maps():
    neck = ChannelMapper(None, ["b"], 5)
    neck.connect({"a": ShapeSpec(channels=3, stride=4), "b": ShapeSpec(channels=7, stride=8)})
    assert [unit.conv.in_channels for unit in neck.convs] == [7]
    with pytest.raises(ValueError, match=r"names \['c'\]"):
        ChannelMapper(None, ["c"], 5).connect({"a": ShapeSpec(channels=3, stride=4)})


def test_typed_channels_are_left_alone():
    neck = ChannelMapper({"a": {"channels": 3}}, ["a"], 5)
    weight = neck.convs[0].conv.weight
    neck.connect({"a": ShapeSpec(channels=9, stride=4)})
    assert neck.convs[0].conv.weight is weight
