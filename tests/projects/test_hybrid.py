"""H-DETR's hybrid branch: it teaches, and neither it nor its queries are seen by the others."""

import pytest
import torch
from torch import nn

from aligndetr.criterions import HybridCriterion
from aligndetr.matchers import MixedMatcher
from aligndetr.modeling import with_hybrid_queries
from tests.builders import (
    golden_tiny_batch,
    losses_of_training,
    queries_per_object,
    random_batch,
    tiny_model,
)

WEIGHTS = {"loss_class": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0}
HYBRID = 12


def hybrid_model(num_hybrid=HYBRID, hybrid_match_num=3, **overrides):
    """The tiny model with the branch, and its other weights the same for the same seed."""
    model = tiny_model(**overrides)
    model.criterion = hybrid_criterion(hybrid_match_num)
    transformer = model.transformer
    transformer.num_hybrid_queries = num_hybrid
    transformer.hybrid_embed = nn.Embedding(num_hybrid, model.embed_dim)
    return model


def hybrid_criterion(hybrid_match_num=3, **changes):
    matcher = MixedMatcher(cost_class=2.0, cost_bbox=5.0, cost_giou=2.0)
    return HybridCriterion(
        5, matcher, WEIGHTS | {f"{n}_dn": w for n, w in WEIGHTS.items()}, [2, 2, 2, 1], 2.0, 0.25,
        1.5, hybrid_match_num=hybrid_match_num, **changes,
    )  # fmt: skip


def pair(seed=0, **overrides):
    """Without and with the branch, of equal weights."""
    torch.manual_seed(seed)
    plain = tiny_model(**overrides)
    hybrid = hybrid_model(**overrides)
    missing, unexpected = hybrid.load_state_dict(plain.state_dict(), strict=False)
    assert (missing, unexpected) == (["transformer.hybrid_embed.weight"], [])
    return plain, hybrid


def test_inference_is_the_same_to_every_bit():
    plain, hybrid = pair()
    batch = golden_tiny_batch()
    with torch.no_grad():
        expected, found = plain.eval()(batch), hybrid.eval()(batch)
    for one, other in zip(expected, found, strict=True):
        for name in ("scores", "pred_classes"):
            assert torch.equal(one["instances"].get(name), other["instances"].get(name))
        assert torch.equal(one["instances"].pred_boxes.tensor, other["instances"].pred_boxes.tensor)


def test_the_other_losses_are_those_without_the_branch():
    plain, hybrid = pair()
    batch = golden_tiny_batch()
    expected, found = plain.train()(batch), hybrid.train()(batch)
    for name, loss in expected.items():
        torch.testing.assert_close(found[name], loss, msg=lambda m, name=name: f"{name}: {m}")
    added = {f"{n}_hybrid{layer}" for n in WEIGHTS for layer in ("", "_0", "_1")}
    assert found.keys() - expected.keys() == added
    assert all(found[name] > 0 for name in added)


def test_no_query_of_another_branch_sees_a_hybrid_query():
    """Poison one branch's content: the other's predictions do not move."""
    _, hybrid = pair(dn_number=10)
    batch, seen = golden_tiny_batch(), []
    hybrid.criterion.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    hybrid.train()(batch)
    with torch.no_grad():
        hybrid.transformer.hybrid_embed.weight.add_(100)
    hybrid.train()(batch)
    before, after = seen
    assert torch.equal(before["pred_logits"], after["pred_logits"])
    assert not torch.equal(
        before["hybrid_outputs"]["pred_logits"], after["hybrid_outputs"]["pred_logits"]
    )
    seen.clear()
    with torch.no_grad():
        hybrid.transformer.tgt_embed.weight.add_(100)
        hybrid.label_enc.weight.add_(100)
    hybrid.train()(batch)
    assert torch.equal(
        seen[0]["hybrid_outputs"]["pred_logits"], after["hybrid_outputs"]["pred_logits"]
    )
    assert not torch.equal(seen[0]["pred_logits"], after["pred_logits"])


