"""Properties of the matcher: what a user may rely on, whatever the numbers are."""

import itertools
from unittest.mock import patch

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aligndetr.matchers import MatchRequest, MixedMatcher
from aligndetr.utils.errors import NonFinitePredictionError

K = 5


def random_boxes(generator, *shape):
    center = torch.rand(*shape, 2, generator=generator) * 0.6 + 0.2
    size = torch.rand(*shape, 2, generator=generator) * 0.3 + 0.05
    return torch.cat([center, size], dim=-1)


def random_case(counts, num_queries=30, seed=0):
    generator = torch.Generator().manual_seed(seed)
    batch = len(counts)
    outputs = {
        "pred_logits": torch.randn(batch, num_queries, K, generator=generator),
        "pred_boxes": random_boxes(generator, batch, num_queries),
    }
    targets = [
        {
            "labels": torch.randint(K, (n,), generator=generator),
            "boxes": random_boxes(generator, n),
        }
        for n in counts
    ]
    return outputs, targets


def make_matcher(**kwargs):
    return MixedMatcher(**({"cost_class": 2.0, "cost_bbox": 5.0, "cost_giou": 2.0} | kwargs))


def as_lists(indices):
    return [(query.tolist(), gt.tolist()) for query, gt in indices]


def image_of(outputs, i):
    return {key: value[i : i + 1] for key, value in outputs.items()}


