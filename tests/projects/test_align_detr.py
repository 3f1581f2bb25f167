"""The published R50 model's names and start, and what any Align-DETR must hold to."""

from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, instantiate

from aligndetr.layers import PositionEmbeddingSine
from aligndetr.modeling import ChannelMapper
from projects.aligndetr.modeling import AlignDETR
from tests.builders import (
    RES,
    golden_json,
    golden_tiny_batch,
    losses_of_training,
    random_batch,
    tiny_model,
)

R50 = Path("projects/aligndetr/configs/models/aligndetr_r50.py")


@pytest.fixture(scope="module")
def r50():
    torch.manual_seed(0)
    return instantiate(LazyConfig.load(str(R50)).model)


def test_r50_state_dict_has_the_published_keys_and_shapes(r50):
    got = {name: list(value.shape) for name, value in r50.state_dict().items()}
    assert got == golden_json("r50_4scale_keys")["keys"]


def test_r50_parameters_and_weights_are_the_published_ones(r50):
    keys = golden_json("r50_4scale_keys")
    assert {n: p.requires_grad for n, p in r50.named_parameters()} == keys["requires_grad"]
    assert r50.criterion.weight_dict == keys["weight_dict"]
    torch.testing.assert_close(r50.criterion.weight_table, torch.tensor(keys["weight_table"]))


def test_r50_starts_like_the_reference(r50):
    """Constants exactly; random tensors in spread and, for the uniform ones, in range."""
    stats = golden_json("r50_4scale_init_stats")["stats"]
    state = r50.state_dict()
    for name, (mean, std, low, high) in stats.items():
        value = state[name].float()
        if std == 0:
            torch.testing.assert_close(
                value, torch.full_like(value, mean), rtol=1e-5, atol=1e-6, msg=name
            )
            continue
        if name.endswith("sampling_offsets.bias"):  # not constant, yet not random
            got = [value.mean(), value.std(correction=0), value.min(), value.max()]
            assert [g.item() for g in got] == pytest.approx([mean, std, low, high], abs=1e-4)
            continue
        error = 6 / value.numel() ** 0.5  # six sigma of a mean, in units of std
        assert value.std().item() == pytest.approx(std, rel=min(0.5, 2 * error)), name
        assert abs(value.mean().item() - mean) < 2 * error * std, name


def test_class_heads_start_from_the_prior():
    for head in tiny_model(prior_init=0.2).class_embed:
        torch.testing.assert_close(head.bias.sigmoid(), torch.full((5,), 0.2))


def train_step(model, batch):
    losses = model.train()(batch)
    sum(losses.values()).backward()
    return losses


@pytest.mark.parametrize("counts", [[0, 0], [0, 3]], ids=["no object at all", "one image without"])
def test_every_parameter_gets_a_gradient(counts):
    model = tiny_model(label_noise_ratio=0.5, box_noise_scale=1.0)
    losses = train_step(model, random_batch([(64, 96), (64, 64)], counts))
    assert all(loss.dim() == 0 and loss.isfinite() for loss in losses.values())
    if sum(counts) == 0:
        assert all(loss == 0 for name, loss in losses.items() if "class" not in name)
        assert all(loss == 0 for name, loss in losses.items() if "_dn" in name)
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []


def test_loss_names_do_not_depend_on_the_batch():
    model = tiny_model()
    with_objects = train_step(model, random_batch([(64, 64)], [2]))
    without = train_step(model, random_batch([(64, 64)], [0]))
    assert set(with_objects) == set(without)
    assert len(with_objects) == 3 * (3 + 1 + 3)  # layers, encoder, denoising per layer


def test_images_smaller_than_the_number_of_queries():
    model = tiny_model(num_queries=50, label_noise_ratio=0.5, box_noise_scale=1.0)
    batch = random_batch([(32, 48)], [2])  # 4 * 6 + 2 * 3 + 1 * 2 + 1 * 1 = 33 tokens
    train_step(model, batch)
    with torch.no_grad():
        (result,) = model.eval()(batch)
    assert len(result["instances"]) <= 30
    assert result["instances"].scores.isfinite().all()


