"""DAB-DETR with this criterion: attention that knows an anchor's size, boxes, and its training."""

import re

import pytest
import torch
from torch import nn

from aligndetr.export.graph import to_onnx
from aligndetr.layers import PositionEmbeddingSine, get_sine_pos_embed
from aligndetr.modeling import padding_masks
from projects.align_dab_detr.modeling import DabDetrTransformerDecoder, DabDetrTransformerEncoder
from tests.builders import (
    golden_tiny_batch,
    losses_of_training,
    queries_per_object,
    random_batch,
    tiny_dab_model,
)

B, Q, C, LAYERS = 2, 17, 24, 3


@pytest.fixture
def model():
    torch.manual_seed(0)
    return tiny_dab_model().eval()


@pytest.fixture(scope="module")
def onnx_model():
    """The model, and a session of its file."""
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model = tiny_dab_model().eval()
    return model, onnxruntime.InferenceSession(to_onnx(model))


def sine_of_layers(decoder, boxes):
    """The position that cross-attention of each layer compares with keys."""
    seen = []
    hooks = [
        layer.attentions[1].register_forward_pre_hook(
            lambda _m, _args, kwargs: seen.append(kwargs["query_sine_embed"]), with_kwargs=True
        )
        for layer in decoder.layers
    ]
    memory = torch.zeros(len(boxes), 5, C)
    with torch.no_grad():
        decoder(
            torch.zeros(*boxes.shape[:2], C), memory, memory, torch.zeros(len(boxes), 5) > 0, boxes
        )
    for hook in hooks:
        hook.remove()
    return seen


