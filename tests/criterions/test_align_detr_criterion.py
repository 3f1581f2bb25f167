"""Properties of the criterion: permutations, batches without objects, DDP, bad input."""

import copy
import math
from unittest.mock import patch

import pytest
import torch

from aligndetr.criterions import (
    AlignDETRCriterion,
    BaseCriterion,
    HybridCriterion,
    ManyToOneCriterion,
    TwoStageCriterion,
)
from aligndetr.criterions import base_criterion as base_module
from aligndetr.losses import IABCELoss
from aligndetr.matchers import MixedMatcher
from aligndetr.utils.errors import NonFinitePredictionError
from tests.builders import queries_per_object

K, Q, AUX = 5, 23, 2
MATCH_NUM = [3, 2, 2, 1]  # encoder, two auxiliary layers, last
LAYER_SUFFIXES = ("", "_0", "_1", "_enc", "_dn", "_dn_0", "_dn_1")
ALL_KEYS = {f"loss_{x}{s}" for x in ("class", "bbox", "giou") for s in LAYER_SUFFIXES}


def make_matcher():
    return MixedMatcher(2.0, 5.0, 2.0, "focal_loss_cost", alpha=0.25, gamma=2.0)


def make_criterion(**changes):
    arguments = {
        "num_classes": K,
        "matcher": make_matcher(),
        "weight_dict": {"loss_class": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0},
        "match_num": MATCH_NUM,
        "gamma": 2.0,
        "alpha": 0.25,
        "tau": 1.5,
    }
    return AlignDETRCriterion(**(arguments | changes))


def random_boxes(generator, *shape):
    center = torch.rand(*shape, 2, generator=generator) * 0.6 + 0.2
    size = torch.rand(*shape, 2, generator=generator) * 0.3 + 0.05
    return torch.cat([center, size], dim=-1)


def random_layers(generator, batch, num_queries, num_aux, dtype):
    def layer():
        logits = torch.randn(batch, num_queries, K, generator=generator)
        boxes = random_boxes(generator, batch, num_queries)
        leaves = {"pred_logits": logits.to(dtype), "pred_boxes": boxes.to(dtype)}
        return {key: value.requires_grad_() for key, value in leaves.items()}

    return {**layer(), "aux_outputs": [layer() for _ in range(num_aux)]}


def random_step(counts=(4, 3), dn_groups=2, seed=0, dtype=torch.float32):
    """outputs, targets, dn_metas as the model hands them to the criterion."""
    generator = torch.Generator().manual_seed(seed)
    batch = len(counts)
    outputs = random_layers(generator, batch, Q, AUX, dtype)
    outputs["enc_outputs"] = random_layers(generator, batch, Q, 0, dtype)
    outputs["enc_outputs"].pop("aux_outputs")
    targets = [
        {
            "labels": torch.randint(1, K, (n,), generator=generator),
            "boxes": random_boxes(generator, n),
        }
        for n in counts
    ]
    if not dn_groups or not any(counts):
        return outputs, targets, None
    padding = 2 * max(counts)
    dn_metas = {
        "dn_num": dn_groups,
        "single_padding": padding,
        "output_known_lbs_bboxes": random_layers(generator, batch, dn_groups * padding, AUX, dtype),
    }
    return outputs, targets, dn_metas


def leaves_of(tree):
    if isinstance(tree, torch.Tensor):
        return [tree]
    children = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return [leaf for child in children for leaf in leaves_of(child)]


def image_of(tree, i):
    """The same outputs for image i alone."""
    if isinstance(tree, torch.Tensor):
        return tree[i : i + 1]
    if isinstance(tree, dict):
        return {key: image_of(value, i) for key, value in tree.items()}
    return [image_of(value, i) for value in tree] if isinstance(tree, list) else tree


def values(losses):
    return {key: loss.item() for key, loss in losses.items()}


# What is computed


