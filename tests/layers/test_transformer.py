import re

import pytest
import torch
from torch import nn

from aligndetr.layers import (
    FFN,
    BaseTransformerLayer,
    MultiheadAttention,
    MultiScaleDeformableAttention,
    TransformerLayerSequence,
)
from tests.builders import golden_json, needs_newer_dynamo

B, Q, C = 2, 5, 8
SHAPES = [(3, 4), (2, 1)]
S = 14


class Recorder(nn.Module):
    """Attention or feed-forward stand-in: notes what it was given, adds `step` to the query."""

    embed_dim = C

    def __init__(self, step):
        super().__init__()
        self.step = step

    def forward(self, query, *inputs, **options):
        self.inputs, self.options = inputs, options
        identity = inputs[-1] if inputs[-1] is not None else query
        return identity + self.step


class Half(nn.Module):
    def forward(self, x):
        return x / 2


def decoder_layer(**overrides):
    arguments = {
        "attn": [
            MultiheadAttention(C, 2, batch_first=True),
            MultiScaleDeformableAttention(C, 2, 2, 3, dropout=0.0, batch_first=True),
        ],
        "ffn": FFN(C, 16),
        "norm": nn.LayerNorm(C),
        "operation_order": ("self_attn", "norm", "cross_attn", "norm", "ffn", "norm"),
    }
    return BaseTransformerLayer(**(arguments | overrides))


def decoder_inputs():
    return {
        "query": torch.randn(B, Q, C),
        "value": torch.randn(B, S, C),
        "query_pos": torch.randn(B, Q, C),
        "reference_points": torch.rand(B, Q, 2, 4),
        "spatial_shapes": SHAPES,
    }


def test_post_norm_by_hand():
    layer = BaseTransformerLayer(
        Recorder(2.0), Recorder(4.0), Half(), ("self_attn", "norm", "ffn", "norm")
    )
    assert layer(torch.tensor(6.0)).item() == ((6 + 2) / 2 + 4) / 2


def test_pre_norm_adds_to_the_stream_that_bypasses_the_norms():
    layer = BaseTransformerLayer(
        Recorder(2.0), Recorder(4.0), Half(), ("norm", "self_attn", "norm", "ffn", "norm", "ffn")
    )
    assert layer(torch.tensor(6.0)).item() == 6 + 2 + 4 + 4


def test_each_operation_gets_its_own_inputs():
    attentions = [Recorder(1.0), Recorder(1.0)]
    layer = BaseTransformerLayer(
        attentions, Recorder(1.0), nn.Identity(), ("self_attn", "cross_attn", "ffn")
    )
    query, key, value, query_pos, key_pos, mask, own_padding, padding = torch.arange(8.0)
    layer(
        query,
        key,
        value,
        query_pos,
        key_pos,
        attn_masks=[mask, None],
        query_key_padding_mask=own_padding,
        key_padding_mask=padding,
        extra="for all",
    )
    self_attn, cross_attn = attentions
    assert self_attn.inputs == (query, query, None)
    assert self_attn.options == {
        "query_pos": query_pos,
        "key_pos": query_pos,
        "attn_mask": mask,
        "key_padding_mask": own_padding,
        "extra": "for all",
    }
    assert cross_attn.inputs == (key, value, None)
    assert cross_attn.options == {
        "query_pos": query_pos,
        "key_pos": key_pos,
        "attn_mask": None,
        "key_padding_mask": padding,
        "extra": "for all",
    }


def test_decoder_layer_is_its_modules_in_order():
    layer, inputs = decoder_layer(), decoder_inputs()
    attn_mask = torch.eye(Q, dtype=torch.bool)
    self_attn, cross_attn = layer.attentions
    x = layer.norms[0](
        self_attn(inputs["query"], query_pos=inputs["query_pos"], attn_mask=attn_mask)
    )
    x = layer.norms[1](
        cross_attn(
            x,
            value=inputs["value"],
            query_pos=inputs["query_pos"],
            reference_points=inputs["reference_points"],
            spatial_shapes=SHAPES,
        )
    )
    x = layer.norms[2](layer.ffns[0](x))
    torch.testing.assert_close(layer(**inputs, attn_masks=[attn_mask, None]), x)


def test_a_keyword_that_nothing_reads_is_refused():
    with pytest.raises(TypeError, match="`refrence_points`.*MultiScaleDeformableAttention"):
        decoder_layer()(**decoder_inputs(), refrence_points=torch.rand(B, Q, 2, 4))


def test_a_mask_for_deformable_attention_is_refused():
    with pytest.raises(TypeError, match=r"attention 1, cross_attn\) takes no attention mask"):
        decoder_layer()(**decoder_inputs(), attn_masks=torch.eye(Q, dtype=torch.bool))


def test_a_key_position_for_deformable_attention_is_refused():
    with pytest.raises(TypeError, match="takes no key position"):
        decoder_layer()(**decoder_inputs(), key_pos=torch.randn(B, S, C))


def test_masks_must_be_one_per_attention():
    with pytest.raises(ValueError, match="`attn_masks` has 1 entries but the layer has 2"):
        decoder_layer()(**decoder_inputs(), attn_masks=[None])


def test_orders_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="unknown operations.*'cross_atn'"):
        decoder_layer(operation_order=("self_attn", "cross_atn"))
    with pytest.raises(ValueError, match="no attention"):
        decoder_layer(operation_order=("ffn", "norm"))
    with pytest.raises(ValueError, match="`attn` holds 2 modules.*1 attentions"):
        decoder_layer(operation_order=("self_attn", "ffn"))


def test_copies_do_not_share_weights():
    sequence = TransformerLayerSequence(decoder_layer(), num_layers=3)
    assert len(sequence.layers) == 3
    pointers = {p.data_ptr() for p in sequence.parameters()}
    assert len(pointers) == 3 * len(list(decoder_layer().parameters()))


def test_a_list_of_layers_is_taken_as_it_is():
    layers = [decoder_layer(), decoder_layer()]
    assert list(TransformerLayerSequence(layers, num_layers=2).layers) == layers
    with pytest.raises(ValueError, match="holds 2 layers but `num_layers` is 3"):
        TransformerLayerSequence(layers, num_layers=3)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_keys_and_shapes_are_those_of_released_weights(part):
    deformable = MultiScaleDeformableAttention(256, 8, 4, 4, batch_first=True)
    attn, order = [deformable], ("self_attn", "norm", "ffn", "norm")
    if part == "decoder":
        attn = [MultiheadAttention(256, 8, batch_first=True), deformable]
        order = ("self_attn", "norm", "cross_attn", "norm", "ffn", "norm")
    layer = BaseTransformerLayer(attn, FFN(256, 2048), nn.LayerNorm(256), order)
    sequence = TransformerLayerSequence(layer, num_layers=6)

    released = golden_json("r50_4scale_keys")["keys"]
    prefix = re.compile(rf"transformer\.{part}\.(layers\..+)")
    expected = {m[1]: shape for key, shape in released.items() if (m := prefix.match(key))}
    assert {key: list(t.shape) for key, t in sequence.state_dict().items()} == expected


@needs_newer_dynamo
def test_compiles_into_one_graph():
    layer, inputs = decoder_layer(), decoder_inputs()
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(**inputs), layer(**inputs))