@pytest.mark.parametrize("embed_dim", [8, 24, 64])
def test_any_embed_dim_divisible_by_the_heads(embed_dim):
    model = tiny_model(embed_dim=embed_dim)
    losses = train_step(model, golden_tiny_batch())
    assert all(loss.isfinite() for loss in losses.values())


def test_training_does_not_modify_its_input():
    batch = golden_tiny_batch()
    train_step(tiny_model(label_noise_ratio=0.5, box_noise_scale=1.0), batch)
    for x, fresh in zip(batch, golden_tiny_batch(), strict=True):
        assert torch.equal(x["image"], fresh["image"])
        assert torch.equal(x["instances"].gt_boxes.tensor, fresh["instances"].gt_boxes.tensor)
        assert torch.equal(x["instances"].gt_classes, fresh["instances"].gt_classes)


def test_padding_of_a_training_batch_does_not_reach_the_smaller_image():
    """Deformable attention must not read values in padding: poison them through the mask."""
    model = tiny_model(dn_number=0).eval()
    seen = {}

    def keep(_module, args, kwargs):
        seen.update(kwargs)

    model.transformer.encoder.register_forward_pre_hook(keep, with_kwargs=True)
    model.train()
    model(random_batch([(96, 96), (64, 64)], [1, 1]))
    mask = seen["padding_mask"]
    assert not mask[0].any()
    assert mask[1].any()
    with torch.no_grad():
        clean = model.transformer.encoder(**seen)
        seen["tokens"] = seen["tokens"].masked_fill(mask[..., None], 1e4)
        poisoned = model.transformer.encoder(**seen)
    torch.testing.assert_close(clean[~mask], poisoned[~mask])


def test_what_a_backbone_pads_is_masked_at_evaluation_too(monkeypatch):
    model = tiny_model().eval()
    monkeypatch.setattr(type(model.backbone), "size_divisibility", 64)
    seen = {}
    model.transformer.encoder.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.update(kwargs), with_kwargs=True
    )
    model([{"image": torch.zeros(3, 64, 96, dtype=torch.uint8)}])
    (finest, *_) = seen["spatial_shapes"]
    mask = seen["padding_mask"][0, : finest[0] * finest[1]].view(*finest)
    assert tuple(finest) == (8, 16)
    assert mask.all(0).tolist() == [False] * 12 + [True] * 4


def test_the_loss_falls():
    torch.manual_seed(0)
    first, *_, last = losses_of_training(tiny_model(), lr=1e-3, steps=40)
    assert sum(last.values()) < 0.75 * sum(first.values())


def test_bfloat16_autocast_stays_close_and_boxes_stay_float32():
    torch.manual_seed(0)
    model = tiny_model().train()
    batch = golden_tiny_batch()
    exact = model(batch)
    kept = {}
    model.criterion.register_forward_pre_hook(lambda _m, args: kept.update(args[0]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(batch)
    assert kept["pred_boxes"].dtype == torch.float32
    assert all(loss.dtype == torch.float32 for loss in rough.values())
    total = sum(exact.values()).item()
    assert sum(rough.values()).item() == pytest.approx(total, rel=0.05)
    sum(rough.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"num_queries` \(=7\).*two_stage_num_proposals` \(=20\)"):
        AlignDETR(**model_arguments(tiny_model()) | {"num_queries": 7})
    model = tiny_model()
    model.criterion.match_num = [2, 1]
    with pytest.raises(ValueError, match="has 2 entries but the decoder has 3 layers; expected 4"):
        AlignDETR(**model_arguments(model))
    batch = [{k: v for k, v in x.items() if k != "instances"} for x in golden_tiny_batch()]
    with pytest.raises(ValueError, match='no "instances"'):
        tiny_model().train()(batch)


def model_arguments(model):
    names = ("backbone", "position_embedding", "neck", "transformer", "embed_dim")
    names += ("num_classes", "num_queries", "criterion")
    return {name: getattr(model, name) for name in names}


def test_trains_the_last_layer_alone():
    torch.manual_seed(0)
    model = tiny_model(aux_loss=False)
    losses = train_step(model, random_batch([(64, 80)] * 2, [2, 3]))
    names = {"loss_class", "loss_bbox", "loss_giou"}
    last = {name + suffix for name in names for suffix in ("", "_enc", "_dn")}
    assert losses.keys() == last
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize(("embed_dim", "heads"), [(24, 3), (30, 3), (40, 4)])
def test_any_even_embed_dim_that_the_heads_divide(embed_dim, heads):
    model = tiny_model(embed_dim, num_heads=heads)
    losses = train_step(model, random_batch([(64, 80)] * 2, [2, 1]))
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_classes": 3}, r"model\.num_classes` \(=3\) must equal `model\.criterion"),
        (
            {"embed_dim": 64},
            r"model\.embed_dim` \(=64\) must equal `model\.transformer\.encoder\.embed_dim` \(=32",
        ),
        (
            {"position_embedding": PositionEmbeddingSine(num_pos_feats=12)},
            r"position_embedding\.num_pos_feats` \(=12\) must be half of `model\.embed_dim` \(=32",
        ),
        (
            {"neck": ChannelMapper(None, RES, 24, num_outs=4)},
            r"model\.neck\.out_channels` \(=24\) must equal `model\.embed_dim` \(=32\)",
        ),
    ],
)
def test_sizes_that_must_agree(change, message):
    names = ("transformer", "criterion", "neck", "position_embedding")
    parts = {name: getattr(tiny_model(), name) for name in names}
    with pytest.raises(ValueError, match=message):
        tiny_model(**(parts | change))