@settings(max_examples=40)
@given(
    num_objects=st.integers(0, 45),
    num_queries=st.integers(1, 30),
    gt_copy=st.integers(1, 4),
    seed=st.integers(0, 9),
)
@example(num_objects=3, num_queries=11, gt_copy=4, seed=0)  # one query less than for two each
def test_each_object_gets_k_distinct_queries(num_objects, num_queries, gt_copy, seed):
    outputs, targets = random_case([num_objects], num_queries, seed)
    query_idx, gt_idx = make_matcher()(outputs, targets, gt_copy)[0]
    assert query_idx.unique().numel() == query_idx.numel()  # no query serves two objects
    assert (gt_idx.diff() >= 0).all()
    assert query_idx.dtype == gt_idx.dtype == torch.int64
    if num_objects > num_queries:
        assert gt_idx.unique().numel() == num_queries
    elif num_objects:
        copies = max(1, min(gt_copy, num_queries // (2 * num_objects)))
        assert gt_idx.bincount().tolist() == [copies] * num_objects


def test_a_batch_of_no_images():
    outputs, targets = random_case([])
    assert make_matcher()(outputs, targets) == []


@pytest.mark.parametrize("gt_copy", [1, 2, 3])
def test_an_image_is_matched_alone_or_in_a_batch(gt_copy):
    outputs, targets = random_case([12, 0, 4, 40, 3])
    together = as_lists(make_matcher()(outputs, targets, gt_copy))
    alone = [
        as_lists(make_matcher()(image_of(outputs, i), targets[i : i + 1], gt_copy))[0]
        for i in range(5)
    ]
    assert together == alone


def test_matching_sets_together_or_one_by_one_is_the_same():
    first, targets = random_case([4, 0, 2], num_queries=30, seed=1)
    second, _ = random_case([4, 0, 2], num_queries=17, seed=2)
    third = {key: value.double() for key, value in second.items()}
    binary = [{**t, "labels": torch.zeros_like(t["labels"])} for t in targets]
    moved = [{**t, "boxes": t["boxes"].flip(0)} for t in targets]
    requests = [
        MatchRequest(first, targets, 1),
        MatchRequest(first, moved, 1),
        MatchRequest(first, [{**t, "labels": t["labels"].flip(0)} for t in moved], 1),
        MatchRequest(second, targets, 2),
        MatchRequest(third, binary, 3),
    ]
    together = make_matcher().match(requests)
    for request, indices in zip(requests, together, strict=True):
        alone = make_matcher()(request.outputs, request.targets, request.gt_copy)
        assert as_lists(indices) == as_lists(alone)
    assert make_matcher().match([]) == []


def test_all_sets_share_one_transfer_to_the_host():
    outputs, targets = random_case([4, 0, 2])
    transfers = []
    original = torch.Tensor.cpu

    def counting(tensor):
        transfers.append(tensor.numel())
        return original(tensor)

    forbidden = patch.multiple(
        torch.Tensor, cpu=counting, item=_refuse, tolist=_refuse, __bool__=_refuse, __int__=_refuse
    )
    with forbidden:
        make_matcher().match([MatchRequest(outputs, targets, k) for k in (1, 2, 3)])
    assert len(transfers) == 1


def _refuse(*_):
    raise AssertionError("reads a tensor from the device")


def test_permuting_the_objects_permutes_the_result():
    outputs, targets = random_case([6])
    order = torch.tensor([3, 5, 0, 1, 4, 2])
    permuted = [{key: value[order] for key, value in targets[0].items()}]
    query_idx, gt_idx = make_matcher()(outputs, targets, 2)[0]
    query_p, gt_p = make_matcher()(outputs, permuted, 2)[0]
    pairs = set(zip(query_idx.tolist(), gt_idx.tolist(), strict=True))
    assert pairs == set(zip(query_p.tolist(), order[gt_p].tolist(), strict=True))


def test_assignment_is_the_cheapest_of_all():
    outputs, targets = random_case([3], num_queries=6)
    target = targets[0]
    matcher = make_matcher()
    cost = matcher.cost_matrix(outputs["pred_logits"][0], outputs["pred_boxes"][0],
                               target["labels"], target["boxes"])  # fmt: skip
    query_idx, gt_idx = matcher(outputs, targets)[0]
    best = min(
        sum(cost[q, j].item() for j, q in enumerate(queries))
        for queries in itertools.permutations(range(6), 3)
    )
    assert cost[query_idx, gt_idx].sum().item() == pytest.approx(best, abs=1e-5)


def test_more_objects_than_queries_keeps_the_best_pairs():
    outputs, targets = random_case([8], num_queries=3)
    # Objects 2, 5 and 7 lie exactly on a query each; the others are far from all.
    on_query = torch.tensor([2, 5, 7])
    targets[0]["boxes"][:] = torch.tensor([0.01, 0.01, 0.01, 0.01])
    targets[0]["boxes"][on_query] = outputs["pred_boxes"][0]
    matcher = make_matcher(cost_class=0)
    assert as_lists(matcher(outputs, targets, 2)) == [([0, 1, 2], [2, 5, 7])]


def test_costs_by_hand():
    logits = torch.tensor([[0.0, 2.0]], dtype=torch.float64)
    boxes = torch.tensor([[0.2, 0.5, 0.2, 0.2]], dtype=torch.float64)
    targets = torch.tensor([[0.6, 0.5, 0.2, 0.2]], dtype=torch.float64)
    matcher = make_matcher(cost_class=3.0, cost_bbox=5.0, cost_giou=7.0)
    cost = matcher.cost_matrix(logits, boxes, torch.tensor([0]), targets)
    # p = 1/2: class cost (0.25 - 0.75) * 1/4 * ln 2; L1 0.4; GIoU -1/3 (a gap of 0.2).
    expected = 3 * -0.125 * 0.6931472 + 5 * 0.4 + 7 / 3
    assert cost.item() == pytest.approx(expected, rel=1e-4)

    matcher = make_matcher(cost_class=1.0, cost_bbox=0, cost_giou=0, cost_class_type="ce_cost")
    cost = matcher.cost_matrix(logits, boxes, torch.tensor([1]), targets)
    assert cost.item() == pytest.approx(-torch.tensor(2.0).sigmoid().item(), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_predictions_are_matched_in_float32(dtype):
    outputs, targets = random_case([4, 7])
    half = {key: value.to(dtype) for key, value in outputs.items()}
    upcast = {key: value.float() for key, value in half.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        indices = make_matcher()(half, targets, 2)
    assert as_lists(indices) == as_lists(make_matcher()(upcast, targets, 2))


def test_saturated_logits_can_be_matched():
    outputs, targets = random_case([4])
    outputs["pred_logits"] *= 1e4
    assert len(make_matcher()(outputs, targets, 2)[0][0]) == 8


def test_nothing_is_modified():
    outputs, targets = random_case([4, 0])
    copies = [{key: value.clone() for key, value in d.items()} for d in (outputs, *targets)]
    make_matcher()(outputs, targets, 2)
    for before, after in zip(copies, (outputs, *targets), strict=True):
        assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("key", ["pred_logits", "pred_boxes"])
@pytest.mark.parametrize("image", [0, 1])
def test_non_finite_predictions_are_named(key, value, image):
    # Image 1 has no objects: its predictions enter no cost, and are checked all the same.
    outputs, targets = random_case([3, 0])
    good, _ = random_case([3, 0], seed=1)
    outputs[key][image, 7, 2] = value
    requests = [MatchRequest(good, targets), MatchRequest(outputs, targets, 2, "decoder layer 4")]
    with pytest.raises(NonFinitePredictionError, match=f"decoder layer 4.*image {image} ") as e:
        make_matcher().match(requests)
    assert (e.value.layer, e.value.batch_index) == ("decoder layer 4", image)


def test_predictions_that_overflow_are_not_blamed_on_the_targets():
    outputs, targets = random_case([3])
    outputs["pred_boxes"][0, 7] = 1e30
    with pytest.raises(NonFinitePredictionError):
        make_matcher()(outputs, targets)


@pytest.mark.parametrize("label", [-1, K])
def test_label_outside_the_classes(label):
    outputs, targets = random_case([2, 3])
    targets[1]["labels"][1] = label
    with pytest.raises(ValueError, match=rf"image 1 .*labels \[{label}\].*\[0, {K}\)"):
        make_matcher()(outputs, targets)


def test_target_box_that_is_not_finite():
    outputs, targets = random_case([2, 3])
    targets[1]["boxes"][2, 0] = float("nan")
    with pytest.raises(ValueError, match=r"image 1 .*objects \[2\]"):
        make_matcher()(outputs, targets)


def test_shapes_that_do_not_fit():
    outputs, targets = random_case([2, 3])
    with pytest.raises(ValueError, match="1 targets for a batch of 2"):
        make_matcher()(outputs, targets[:1])
    with pytest.raises(ValueError, match="pred_boxes"):
        make_matcher()({**outputs, "pred_boxes": outputs["pred_boxes"][:, :5]}, targets)
    with pytest.raises(ValueError, match="target 1"):
        make_matcher()(outputs, [targets[0], {**targets[1], "boxes": torch.zeros(2, 4)}])
    with pytest.raises(ValueError, match="gt_copy"):
        make_matcher()(outputs, targets, 0)


def test_constructor_refuses_what_cannot_work():
    with pytest.raises(ValueError, match="all 0"):
        MixedMatcher(0, 0, 0)
    with pytest.raises(ValueError, match="'l2_cost'.*focal_loss_cost"):
        MixedMatcher(cost_class_type="l2_cost")