def test_the_mask_by_hand():
    others = torch.tensor([[False, True], [False, False]])
    expected = [[0, 1, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]
    assert with_hybrid_queries(others, 2, 2, torch.device("cpu")).int().tolist() == expected
    expected[0][1] = 0
    assert with_hybrid_queries(None, 2, 2, torch.device("cpu")).int().tolist() == expected


def test_they_start_from_the_proposals_after_the_best():
    _, hybrid = pair(dn_number=0)
    seen = {}
    hybrid.transformer.decoder.register_forward_pre_hook(
        lambda _m, args, kwargs: seen.update(kwargs), with_kwargs=True
    )
    hybrid.train()(golden_tiny_batch())
    assert seen["reference_points"].shape == (2, 20 + HYBRID, 4)
    learnt = torch.cat(
        [hybrid.transformer.tgt_embed.weight, hybrid.transformer.hybrid_embed.weight]
    )
    assert torch.equal(seen["query"][1], learnt)


def test_each_object_gets_so_many_of_them_in_every_layer():
    hybrid = hybrid_model(num_hybrid=30, hybrid_match_num=4)
    with queries_per_object(hybrid.criterion.matcher) as found:
        hybrid.train()(random_batch([(64, 96)] * 2, [3, 1]))
    for layer in (1, 2, 3):
        assert found[f"hybrid queries of decoder layer {layer}"] == [[4, 4, 4], [4]]
    assert found["last decoder layer"] == [[1, 1, 1], [1]]


def test_their_candidates_have_rank_weights_of_their_own():
    table = hybrid_criterion(4).weight_table
    torch.testing.assert_close(table[-1], torch.exp(-torch.arange(4) / 1.5))
    torch.testing.assert_close(table[:-1, :2], hybrid_criterion(1).weight_table[:-1])


def test_training_with_it_lowers_the_loss():
    torch.manual_seed(0)
    first, *_, last = losses_of_training(hybrid_model(), lr=1e-3, steps=30)
    assert sum(last.values()) < 0.8 * sum(first.values())
    assert sum_of_branch(last) < 0.85 * sum_of_branch(first)


def sum_of_branch(losses):
    return sum(loss for name, loss in losses.items() if "_hybrid" in name)


@pytest.mark.parametrize("size", [(32, 48), (32, 32)])  # 33 and 22 tokens: 13 and 2 are left over
@pytest.mark.parametrize("count", [0, 2])
def test_fewer_tokens_than_queries_and_no_objects(size, count):
    model = hybrid_model(num_hybrid=50)
    losses = model.train()(random_batch([size], [count]))
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []


def test_no_token_left_for_it():
    model = hybrid_model(num_queries=50)  # of 33 tokens
    losses = model.train()(random_batch([(32, 48)], [2]))
    sum(losses.values()).backward()
    assert all(value == 0 for name, value in losses.items() if "_hybrid" in name)
    assert model.transformer.hybrid_embed.weight.grad is not None


def test_weights_are_those_of_the_other_queries_unless_given():
    criterion = hybrid_criterion()
    assert criterion.weight_of("loss_bbox_hybrid_1") == criterion.weight_of("loss_bbox") == 5
    criterion.weight_dict["loss_bbox_hybrid"] = 0.5
    assert criterion.weight_of("loss_bbox_hybrid_1") == criterion.weight_of("loss_bbox_hybrid")
    assert criterion.weight_of("loss_bbox_hybrid") == 0.5
    with pytest.raises(KeyError, match="loss_mask"):
        criterion.weight_of("loss_mask_hybrid")


def test_branch_and_criterion_come_together():
    parts = {"criterion": hybrid_criterion()}
    with pytest.raises(ValueError, match="num_hybrid_queries` is 0, but.*HybridCriterion"):
        tiny_model(**parts)
    transformer = tiny_model().transformer
    transformer.num_hybrid_queries = 5
    with pytest.raises(ValueError, match="num_hybrid_queries` is 5, but.*AlignDETRCriterion"):
        tiny_model(transformer=transformer)
    with pytest.raises(ValueError, match="hybrid_match_num"):
        hybrid_criterion(0)