def test_another_position_embedding_need_not_say_its_width():
    class Learnt(torch.nn.Module):
        def forward(self, mask):
            return torch.zeros(len(mask), 32, *mask.shape[1:])

    losses = train_step(tiny_model(position_embedding=Learnt()), random_batch([(64, 80)], [2]))
    assert all(loss.isfinite() for loss in losses.values())


def test_maps_and_levels_must_agree():
    neck = tiny_model().neck
    neck.num_outs = 3
    with pytest.raises(ValueError, match=r"neck\.num_outs` \(=3\).*num_feature_levels` \(=4\)"):
        tiny_model(neck=neck)


def test_a_class_that_the_model_does_not_have():
    batch = random_batch([(64, 80)] * 2, [2, 1])
    batch[1]["instances"].gt_classes[0] = 5
    with pytest.raises(ValueError, match=r"class 5, but the model has 5.*model\.num_classes"):
        tiny_model().train()(batch)


def test_all_layers_come_with_the_same_detections():
    torch.manual_seed(0)
    model = tiny_model().eval()
    for head in model.bbox_embed:  # they start at zero, where no layer moves a box
        torch.nn.init.normal_(head.layers[-1].weight, std=0.1)
    batch = random_batch([(96, 128), (64, 96), (96, 128)], [1, 1, 1])
    with torch.no_grad():
        plain = model(batch)
        with model.all_layers():
            full = model(batch)
        after = model(batch)
    assert all(set(result) == {"instances"} for result in plain + after)
    for image, (before, result) in enumerate(zip(plain, full, strict=True)):
        layers = result["layers"]
        assert layers["names"] == ["encoder", "decoder 1", "decoder 2", "decoder 3"]
        assert layers["pred_logits"].shape == (4, 20, 5)
        assert layers["pred_boxes"].shape == (4, 20, 4)
        assert torch.equal(before["instances"].scores, result["instances"].scores)
        boxes = before["instances"].pred_boxes.tensor
        assert torch.equal(boxes, result["instances"].pred_boxes.tensor)
        # The best detection is the best of the last layer, in pixels.
        last = layers["pred_logits"][-1].sigmoid()
        torch.testing.assert_close(last.max(), before["instances"].scores[0])
        x, y, w, h = layers["pred_boxes"][-1][last.amax(1).argmax()]
        height, width = batch[image]["image"].shape[1:]
        corners = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2]).clamp(0, 1)
        torch.testing.assert_close(boxes[0], corners * torch.tensor([width, height] * 2))
        # Each layer has its own.
        assert len({tuple(b.flatten().tolist()) for b in layers["pred_boxes"]}) == 4
