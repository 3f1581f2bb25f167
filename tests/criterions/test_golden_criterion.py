"""AlignDETRCriterion against the losses and gradients of the reference implementation."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from aligndetr.criterions import AlignDETRCriterion
from aligndetr.matchers import MixedMatcher

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "criterion.npz", allow_pickle=False)
DTYPES = {"f32": torch.float32, "f64": torch.float64}
CASES = ("base", "one_zero", "no_dn", "all_zero", "batch3")
# In the reference the 11 objects of image 0 lower the number of copies for image 1.
DEVIATING_CASE = "many_then_few"

NUM_CLASSES, AUX = 6, 5
MATCH_NUM = [2, 2, 2, 2, 2, 2, 1]
SETS = {"enc": "_enc", **{f"aux{i}": f"_{i}" for i in range(AUX)}, "final": ""}
LAYER = {name: layer for layer, name in enumerate(SETS)}
DN_SETS = {"dn_final": "_dn", **{f"dn_aux{i}": f"_dn_{i}" for i in range(AUX)}}


def make_criterion():
    matcher = MixedMatcher(2.0, 5.0, 2.0, "focal_loss_cost", alpha=0.25, gamma=2.0)
    return AlignDETRCriterion(NUM_CLASSES, matcher, {}, MATCH_NUM, gamma=2.0, alpha=0.25, tau=1.5)


def load(case, dtype):
    """outputs, targets, dn_metas and the leaves {"final": {"logits", "boxes"}, ...} of a case."""
    leaves, with_dn = {}, f"{case}/in/dn_final/logits" in GOLDEN.files
    for name in (*SETS, *(DN_SETS if with_dn else ())):
        leaves[name] = {
            key: torch.from_numpy(GOLDEN[f"{case}/in/{name}/{key}"]).to(dtype).requires_grad_()
            for key in ("logits", "boxes")
        }

    def as_outputs(name):
        return {"pred_logits": leaves[name]["logits"], "pred_boxes": leaves[name]["boxes"]}

    def layers(prefix):
        aux = [as_outputs(f"{prefix}aux{i}") for i in range(AUX)]
        return {**as_outputs(f"{prefix}final"), "aux_outputs": aux}

    outputs = {**layers(""), "enc_outputs": as_outputs("enc")}
    targets = [
        {
            "labels": torch.from_numpy(GOLDEN[f"{case}/in/labels{i}"]),
            "boxes": torch.from_numpy(GOLDEN[f"{case}/in/gt_boxes{i}"]).to(dtype),
        }
        for i in range(len(GOLDEN[f"{case}/in/counts"]))
    ]
    dn_metas = None
    if with_dn:
        sizes = {key: int(GOLDEN[f"{case}/in/{key}"]) for key in ("dn_num", "single_padding")}
        dn_metas = {**sizes, "output_known_lbs_bboxes": layers("dn_")}
    return outputs, targets, dn_metas, leaves


def golden_losses(case, precision):
    prefix = f"{case}/{precision}/loss/"
    keys = [key for key in GOLDEN.files if key.startswith(prefix)]
    return {key.removeprefix(prefix): float(GOLDEN[key].reshape(())) for key in keys}


def pairs(indices):
    return [set(zip(q.tolist(), gt.tolist(), strict=True)) for q, gt in indices]


def plain_losses(logits, boxes, targets, indices, num_boxes, row):
    """The three losses written down pair by pair, in float64, as the paper states them.

    `row`: weight of each rank, or None for weight 1.
    """
    p = logits.double().sigmoid()
    class_loss = -(p**2) * (1 - p).log()
    positives, l1, giou_loss = [], 0.0, 0.0
    for image, (target, (query_idx, gt_idx)) in enumerate(zip(targets, indices, strict=True)):
        bags = {}
        for q, gt in zip(query_idx.tolist(), gt_idx.tolist(), strict=True):
            box, truth = boxes[image, q].double(), target["boxes"][gt].double()
            iou, giou = plain_iou(box.tolist(), truth.tolist())
            entry = (image, q, int(target["labels"][gt]))
            t = max(p[entry].item() ** 0.25 * iou**0.75, 0.01)
            bags.setdefault(gt, []).append((t, entry, (box - truth).abs().sum(), 1 - giou))
        for bag in bags.values():
            for rank, (t, entry, distance, gap) in enumerate(sorted(bag, key=lambda c: -c[0])):
                w = 1.0 if row is None else row[rank]
                positives.append((entry, t * w))
                l1, giou_loss = l1 + w * float(distance), giou_loss + w * gap
    for entry, t in positives:
        class_loss[entry] = -t * p[entry].log() - (1 - t) * (1 - p[entry]).log()
    return {
        "loss_class": class_loss.sum().item() / num_boxes,
        "loss_bbox": l1 / num_boxes,
        "loss_giou": giou_loss / num_boxes,
    }


def plain_iou(a, b):
    eps = 1e-6
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = (
        (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2) for cx, cy, w, h in (a, b)
    )
    inter = max(0.0, min(ax2, bx2) - max(ax1, bx1)) * max(0.0, min(ay2, by2) - max(ay1, by1))
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - inter
    hull = (max(ax2, bx2) - min(ax1, bx1)) * (max(ay2, by2) - min(ay1, by1))
    iou = inter / (union + eps)
    return iou, iou - (hull - union) / (hull + eps)


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_all_losses(case, precision):
    outputs, targets, dn_metas, _ = load(case, DTYPES[precision])
    losses = make_criterion()(outputs, targets, dn_metas)
    expected = golden_losses(case, precision)
    assert len(expected) == 39
    assert losses.keys() == expected.keys()
    for key, loss in losses.items():
        assert loss.ndim == 0, key
        assert loss.item() == pytest.approx(expected[key], rel=5e-6, abs=0), key


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_all_gradients(case, precision):
    outputs, targets, dn_metas, leaves = load(case, DTYPES[precision])
    sum(make_criterion()(outputs, targets, dn_metas).values()).backward()
    for name, tensors in leaves.items():
        for key, leaf in tensors.items():
            norm = GOLDEN[f"{case}/{precision}/gradnorm/{name}/{key}"].item()
            assert leaf.grad.norm().item() == pytest.approx(norm, rel=1e-4), (name, key)
            if precision == "f32":
                golden = GOLDEN[f"{case}/f32/grad/{name}/{key}"]
                np.testing.assert_allclose(leaf.grad.numpy(), golden, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", SETS)
def test_get_loss_of_one_layer(case, name):
    outputs, targets, _, leaves = load(case, torch.float32)
    num_boxes = max(1, GOLDEN[f"{case}/in/counts"].sum() / 1)
    layer = {"pred_logits": leaves[name]["logits"], "pred_boxes": leaves[name]["boxes"]}
    losses, indices = make_criterion().get_loss(layer, targets, num_boxes, LAYER[name])

    recorded = [
        (GOLDEN[f"{case}/match/{name}/src{i}"], GOLDEN[f"{case}/match/{name}/tgt{i}"])
        for i in range(len(targets))
    ]
    assert pairs(indices) == pairs(recorded)
    expected = golden_losses(case, "f32")
    for key, loss in losses.items():
        assert loss.item() == pytest.approx(expected[key + SETS[name]], rel=5e-6), key


@pytest.mark.parametrize("case", CASES)
def test_compute_dn_loss(case):
    _, targets, dn_metas, _ = load(case, torch.float32)
    num_boxes = max(1.0, float(GOLDEN[f"{case}/in/counts"].sum()))
    losses = make_criterion().compute_dn_loss(dn_metas, targets, AUX, num_boxes)
    expected = {k: v for k, v in golden_losses(case, "f32").items() if "_dn" in k}
    assert {k: v.item() for k, v in losses.items()} == pytest.approx(expected, rel=5e-6)


def test_weight_table():
    golden = torch.from_numpy(GOLDEN["weight_table"])
    torch.testing.assert_close(make_criterion().weight_table, golden, rtol=0, atol=0)


@pytest.mark.parametrize("case", [*CASES, DEVIATING_CASE])
def test_losses_written_down_pair_by_pair(case):
    """Ties the plain formulas to the golden cases, and stands in where the reference deviates."""
    outputs, targets, dn_metas, leaves = load(case, torch.float32)
    criterion = make_criterion()
    losses = criterion(outputs, targets, dn_metas)
    num_boxes = max(1, int(GOLDEN[f"{case}/in/counts"].sum()))
    for name, suffix in SETS.items():
        k = MATCH_NUM[LAYER[name]]
        logits, boxes = leaves[name]["logits"].detach(), leaves[name]["boxes"].detach()
        # Each image by itself: what its batch mates are must not matter.
        indices = [
            criterion.matcher({"pred_logits": logit[None], "pred_boxes": box[None]}, [target], k)[0]
            for logit, box, target in zip(logits, boxes, targets, strict=True)
        ]
        row = [math.exp(-i / 1.5) for i in range(k)]
        expected = plain_losses(logits, boxes, targets, indices, num_boxes, row)
        for key, value in expected.items():
            assert losses[key + suffix].item() == pytest.approx(value, rel=5e-6), key + suffix


@pytest.mark.parametrize("precision", DTYPES)
def test_crowded_image_leaves_the_next_one_its_candidates(precision):
    outputs, targets, dn_metas, leaves = load(DEVIATING_CASE, DTYPES[precision])
    assert [len(t["labels"]) for t in targets] == [11, 2]
    criterion = make_criterion()
    losses, expected = criterion(outputs, targets, dn_metas), golden_losses("many_then_few", "f64")
    # One candidate per object in image 0 either way; image 1 gets its two.
    layer = {"pred_logits": leaves["aux0"]["logits"], "pred_boxes": leaves["aux0"]["boxes"]}
    _, indices = criterion.get_loss(layer, targets, 13.0, 1)
    assert [gt.bincount().tolist() for _, gt in indices] == [[1] * 11, [2, 2]]
    # What needs no second candidate is as in the reference.
    same = [k for k in expected if "_dn" in k or k in ("loss_class", "loss_bbox", "loss_giou")]
    assert len(same) == 21
    for key in same:
        assert losses[key].item() == pytest.approx(expected[key], rel=5e-6), key
