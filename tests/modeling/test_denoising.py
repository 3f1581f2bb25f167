"""Contrastive denoising queries: the reference's numbers, and what a group may see."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.overrides import TorchFunctionMode

from aligndetr.modeling import denoising, make_denoising_queries
from tests.builders import golden, golden_json, random_batch, tensor, tiny_model

CASES = golden_json("cdn_meta")


def targets_of(case: str) -> list[dict]:
    arrays = golden("cdn")
    return [
        {
            "labels": tensor(arrays[f"{case}/labels{i}"], torch.int64),
            "boxes": tensor(arrays[f"{case}/boxes{i}"]),
        }
        for i in range(len(CASES[case]["counts"]))
    ]


def recorded_draws(case: str):
    arrays = golden("cdn")
    names = ("rand_p", "new_label", "rand_sign01", "rand_part")
    return [tensor(arrays[f"{case}/draw/{n}"]) if f"{case}/draw/{n}" in arrays else None
            for n in names]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_recorded_draws_give_the_reference_queries(case, monkeypatch):
    meta, arrays = CASES[case], golden("cdn")
    draws = denoising.NoiseDraws(*recorded_draws(case))
    monkeypatch.setattr(denoising, "draw_noise", lambda *_: draws)
    label_enc = nn.Embedding.from_pretrained(tensor(arrays["label_enc_weight"]))
    targets = targets_of(case)
    before = [{name: value.clone() for name, value in target.items()} for target in targets]
    label, bbox, attn_mask, dn_meta = tiny_model().prepare_for_cdn(
        targets,
        meta["dn_number"],
        meta["label_noise_ratio"],
        meta["box_noise_scale"],
        meta["num_queries"],
        meta["num_classes"],
        meta["hidden_dim"],
        label_enc,
    )
    assert dn_meta == meta["dn_meta"]
    if meta["dn_meta"] is None:
        assert label is bbox is attn_mask is None
        return
    torch.testing.assert_close(label, tensor(arrays[f"{case}/input_query_label"]), rtol=0, atol=0)
    torch.testing.assert_close(
        bbox, tensor(arrays[f"{case}/input_query_bbox"]), rtol=1e-5, atol=1e-6
    )
    assert torch.equal(attn_mask, tensor(arrays[f"{case}/attn_mask"]).bool())
    for target, copy in zip(targets, before, strict=True):
        assert all(torch.equal(target[name], copy[name]) for name in copy)


@pytest.mark.parametrize("case", [c for c in CASES if CASES[c]["dn_meta"]])
def test_draws_are_made_in_the_recorded_order_and_sizes(case, monkeypatch):
    """Whoever replays a recorded stream of torch.rand / torch.randint gets the reference's."""
    meta = CASES[case]
    stream = [draw for draw in recorded_draws(case) if draw is not None]
    left = list(stream)

    def replay(*args, **kwargs):
        return left.pop(0)

    monkeypatch.setattr(torch, "rand", replay)
    monkeypatch.setattr(torch, "randint", replay)
    num_entries = 2 * meta["dn_meta"]["dn_num"] * sum(meta["counts"])
    draws = denoising.draw_noise(
        num_entries, meta["num_classes"], meta["label_noise_ratio"], meta["box_noise_scale"]
    )
    assert not left
    if draws.flip_probability is not None:
        threshold = meta["label_noise_ratio"] / 2
        assert len(draws.new_label) == (draws.flip_probability < threshold).sum()
    if draws.part is not None:
        assert draws.part.shape == draws.sign.shape == (num_entries, 4)


def some_targets(counts, num_classes=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "labels": torch.randint(num_classes, (n,), generator=generator),
            "boxes": torch.rand(n, 4, generator=generator) * 0.3 + 0.3,
        }
        for n in counts
    ]


def queries_of(counts, dn_number=12, label_noise_ratio=0.5, box_noise_scale=1.0, num_queries=7):
    label_enc = nn.Embedding(5, 8)
    return make_denoising_queries(
        some_targets(counts), dn_number, label_noise_ratio, box_noise_scale, num_queries, 5,
        label_enc,
    )  # fmt: skip