def test_layers_take_their_number_of_candidates_from_match_num():
    outputs, targets, dn_metas = random_step((3, 2))
    criterion = make_criterion()
    with queries_per_object(criterion.matcher) as seen:
        criterion(outputs, targets, dn_metas)
    assert seen == {
        "encoder proposals": [[3, 3, 3], [3, 3]],
        "decoder layer 1 of 3 (aux_outputs[0])": [[2, 2, 2], [2, 2]],
        "decoder layer 2 of 3 (aux_outputs[1])": [[2, 2, 2], [2, 2]],
        "last decoder layer": [[1, 1, 1], [1, 1]],
        # Known without matching; the matcher only sees whether they are finite.
        **{f"denoising queries of decoder layer {i}": [[], []] for i in (1, 2, 3)},
    }


def test_all_sets_are_matched_in_one_call_and_reduced_once():
    outputs, targets, dn_metas = random_step()
    criterion = make_criterion()
    with patch.object(criterion.matcher, "match", wraps=criterion.matcher.match) as match:
        criterion(outputs, targets, dn_metas)
    assert [len(call.args[0]) for call in match.call_args_list] == [4 + 3]


def test_weight_table_rows():
    table = make_criterion(match_num=[3, 1, 2], tau=2.0).weight_table
    e = [1.0, math.exp(-0.5), math.exp(-1.0)]
    torch.testing.assert_close(table, torch.tensor([e, [e[0], 0, 0], [e[0], e[1], 0]]))


def test_given_indices_weigh_one_each():
    # Both queries of the one object count in full, where matching would weigh them 1 and 0.51.
    outputs, targets, _ = random_step((1,))
    indices = [(torch.tensor([4, 9]), torch.tensor([0, 0]))]
    losses, used = make_criterion().get_loss(outputs, targets, 2.0, 1, specify_indices=indices)
    assert used is indices
    distance = (outputs["pred_boxes"][0, [4, 9]] - targets[0]["boxes"]).abs().sum() / 2
    torch.testing.assert_close(losses["loss_bbox"], distance)


def test_ranks_weigh_the_box_losses():
    # Two queries lie where their object is but for a shift in x; the nearer one has rank 0.
    outputs, targets, _ = random_step((1,))
    with torch.no_grad():
        outputs["pred_logits"].fill_(-2)
        outputs["pred_boxes"].fill_(0.01)
        outputs["pred_boxes"][0, 6] = targets[0]["boxes"][0] + torch.tensor([0.02, 0, 0, 0])
        outputs["pred_boxes"][0, 3] = targets[0]["boxes"][0] + torch.tensor([0.04, 0, 0, 0])
    # The encoder has one candidate: its row of the table would not do for this layer.
    criterion = make_criterion(match_num=[1, 2, 2, 1])
    losses, indices = criterion.get_loss(outputs, targets, 1.0, 1)
    assert set(indices[0][0].tolist()) == {3, 6}
    expected = 0.02 + 0.04 * math.exp(-1 / 1.5)
    assert losses["loss_bbox"].item() == pytest.approx(expected, rel=1e-5)


def test_denoising_positives_lead_every_group():
    # Perfect boxes at group * padding + object, nonsense elsewhere: the box losses see no error.
    outputs, targets, dn_metas = random_step((2, 3), dn_groups=3)
    dn_outputs = dn_metas["output_known_lbs_bboxes"]
    with torch.no_grad():
        for image, target in enumerate(targets):
            dn_outputs["pred_boxes"][image].fill_(0.9)
            for group in range(3):
                first = group * dn_metas["single_padding"]
                dn_outputs["pred_boxes"][image, first : first + len(target["boxes"])] = target[
                    "boxes"
                ]
    losses = make_criterion().compute_dn_loss(dn_metas, targets, AUX, 5.0)
    assert losses["loss_bbox_dn"].item() == 0
    assert losses["loss_giou_dn"].item() == pytest.approx(0, abs=1e-3)
    assert losses["loss_bbox_dn_0"].item() > 0.1


def test_permuting_the_objects_changes_nothing():
    # Without denoising: there the order of the objects is the order of the queries.
    outputs, targets, _ = random_step((4, 5))
    orders = (torch.tensor([2, 0, 3, 1]), torch.tensor([4, 2, 0, 1, 3]))
    permuted = [
        {key: value[order] for key, value in target.items()}
        for target, order in zip(targets, orders, strict=True)
    ]
    before = values(make_criterion()(outputs, targets))
    assert values(make_criterion()(outputs, permuted)) == pytest.approx(before, rel=1e-5)