def test_size_factors_by_hand(model):
    """A predicted size of sigmoid(0) = 1/2, over a width of 0.25 and a height of 0.1."""
    decoder = model.transformer.decoder
    head = decoder.ref_anchor_head.layers[-1]
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    boxes = torch.tensor([[[0.5, 0.5, 0.25, 0.1]]])
    factors = decoder.size_factors(torch.randn(1, 1, C), boxes)
    expected = [5.0] * (C // 2) + [2.0] * (C // 2)  # features of y come first
    torch.testing.assert_close(factors[0, 0], torch.tensor(expected))
    head.bias.data[0] = 30.0  # the width, to sigmoid(30) = 1
    torch.testing.assert_close(
        decoder.size_factors(torch.zeros(1, 1, C), boxes)[0, 0, -1].item(), 4.0
    )


def test_an_anchor_without_area_keeps_attention_finite(model):
    factors = model.transformer.decoder.size_factors(torch.zeros(1, 1, C), torch.zeros(1, 1, 4))
    assert factors.isfinite().all()


def test_positions_of_the_first_layer_are_the_anchors_own(model):
    """No content scales them, and a box of twice the width attends half as sharply along x."""
    decoder = model.transformer.decoder
    boxes = torch.tensor([[[0.3, 0.6, 0.2, 0.1], [0.3, 0.6, 0.4, 0.1]]])
    first, *_ = sine_of_layers(decoder, boxes)
    sine = get_sine_pos_embed(boxes, num_pos_feats=C // 2)[..., :C]
    torch.testing.assert_close(first, sine * decoder.size_factors(torch.zeros(1, 2, C), boxes))
    narrow, wide = first[0]
    torch.testing.assert_close(wide[C // 2 :], narrow[C // 2 :] / 2)
    torch.testing.assert_close(wide[: C // 2], narrow[: C // 2])


def test_without_modulation_sizes_do_not_reach_positional_attention():
    decoder = DabDetrTransformerDecoder(C, 3, num_layers=1, modulate_hw_attn=False)
    boxes = torch.tensor([[[0.3, 0.6, 0.2, 0.1], [0.3, 0.6, 0.4, 0.3]]])
    (first,) = sine_of_layers(decoder, boxes)
    assert torch.equal(first[0, 0], first[0, 1])


def test_later_layers_scale_positions_by_content(model):
    decoder = model.transformer.decoder
    nn.init.zeros_(decoder.query_scale.layers[-1].weight)
    nn.init.zeros_(decoder.query_scale.layers[-1].bias)
    first, *others = sine_of_layers(decoder, torch.full((1, 2, 4), 0.5))
    assert (first != 0).any()
    assert len(others) == LAYERS - 1
    assert all((later == 0).all() for later in others)


def test_names_of_weights_are_detrexs(model):
    """Written out from its DAB-DETR: what its files hold, numbers of layers left out."""
    linear = ("weight", "bias")
    attention = [f"{kind}_{part}_proj" for kind in ("query", "key") for part in ("content", "pos")]
    attention += ["value_proj", "out_proj"]
    ffn = [f"ffns.0.layers.{part}" for part in ("0.0.weight", "0.0.bias", "0.1.weight")]
    layer = [*ffn, "ffns.0.layers.1.weight", "ffns.0.layers.1.bias"]
    layer += [f"norms.#.{x}" for x in linear]
    encoder = ["in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"]
    encoder = [*layer, *(f"attentions.#.attn.{x}" for x in encoder)]
    decoder = [*layer, *(f"attentions.#.{part}.{x}" for part in attention for x in linear)]
    decoder += [f"attentions.#.query_pos_sine_proj.{x}" for x in linear]
    heads = ["query_scale.layers.#", "ref_point_head.layers.#", "ref_anchor_head.layers.#"]
    heads = [*heads, "bbox_embed.layers.#", "post_norm_layer"]
    expected = {f"transformer.encoder.layers.#.{name}" for name in encoder}
    expected |= {f"transformer.encoder.query_scale.layers.#.{x}" for x in linear}
    expected |= {f"transformer.decoder.layers.#.{name}" for name in decoder}
    expected |= {f"transformer.decoder.{head}.{x}" for head in heads for x in linear}
    expected |= {
        f"{n}.{x}" for n in ("input_proj", "class_embed", "bbox_embed.layers.#") for x in linear
    }
    expected |= {"anchor_box_embed.weight"}
    names = [name for name in model.state_dict() if not name.startswith("backbone.")]
    found = {re.sub(r"(layers|norms|attentions)\.\d+(?=\.[a-z])", r"\1.#", name) for name in names}
    found = {re.sub(r"ffns\.0\.layers\.#", "ffns.0.layers.1", name) for name in found}
    assert found == expected
    # The position is added to the content in the first layer alone.
    added = [name for name in names if "attentions.1.query_pos_proj" in name]
    assert added == [
        f"transformer.decoder.layers.0.attentions.1.query_pos_proj.{x}" for x in linear
    ]


def test_shapes_and_where_the_first_layer_starts(model):
    pixels = torch.zeros(B, 3, 64, 96)
    with torch.no_grad():
        states, references = model._transform(pixels)
    assert states.shape == (LAYERS, B, Q, C)
    assert references.shape == (LAYERS, B, Q, 4)
    anchors = model.anchor_box_embed.weight.sigmoid()
    torch.testing.assert_close(references[0], anchors.expand(B, -1, -1))


def test_boxes_start_as_the_anchors_spread_over_the_image(model):
    with torch.no_grad():
        logits, boxes = model._predict_last_layer(*model._transform(torch.zeros(1, 3, 64, 96)))
    torch.testing.assert_close(boxes[0], model.anchor_box_embed.weight.sigmoid(), atol=2e-3, rtol=0)
    assert boxes[0, :, :2].min() < 0.2
    assert boxes[0, :, :2].max() > 0.8
    assert logits.sigmoid().mean().item() == pytest.approx(0.01, rel=0.5)


def test_padding_changes_nothing_but_rounding(model):
    """The same map with and without a padded margin, which holds rubbish."""
    torch.nn.init.normal_(model.bbox_embed.layers[-1].weight, std=0.1)
    feature, anchors = torch.randn(1, C, 5, 7), model.anchor_box_embed.weight
    padded = torch.full((1, C, 8, 9), 1e3)
    padded[..., :5, :7] = feature
    small = torch.zeros(1, 5, 7, dtype=torch.bool)
    (large,) = padding_masks([(80, 112)], (128, 144), [(8, 9)], torch.device("cpu"))
    with torch.no_grad():
        results = [
            model._predict_last_layer(
                *model.transformer(maps, mask, anchors, model.position_embedding(mask))
            )
            for maps, mask in ((feature, small), (padded, large))
        ]
    for alone, with_margin in zip(*results, strict=True):
        torch.testing.assert_close(alone, with_margin, atol=1e-5, rtol=1e-5)


def test_a_batch_gives_each_image_what_it_gets_alone(model):
    batch = random_batch([(64, 96), (80, 64), (64, 96)], [0, 0, 0])
    with torch.no_grad():
        together = model(batch)
        alone = [model([x])[0] for x in batch]
    for one, other in zip(together, alone, strict=True):
        one, other = one["instances"], other["instances"]
        torch.testing.assert_close(one.pred_boxes.tensor, other.pred_boxes.tensor)
        torch.testing.assert_close(one.scores, other.scores)


def test_predict_gives_the_boxes_of_forward(model):
    images = torch.randint(256, (1, 3, 64, 96), dtype=torch.uint8)
    with torch.no_grad():
        boxes, scores, classes = model.predict(images)
        found = model([{"image": images[0]}])[0]["instances"]
    torch.testing.assert_close(found.scores, scores[0])
    torch.testing.assert_close(found.pred_boxes.tensor, boxes[0])
    assert torch.equal(found.pred_classes, classes[0])


@pytest.mark.parametrize("shape", [(1, 3, 97, 130), (3, 3, 128, 75)])
def test_onnx_takes_any_number_and_size_of_images(shape, onnx_model):
    model, session = onnx_model
    images = torch.randint(256, shape, dtype=torch.uint8)
    with torch.no_grad():
        boxes, scores, classes = model.predict(images)
    found = session.run(None, {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(found[0]), boxes, atol=0.01, rtol=0)
    torch.testing.assert_close(torch.from_numpy(found[1]), scores, atol=1e-5, rtol=0)
    assert torch.equal(torch.from_numpy(found[2]), classes)


def test_all_layers_end_with_the_detections(model):
    with torch.no_grad(), model.all_layers():
        (result,) = model([{"image": torch.zeros(3, 64, 96, dtype=torch.uint8)}])
    layers = result["layers"]
    assert layers["names"] == ["decoder 1", "decoder 2", "decoder 3"]
    assert layers["pred_boxes"].shape == (LAYERS, Q, 4)
    best = layers["pred_logits"][-1].sigmoid().max()
    torch.testing.assert_close(result["instances"].scores[0], best)


@pytest.mark.parametrize("counts", [[0, 0], [0, 3]], ids=["no object at all", "one image without"])
def test_every_parameter_gets_a_gradient(counts):
    model = tiny_dab_model().train()
    losses = model(random_batch([(64, 96), (64, 64)], counts))
    sum(losses.values()).backward()
    assert set(losses) == {
        f"loss_{kind}{layer}" for kind in ("class", "bbox", "giou") for layer in ("", "_0", "_1")
    }
    assert all(loss.dim() == 0 and loss.isfinite() for loss in losses.values())
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []


def test_mixed_matching_is_in_its_layers():
    model = tiny_dab_model().train()
    with queries_per_object(model.criterion.matcher) as found:
        model(random_batch([(64, 96)], [3]))
    *early, last = found.values()
    assert early == [[[2, 2, 2]]] * 2
    assert last == [[1, 1, 1]]


def test_the_loss_falls():
    torch.manual_seed(0)
    first, *_, last = losses_of_training(tiny_dab_model(), lr=3e-3, steps=20)
    assert sum(last.values()) < 0.8 * sum(first.values())


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_centres_get_no_gradient(frozen):
    model = tiny_dab_model(freeze_anchor_box_centers=frozen).train()
    sum(model(golden_tiny_batch()).values()).backward()
    gradient = model.anchor_box_embed.weight.grad
    assert (gradient[:, 2:] != 0).any()
    assert (gradient[:, :2] == 0).all() == frozen


def test_recomputed_layers_give_the_same_gradients():
    torch.manual_seed(0)
    model, batch, found = tiny_dab_model().train(), golden_tiny_batch(), []
    for use_checkpoint in (False, True):
        model.transformer.encoder.use_checkpoint = use_checkpoint
        model.transformer.decoder.use_checkpoint = use_checkpoint
        model.zero_grad()
        sum(model(batch).values()).backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert None not in found[0].values()
    plain, recomputed = found
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)


def test_half_precision_keeps_boxes_in_float32():
    model = tiny_dab_model().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(golden_tiny_batch())
        _, references = model._transform(torch.zeros(1, 3, 64, 96))
    assert all(loss.isfinite() for loss in losses.values())
    assert references.dtype == torch.float32


def test_the_first_layer_alone_has_no_scale_by_content():
    assert not hasattr(DabDetrTransformerDecoder(C, 3, num_layers=1), "query_scale")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"in_channels": 64}, "`model.in_channels` is 64, but 'res4' of the backbone has 128"),
        ({"in_features": ["res5"]}, "`model.in_features` .* must end with a map of the backbone"),
        ({"in_features": []}, "`model.in_features` .* must end with a map of the backbone"),
        ({"embed_dim": 32}, "`model.embed_dim` .=32. must equal .*encoder.embed_dim. .=24."),
        (
            {"position_embedding": PositionEmbeddingSine(16)},
            "`model.position_embedding.num_pos_feats` .=16. must be half of `model.embed_dim` .=24",
        ),
        ({"num_classes": 4}, "`model.num_classes` .=4. must equal .*criterion.num_classes. .=5."),
    ],
)
def test_sizes_that_do_not_fit_are_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        tiny_dab_model(**overrides)


def test_widths_that_do_not_fit_are_named(model):
    transformer = type(model.transformer)
    with pytest.raises(ValueError, match="encoder.embed_dim` .=24. must equal .*decoder"):
        transformer(DabDetrTransformerEncoder(24, 3), DabDetrTransformerDecoder(12, 3))
    with pytest.raises(ValueError, match="`embed_dim` .=9. must be even"):
        DabDetrTransformerDecoder(9, 3)