@given(
    counts=st.lists(st.integers(0, 6), min_size=1, max_size=3),
    dn_number=st.integers(1, 20),
    num_queries=st.integers(1, 9),
)
@settings(max_examples=40)
def test_groups_see_only_themselves_and_the_matching_queries(counts, dn_number, num_queries):
    queries = queries_of(counts, dn_number, num_queries=num_queries)
    if max(counts) == 0:
        assert queries is None
        return
    assert queries.num_groups == max(1, dn_number // max(counts))
    assert queries.group_size == 2 * max(counts)
    size, total = queries.group_size, queries.group_size * queries.num_groups
    blocked = queries.attn_mask
    assert blocked.shape == (total + num_queries,) * 2
    for row in range(total):
        own = range(row // size * size, (row // size + 1) * size)
        for column in range(total):
            assert blocked[row, column] == (column not in own)
    assert not blocked[:total, total:].any()
    assert blocked[total:, :total].all()
    assert not blocked[total:, total:].any()


def test_noise_worked_by_hand(monkeypatch):
    """A box of half-size 0.1: a positive moves by part * 0.1, a negative by (part + 1) * 0.1."""
    part = torch.tensor([0.5, 0.0, 0.5, 0.0]).repeat(2, 1)
    sign = torch.tensor([1, 1, 1, 1])
    draws = denoising.NoiseDraws(None, None, sign.repeat(2, 1), part)
    monkeypatch.setattr(denoising, "draw_noise", lambda *_: draws)
    targets = [{"labels": torch.tensor([3]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])}]
    queries = make_denoising_queries(targets, 1, 0.0, 1.0, 7, 5, nn.Embedding(5, 8))
    positive, negative = queries.boxes[0].sigmoid()
    torch.testing.assert_close(positive, torch.tensor([0.55, 0.5, 0.2, 0.2]))
    torch.testing.assert_close(negative, torch.tensor([0.65, 0.6, 0.2, 0.2]))


def test_positives_keep_their_corners_within_a_half_size():
    counts = [3, 1]
    queries = queries_of(counts, dn_number=30, label_noise_ratio=0.0)
    boxes = queries.boxes.sigmoid().view(2, queries.num_groups, 2, 3, 4)
    for image, target in enumerate(some_targets(counts)):
        centre, size = target["boxes"].split(2, -1)
        positives = boxes[image, :, 0, : counts[image]]
        corner = positives[..., :2] - positives[..., 2:] / 2
        moved = (corner - (centre - size / 2)).abs() / (size / 2)
        assert (moved <= 1 + 1e-2).all()  # 1e-3 is where inverse_sigmoid clamps
        assert moved.std() > 0.2


def test_padding_slots_are_zero():
    queries = queries_of([3, 1], dn_number=6)
    content = queries.content.view(2, queries.num_groups, 2, 3, 8)
    assert (content[1, :, :, 1:] == 0).all()
    assert (content[0] != 0).any(-1).all()


def test_label_noise_flips_half_of_its_ratio():
    torch.manual_seed(0)
    draws = denoising.draw_noise(20_000, 1000, label_noise_ratio=0.5, box_noise_scale=0)
    assert len(draws.new_label) / 20_000 == pytest.approx(0.25, abs=0.01)
    assert draws.sign is draws.part is None


def test_noise_is_off_at_zero():
    queries = queries_of([2], label_noise_ratio=0.0, box_noise_scale=0.0)
    boxes = queries.boxes.sigmoid().view(-1, 2, 4)
    expected = some_targets([2])[0]["boxes"].expand_as(boxes)
    torch.testing.assert_close(boxes, expected, rtol=1e-5, atol=1e-6)


# Capped


def crowd(counts):
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "labels": torch.arange(n) % 5,
            "boxes": torch.rand(n, 4, generator=generator) * 0.3 + 0.3,
        }
        for n in counts
    ]