def test_a_batch_is_the_sum_of_its_images():
    counts = (11, 0, 2)  # the first has nearly half as many objects as there are queries
    outputs, targets, dn_metas = random_step(counts, dtype=torch.float64)
    criterion = make_criterion()
    together = values(criterion(outputs, targets, dn_metas))
    summed = dict.fromkeys(together, 0.0)
    for i, count in enumerate(counts):
        losses = criterion(image_of(outputs, i), targets[i : i + 1], image_of(dn_metas, i))
        for key, loss in losses.items():
            summed[key] += loss.item() * max(1, count) / sum(counts)
    assert together == pytest.approx(summed, rel=1e-12)


def test_more_objects_than_queries_trains():
    outputs, targets, _ = random_step((Q + 9, 2), dn_groups=0)
    losses = make_criterion()(outputs, targets)
    assert all(loss.isfinite() for loss in losses.values())
    _, indices = make_criterion().get_loss(outputs, targets, 1.0, 1)
    assert indices[0][1].unique().numel() == Q


def test_binary_proposals_leave_the_targets_alone():
    outputs, targets, dn_metas = random_step()
    before = copy.deepcopy(targets)
    plain = make_criterion()(outputs, targets, dn_metas)
    binary = make_criterion(two_stage_binary_cls=True)(outputs, targets, dn_metas)
    for target, kept in zip(targets, before, strict=True):
        assert all(torch.equal(target[key], kept[key]) for key in kept)
    # All but the proposals' losses are as they were; the proposals' are those of class 0.
    zeros = [{**t, "labels": torch.zeros_like(t["labels"])} for t in targets]
    only_zeros = make_criterion()(outputs, zeros, dn_metas)
    for key in ALL_KEYS:
        expected = only_zeros if key.endswith("_enc") else plain
        torch.testing.assert_close(binary[key], expected[key], rtol=0, atol=0)
    assert binary["loss_class_enc"] != plain["loss_class_enc"]


# What flows back


