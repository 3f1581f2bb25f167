"""Random weights in mmdetection's layout compute here what its published code computes.

Each tensor in which several parts lie one after the other has a test, in which the parts are taken
out as mmdetection and mmcv take them and the result is worked out by their formulas.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torchvision.models import resnet50

from aligndetr.checkpoint import load_weights
from aligndetr.checkpoint.mmdet_config import (
    all_layers_num_gt_repeat,
    cfg_options,
    match_num,
    model_settings,
)
from aligndetr.checkpoint.recognising import with_our_names
from aligndetr.config import load_config
from aligndetr.engine import build_model
from tests.checkpoint import sources


@pytest.fixture(scope="module")
def theirs():
    return sources.made_up(sources.read_table("mmdet_align_detr_r50"), rows_alike=False)


@pytest.fixture(scope="module")
def model(theirs):
    cfg = load_config("projects/aligndetr/configs/aligndetr_k=2_r50_4scale_12ep.py")
    cfg.train.device = "cpu"
    model = build_model(cfg).eval().requires_grad_(False)
    checkpoint = with_our_names({"model": theirs, "meta": {}})
    assert load_weights(model, checkpoint, "align_detr.pth", strict=True).complete
    return model


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def linear(theirs, name, x):
    return F.linear(x, theirs[f"{name}.weight"], theirs[f"{name}.bias"])


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_backbone_is_torchvisions_resnet(theirs, model):
    """mmdetection's ResNet of style "pytorch" is torchvision's, layer by layer."""
    with torch.device("meta"):
        reference = resnet50(weights=None).eval()
    prefix = "backbone."
    state = {n.removeprefix(prefix): t for n, t in theirs.items() if n.startswith(prefix)}
    reference.load_state_dict(state, strict=False, assign=True)
    x = randn(1, 3, 33, 41)
    found = model.backbone(x)
    y = F.relu(reference.bn1(reference.conv1(x)))
    y = reference.layer1(F.max_pool2d(y, 3, 2, 1))
    for name, layer in (("res3", "layer2"), ("res4", "layer3"), ("res5", "layer4")):
        y = getattr(reference, layer)(y)
        assert_close(found[name], y)


def test_neck_convolves_then_norms_in_32_groups(theirs, model):
    maps = {f"res{i}": randn(1, c, 7, 5, seed=i) for i, c in ((3, 512), (4, 1024), (5, 2048))}
    found = model.neck(maps)
    inputs = [*maps.values(), maps["res5"]]
    names = [*(f"neck.convs.{i}" for i in range(3)), "neck.extra_convs.0"]
    for x, name, level in zip(inputs, names, found, strict=True):
        extra = {"stride": 2, "padding": 1} if "extra" in name else {}
        y = F.conv2d(x, theirs[f"{name}.conv.weight"], theirs[f"{name}.conv.bias"], **extra)
        norm = theirs[f"{name}.gn.weight"], theirs[f"{name}.gn.bias"]
        assert_close(level, F.group_norm(y, 32, *norm))


def test_in_proj_is_query_then_key_then_value(theirs, model):
    """768 rows: 256 of each; the heads are eight slices of 32 in each of them."""
    name, layer = "decoder.layers.3.self_attn.attn", model.transformer.decoder.layers[3]
    x, position = randn(1, 6, 256), randn(1, 6, 256, seed=1)
    q, k, v = (
        F.linear(y, weight, bias).view(6, 8, 32).transpose(0, 1)
        for y, weight, bias in zip(
            (x + position, x + position, x),
            theirs[f"{name}.in_proj_weight"].chunk(3),
            theirs[f"{name}.in_proj_bias"].chunk(3),
            strict=True,
        )
    )
    attended = ((q @ k.transpose(1, 2)) / math.sqrt(32)).softmax(-1) @ v
    attended = linear(theirs, f"{name}.out_proj", attended.transpose(0, 1).reshape(1, 6, 256))
    found = layer.attentions[0](x, query_pos=position, key_pos=position)
    assert_close(found, x + attended)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("encoder.layers.2.self_attn", lambda model: model.transformer.encoder.layers[2]),
        ("decoder.layers.4.cross_attn", lambda model: model.transformer.decoder.layers[4]),
    ],
)
def test_offsets_and_weights_go_by_head_level_point_and_x_before_y(theirs, model, name, part):
    """mmcv views offsets as (heads, levels, points, 2) and weights as (heads, levels * points)."""
    attention = part(model).attentions[-1]
    shapes = [(9, 7), (5, 4), (3, 2), (1, 1)]
    value = randn(1, sum(h * w for h, w in shapes), 256)
    query, reference = randn(1, 3, 256, seed=1), torch.rand(1, 3, 1, 2).expand(-1, -1, 4, -1)
    offsets = linear(theirs, f"{name}.sampling_offsets", query).view(3, 8, 4, 4, 2)
    weights = linear(theirs, f"{name}.attention_weights", query).view(3, 8, 16).softmax(-1)
    projected = linear(theirs, f"{name}.value_proj", value)[0].view(-1, 8, 32)
    attended, start = torch.zeros(3, 8, 32), 0
    for level, (height, width) in enumerate(shapes):
        cells = projected[start : start + height * width].view(height, width, 8, 32)
        start += height * width
        for head in range(8):
            image = cells[:, :, head].permute(2, 0, 1)[None]
            size = torch.tensor([width, height])
            places = reference[0, :, level, None] + offsets[:, head, level] / size
            sampled = F.grid_sample(image, 2 * places[None] - 1, align_corners=False)
            of_level = weights.view(3, 8, 4, 4)[:, head, level]
            attended[:, head] += (sampled[0] * of_level).sum(-1).T
    expected = query + linear(theirs, f"{name}.output_proj", attended.view(1, 3, 256))
    found = attention(query, value=value, reference_points=reference, spatial_shapes=shapes)
    assert_close(found, expected)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_feed_forward_is_linear_relu_linear(theirs, model, part):
    x, name = randn(2, 3, 256), f"{part}.layers.5.ffn.layers"
    expected = x + linear(theirs, f"{name}.1", linear(theirs, f"{name}.0.0", x).relu())
    assert_close(getattr(model.transformer, part).layers[5].ffns[0](x), expected)


@pytest.mark.parametrize("layer", range(7))
def test_heads_are_those_of_the_layers_and_the_seventh_is_the_encoders(theirs, model, layer):
    x, name = randn(2, 3, 256), f"bbox_head.reg_branches.{layer}"
    hidden = linear(theirs, f"{name}.2", linear(theirs, f"{name}.0", x).relu()).relu()
    decoder = model.transformer.decoder
    assert_close(decoder.bbox_embed[layer](x), linear(theirs, f"{name}.4", hidden))
    assert_close(
        decoder.class_embed[layer](x), linear(theirs, f"bbox_head.cls_branches.{layer}", x)
    )


def test_query_positions_come_from_y_x_w_h(theirs, model):
    """mmdetection's coordinate_to_encoding of cxcywh puts y before x, then w, then h."""
    boxes = torch.tensor([[[0.2, 0.3, 0.5, 0.7]]])
    exponent = 2 * (torch.arange(128) // 2) / 128
    parts = []
    for coordinate in boxes[0, 0, [1, 0, 2, 3]]:
        phase = coordinate * 2 * math.pi / 10000**exponent
        parts.append(torch.stack([phase[0::2].sin(), phase[1::2].cos()], -1).flatten())
    hidden = linear(theirs, "decoder.ref_point_head.layers.0", torch.cat(parts)).relu()
    expected = linear(theirs, "decoder.ref_point_head.layers.1", hidden)
    assert_close(model.transformer.decoder._query_pos(boxes)[0, 0], expected)


def test_embeddings_norms_and_the_proposals_projection(theirs, model):
    transformer = model.transformer
    assert torch.equal(transformer.level_embeds, theirs["level_embed"])
    assert torch.equal(transformer.tgt_embed.weight, theirs["query_embedding.weight"])
    label = theirs["dn_query_generator.label_embedding.weight"]
    assert torch.equal(model.label_enc.weight, label)
    x = randn(1, 2, 256)

    def norm(name, y):
        return F.layer_norm(y, (256,), theirs[f"{name}.weight"], theirs[f"{name}.bias"])

    assert_close(transformer.decoder.norm(x), norm("decoder.norm", x))
    for i in range(3):
        layer = transformer.decoder.layers[1]
        assert_close(layer.norms[i](x), norm(f"decoder.layers.1.norms.{i}", x))
    projected = norm("memory_trans_norm", linear(theirs, "memory_trans_fc", x))
    assert_close(transformer.enc_output_norm(transformer.enc_output(x)), projected)


def test_matches_per_layer_are_ordered_otherwise_there():
    theirs = [2, 3, 4, 5, 6, 1, 7]  # six layers of the decoder, then the encoder
    assert match_num(theirs) == [7, 2, 3, 4, 5, 6, 1]
    assert all_layers_num_gt_repeat(match_num(theirs)) == theirs


CONFIG_TEXT = """
dataset_type = 'CocoDataset'
model = dict(
    type='DINO',
    data_preprocessor=dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], bgr_to_rgb=False),
    backbone=dict(style='caffe', depth=50),
    positional_encoding=dict(num_feats=128, normalize=True, offset=-0.5, temperature=20),
    bbox_head=dict(all_layers_num_gt_repeat=[2, 2, 2, 2, 2, 1, 3], tau=1.5, loss=call(open)))
"""


def test_the_config_in_a_file_says_what_tensors_do_not():
    settings, training = model_settings(CONFIG_TEXT, published={})
    assert settings == {
        "model.position_embedding.temperature": 20,
        "model.position_embedding.offset": -0.5,
        "model.position_embedding.normalize": True,
        "model.pixel_mean": [103.53, 116.28, 123.675],
        "model.pixel_std": [1.0, 1.0, 1.0],
        "model.backbone.stages.stride_in_1x1": True,
        "dataloader.train.mapper.img_format": "BGR",
        "dataloader.test.mapper.img_format": "BGR",
    }
    assert training == {"model.criterion.match_num": [3, 2, 2, 2, 2, 2, 1],
                        "model.criterion.tau": 1.5}  # fmt: skip


@pytest.mark.parametrize(
    "text", ["model = (", "model = 3", "x = 1", "model = " + "[" * 10**5, None]
)
def test_a_config_that_says_nothing_leaves_the_published_one(text):
    settings, _ = model_settings(text, {"positional_encoding": {"temperature": 7, "offset": 1}})
    assert settings["model.position_embedding.temperature"] == 7


def test_cfg_options_name_what_differs_from_the_published_config():
    published = load_config("projects/aligndetr/configs/aligndetr_k=2_r50_4scale_12ep.py").model
    published = OmegaConf.to_container(published, resolve=False)
    assert cfg_options(published) == []
    published["num_classes"] = 3
    published["criterion"]["match_num"] = [4, 3, 2, 1, 1, 1, 1]
    assert cfg_options(published) == [
        "model.bbox_head.num_classes=3",
        "model.bbox_head.all_layers_num_gt_repeat=[3,2,1,1,1,1,4]",
    ]


def test_a_config_may_write_its_dicts_in_braces():
    text = "model = {'backbone': {'style': 'caffe'}, 'data_preprocessor': {**base, 'mean': [1]}}"
    settings, _ = model_settings(text, published={})
    assert settings["model.backbone.stages.stride_in_1x1"] is True
    assert settings["model.pixel_mean"] == [123.675, 116.28, 103.53]  # that of `base` is not known