def make(counts, dn_number, max_queries, noise=0.0):
    label_enc = nn.Embedding(5, 8)
    return make_denoising_queries(
        crowd(counts), dn_number, 0.0, noise, 11, 5, label_enc, max_queries
    )


@pytest.mark.parametrize(
    ("most", "groups", "size"),
    [(None, 10, 20), (200, 10, 20), (199, 9, 20), (45, 2, 20), (20, 1, 20), (19, 1, 18), (2, 1, 2)],
)
def test_groups_become_fewer_and_then_smaller(most, groups, size):
    """10 objects and dn_number 100: 10 groups of 20 as published."""
    queries = make([10, 3], 100, most)
    assert (queries.num_groups, queries.group_size) == (groups, size)
    assert queries.content.shape[1] == groups * size <= (most or 1000)
    assert queries.attn_mask.shape == (groups * size + 11,) * 2


def test_250_objects_take_no_more_memory_than_allowed():
    assert make([250], 100, None).content.shape[1] == 500
    queries = make([250, 4], 100, 200)
    assert queries.content.shape[1] == 200
    chosen, all_of_few = queries.gt_indices
    assert len(chosen.unique()) == 100
    assert chosen.tolist() == sorted(chosen.tolist())
    assert all_of_few.tolist() == [0, 1, 2, 3]
    assert make([250], 100, 200).gt_indices[0].tolist() != chosen.tolist()  # drawn anew


def test_queries_are_those_of_the_chosen_objects():
    queries = make([30], 5, 20)  # no noise: a query is its object
    target = crowd([30])[0]
    (chosen,) = queries.gt_indices
    boxes = queries.boxes[0, :10].sigmoid()
    torch.testing.assert_close(boxes, target["boxes"][chosen], rtol=1e-4, atol=1e-4)


def test_with_room_enough_nothing_changes():
    torch.manual_seed(3)
    free = make([7, 2], 50, None, noise=1.0)
    torch.manual_seed(3)
    capped = make([7, 2], 50, 1000, noise=1.0)
    assert torch.equal(free.boxes, capped.boxes)
    assert capped.gt_indices is None


@pytest.mark.parametrize("max_queries", [None, 20])
def test_no_copy_to_the_device_is_waited_for(max_queries):
    """On the device "meta": a copy there from the CPU stands for one to a GPU."""

    class Copies(TorchFunctionMode):
        def __init__(self):
            super().__init__()
            self.waited = []

        def __torch_function__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if func is torch.Tensor.to and args[0].device != out.device:
                self.waited.append(not (kwargs or {}).get("non_blocking", False))
            return out

    targets = [{name: t.to("meta") for name, t in x.items()} for x in crowd([30, 12])]
    with Copies() as copies:
        make_denoising_queries(
            targets, 5, 0.5, 1.0, 11, 5, nn.Embedding(5, 8, device="meta"), max_queries
        )
    assert len(copies.waited) >= 5
    assert not any(copies.waited)


def test_a_model_learns_from_the_chosen_objects_alone():
    """Denoising without noise and with perfect boxes: every matched pair has no box error."""
    model = tiny_model(dn_number=5, dn_max_queries=8)
    targets = crowd([9, 3])
    _, bbox, _, meta = model.prepare_for_cdn(
        targets, 5, 0.0, 0.0, 20, 5, 32, model.label_enc, max_queries=8
    )
    perfect = {"pred_logits": torch.zeros(2, 8, 5), "pred_boxes": bbox.sigmoid()}
    meta["output_known_lbs_bboxes"] = perfect
    losses = model.criterion.compute_dn_loss(meta, targets, 0, 12.0)
    assert losses["loss_bbox_dn"].item() == pytest.approx(0, abs=1e-3)
    model.train()(random_batch([(64, 96)] * 2, [9, 3]))


def test_the_cap_must_hold_a_pair():
    with pytest.raises(ValueError, match=r"dn_max_queries` \(=1\) must be at least 2"):
        tiny_model(dn_max_queries=1)