@pytest.mark.parametrize("counts", [(0, 0), (0, 3), (1,)])
def test_every_key_is_there_and_every_prediction_in_the_graph(counts):
    outputs, targets, dn_metas = random_step(counts)
    losses = make_criterion()(outputs, targets, dn_metas)
    assert losses.keys() == ALL_KEYS
    assert all(loss.ndim == 0 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    for leaf in leaves_of(outputs) + leaves_of(dn_metas or {}):
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()


def test_no_objects_means_no_box_loss_but_negatives():
    outputs, targets, dn_metas = random_step((0, 0))
    assert dn_metas is None
    losses = values(make_criterion()(outputs, targets, dn_metas))
    for suffix in ("", "_0", "_1", "_enc"):
        assert losses[f"loss_bbox{suffix}"] == losses[f"loss_giou{suffix}"] == 0
        assert losses[f"loss_class{suffix}"] > 0
    assert all(value == 0 for key, value in losses.items() if "_dn" in key)


def test_denoising_without_groups_is_zero_not_nan():
    outputs, targets, dn_metas = random_step((2, 1))
    empty = {"pred_logits": torch.zeros(2, 0, K), "pred_boxes": torch.zeros(2, 0, 4)}
    none = {**empty, "aux_outputs": [empty] * AUX}
    dn_metas = {"dn_num": 0, "single_padding": 4, "output_known_lbs_bboxes": none}
    losses = make_criterion()(outputs, targets, dn_metas)
    assert all(loss.item() == 0 for key, loss in losses.items() if "_dn" in key)


@pytest.mark.parametrize("scale", [1.0, 1e3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast(dtype, scale):
    """Losses are those of the same numbers in float32, finite where the logits saturate."""
    outputs, targets, dn_metas = random_step(dtype=dtype)
    with torch.no_grad():
        for leaf in leaves_of(outputs) + leaves_of(dn_metas):
            if leaf.shape[-1] == K:
                leaf.mul_(scale)
    upcast = [
        {k: _to_float(v) for k, v in outputs.items()},
        targets,
        {k: _to_float(v) for k, v in dn_metas.items()},
    ]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = make_criterion()(outputs, targets, dn_metas)
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    assert values(losses) == values(make_criterion()(*upcast))
    sum(losses.values()).backward()
    for leaf in leaves_of(outputs) + leaves_of(dn_metas):
        assert leaf.grad.dtype == dtype
        assert leaf.grad.isfinite().all()


def _to_float(tree):
    if isinstance(tree, torch.Tensor):
        return tree.detach().float()
    if isinstance(tree, dict):
        return {key: _to_float(value) for key, value in tree.items()}
    return [_to_float(value) for value in tree] if isinstance(tree, list) else tree


def test_float64_stays_float64():
    losses = make_criterion()(*random_step(dtype=torch.float64))
    assert all(loss.dtype == torch.float64 for loss in losses.values())


# Several processes


def test_normaliser_is_the_average_over_processes(monkeypatch):
    """This process has 2 objects, the other one 8: both divide by 5, after one all-reduce."""
    outputs, targets, dn_metas = random_step((2,))
    alone = values(make_criterion()(outputs, targets, dn_metas))
    reductions = []

    def all_reduce(tensor):
        reductions.append(tensor.item())
        tensor += 8

    monkeypatch.setattr(base_module, "is_dist_avail_and_initialized", lambda: True)
    monkeypatch.setattr(base_module, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    losses = values(make_criterion()(outputs, targets, dn_metas))
    assert reductions == [2.0]
    assert losses == pytest.approx({k: v * 2 / 5 for k, v in alone.items()}, rel=1e-6)


def test_normaliser_is_at_least_one(monkeypatch):
    # One object in two processes would be 0.5.
    monkeypatch.setattr(base_module, "is_dist_avail_and_initialized", lambda: True)
    monkeypatch.setattr(base_module, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: None)
    outputs, targets, _ = random_step((1,))
    assert make_criterion().count_boxes(outputs, targets).item() == 1


# Weights


def test_weight_is_found_by_exact_key_then_without_the_layer():
    weights = {"loss_bbox": 5.0, "loss_bbox_dn": 3.0, "loss_bbox_dn_1": 0.5, "loss_bbox_enc": 2.0}
    criterion = make_criterion(weight_dict=weights)
    expected = {
        "loss_bbox": 5.0,
        "loss_bbox_4": 5.0,
        "loss_bbox_dn": 3.0,
        "loss_bbox_dn_0": 3.0,
        "loss_bbox_dn_1": 0.5,
        "loss_bbox_enc": 2.0,
    }
    assert {key: criterion.weight_of(key) for key in expected} == expected


@pytest.mark.parametrize("key", ["loss_giou_enc", "loss_class_dn_3", "loss_mask"])
def test_a_loss_without_a_weight_is_an_error(key):
    criterion = make_criterion(weight_dict={"loss_bbox": 5.0, "loss_class": 1.0})
    with pytest.raises(KeyError, match=f"{key}.*loss_bbox"):
        criterion.weight_of(key)


def test_weighted_multiplies():
    losses = {"loss_bbox_1": torch.tensor(3.0), "loss_class": torch.tensor(4.0)}
    weighted = make_criterion().weighted(losses)
    assert values(weighted) == {"loss_bbox_1": 15.0, "loss_class": 4.0}


def test_state_dict_gains_nothing_but_the_table_moves_with_the_module():
    criterion = make_criterion()
    assert list(criterion.state_dict()) == []
    assert criterion.double().weight_table.dtype == torch.float64


# Bad input


@pytest.mark.parametrize("match_num", [[2, 2, 1], [2, 2, 2, 2, 1]])
def test_match_num_of_the_wrong_length(match_num):
    criterion = make_criterion(match_num=match_num)
    with pytest.raises(ValueError, match=f"has {len(match_num)} entries.*3 layers; expected 4"):
        criterion(*random_step())


@pytest.mark.parametrize("match_num", [[], [2, 0], [2, -1], [2, 1.5], [True, 1], ["2"]])
def test_match_num_that_is_not_positive_ints(match_num):
    with pytest.raises(ValueError, match="match_num"):
        make_criterion(match_num=match_num)


@pytest.mark.parametrize(
    ("name", "value"),
    [("tau", 0), ("tau", -1), ("alpha", 1.1), ("alpha", -0.1), ("gamma", -1), ("num_classes", 0),
     ("tau", float("nan")), ("gamma", float("nan"))],
)  # fmt: skip
def test_parameter_out_of_range(name, value):
    with pytest.raises(ValueError, match=name):
        make_criterion(**{name: value})


def test_number_of_classes_must_be_the_models():
    with pytest.raises(ValueError, match="predicts 5 classes.*`num_classes` = 7"):
        make_criterion(num_classes=7)(*random_step())


def test_label_out_of_range():
    outputs, targets, dn_metas = random_step((2, 3))
    targets[1]["labels"][0] = K
    with pytest.raises(ValueError, match=rf"image 1 .*labels \[{K}\].*model.num_classes"):
        make_criterion()(outputs, targets, dn_metas)


@pytest.mark.parametrize("where", ["output", "aux"])
def test_nan_in_denoising_predictions_alone_is_reported(where):
    outputs, targets, dn_metas = random_step()
    known = dn_metas["output_known_lbs_bboxes"]
    layer = known if where == "output" else known["aux_outputs"][1]
    with torch.no_grad():
        layer["pred_boxes"][1, 3, 2] = float("inf")
    number = 3 if where == "output" else 2
    with pytest.raises(NonFinitePredictionError) as e:
        make_criterion()(outputs, targets, dn_metas)
    expected = (f"denoising queries of decoder layer {number}", 1)
    assert (e.value.layer, e.value.batch_index) == expected


@pytest.mark.parametrize(
    ("origin", "name"),
    [
        (lambda outputs: outputs["enc_outputs"], "encoder proposals"),
        (lambda outputs: outputs["aux_outputs"][1], "decoder layer 2 of 3 (aux_outputs[1])"),
    ],
    ids=["encoder", "decoder"],
)
def test_nan_is_reported_where_it_began(origin, name):
    outputs, targets, dn_metas = random_step()
    with torch.no_grad():
        for layer in (outputs, origin(outputs)):
            layer["pred_logits"][1, 3, 2] = float("nan")
    with pytest.raises(NonFinitePredictionError) as e:
        make_criterion()(outputs, targets, dn_metas)
    assert e.value.layer == name
    assert e.value.batch_index == 1


@pytest.mark.parametrize("layer_spec", [-1, len(MATCH_NUM)])
def test_a_layer_that_match_num_does_not_know(layer_spec):
    outputs, targets, _ = random_step()
    with pytest.raises(ValueError, match=rf"no layer {layer_spec}: `match_num`"):
        make_criterion().get_loss(outputs, targets, 3.0, layer_spec)


def test_one_number_for_match_num():
    with pytest.raises(ValueError, match=r"`match_num` \(=3\) must be a list"):
        make_criterion(match_num=3)


# Without auxiliary losses, and the simpler criterions


def test_without_auxiliary_outputs_the_last_layer_is_the_last():
    outputs, targets, _ = random_step((3,))
    without = {key: outputs[key] for key in ("pred_logits", "pred_boxes", "enc_outputs")}
    losses = make_criterion()(without, targets)
    every = make_criterion()(outputs, targets)
    assert losses.keys() == {k for k in ALL_KEYS if not k.endswith(("_0", "_1"))}
    assert values(losses) == {key: every[key].item() for key in losses}


def test_each_class_adds_its_own_losses():
    outputs, targets, dn_metas = random_step()
    decoder = {k for k in ALL_KEYS if "enc" not in k and "dn" not in k}
    arguments = (K, make_matcher(), {}, MATCH_NUM, 2.0, 0.25, 1.5)
    many_to_one = values(ManyToOneCriterion(*arguments)(outputs, targets))
    two_stage = values(TwoStageCriterion(*arguments)(outputs, targets))
    align = values(AlignDETRCriterion(*arguments)(outputs, targets, dn_metas))
    assert many_to_one.keys() == decoder
    assert two_stage.keys() == {k for k in ALL_KEYS if "dn" not in k}
    assert many_to_one.items() <= two_stage.items() <= align.items()


def test_a_part_that_a_model_has_not_got_adds_nothing():
    outputs, targets, dn_metas = random_step()
    arguments = (K, make_matcher(), {}, MATCH_NUM, 2.0, 0.25, 1.5)
    align = values(AlignDETRCriterion(*arguments)(outputs, targets, dn_metas))
    assert values(HybridCriterion(*arguments)(outputs, targets, dn_metas)) == align
    del outputs["enc_outputs"]
    without_proposals = AlignDETRCriterion(*arguments)(outputs, targets, dn_metas)
    assert values(without_proposals) == {k: v for k, v in align.items() if "enc" not in k}


def test_base_criterion_by_hand():
    # All logits 0: focal loss of a positive 1/4 * 1/4 * ln 2, of a negative 3/4 * 1/4 * ln 2.
    outputs, targets, _ = random_step((2, 1))
    with torch.no_grad():
        outputs["pred_logits"].zero_()
    losses = BaseCriterion(K, make_matcher(), {})(outputs, targets)
    assert losses.keys() == {k for k in ALL_KEYS if "enc" not in k and "dn" not in k}
    positives, entries = 3, 2 * Q * K
    expected = (positives * 0.25 + (entries - positives) * 0.75) * 0.25 * math.log(2) / 3
    assert losses["loss_class"].item() == pytest.approx(expected, rel=1e-5)
    _, indices = BaseCriterion(K, make_matcher(), {}).get_loss(outputs, targets, 3.0, 1)
    assert [gt.tolist() for _, gt in indices] == [[0, 1], [0]]


# Other classification losses


@pytest.mark.parametrize("class_loss", ["ia_bce", "ia_bce_focal", "focal", "varifocal"])
@pytest.mark.parametrize("rank_weights", [True, False])
def test_the_criterion_computes_what_the_loss_module_does(class_loss, rank_weights):
    outputs, targets, _ = random_step((3, 2), dtype=torch.float64)
    options = {"rank_weights": rank_weights, "alpha": 0.4, "gamma": 1.5, "tau": 2.0}
    criterion = make_criterion(class_loss=class_loss, **options)
    losses, indices = criterion.get_loss(outputs, targets, 5.0, 1)
    module = IABCELoss(variant=class_loss, **options)
    expected, weight = module(outputs["pred_logits"], outputs["pred_boxes"], targets, indices, 5.0)
    torch.testing.assert_close(losses["loss_class"], expected)
    pairs = [(outputs["pred_boxes"][i, q], targets[i]["boxes"][gt]) for i, (q, gt) in
             enumerate(indices)]  # fmt: skip
    distance = torch.cat([(src - gt).abs().sum(-1) for src, gt in pairs])
    torch.testing.assert_close(losses["loss_bbox"], (distance * weight).sum() / 5)


def test_focal_with_one_query_per_object_is_the_base_criterion():
    """DINO's losses: the baseline that Align-DETR is compared with."""
    outputs, targets, dn_metas = random_step()
    dino = make_criterion(match_num=[1, 1, 1, 1], class_loss="focal")
    losses = values(dino(outputs, targets, dn_metas))
    base = values(BaseCriterion(K, make_matcher(), {})(outputs, targets))
    assert {key: losses[key] for key in base} == pytest.approx(base, rel=1e-5)


def test_without_rank_weights_all_candidates_count_alike():
    table = make_criterion(match_num=[3, 1, 2, 1], rank_weights=False).weight_table
    assert table.tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 0, 0]]


def test_an_unknown_classification_loss():
    with pytest.raises(ValueError, match=r"'focl'; choose one of \['ia_bce', .*'varifocal'\]"):
        make_criterion(class_loss="focl")
