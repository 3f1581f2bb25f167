"""IA-BCE and rank weights against the numbers of the reference implementation."""

from pathlib import Path

import numpy as np
import pytest
import torch

from aligndetr.losses import IA_BCE_loss, get_local_rank

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "losses.npz", allow_pickle=False)
DTYPES = {"f32": torch.float32, "f64": torch.float64}
RANK_CASES = ("r1", "r2", "r3_ties", "r4_all_empty")
LOSS_CASES = ("k1_w1", "k2", "k3_zero_img", "k2_all_zero")


def get(key, dtype=None):
    tensor = torch.from_numpy(GOLDEN[key])
    return tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor


def indices_of(case):
    num_images = sum(key.startswith(f"{case}/src") for key in GOLDEN.files)
    return [(get(f"{case}/src{i}"), get(f"{case}/tgt{i}")) for i in range(num_images)]


def run_ia_bce(case, dtype):
    """Loss, rank weight, logits and boxes (leaves) of a golden case computed in `dtype`."""
    prefix = f"iabce/{case}"
    indices = indices_of(prefix)
    logits = get(f"{prefix}/logits", dtype).requires_grad_()
    boxes = get(f"{prefix}/boxes", dtype).requires_grad_()
    image = torch.cat([torch.full_like(src, i) for i, (src, _) in enumerate(indices)])
    query = torch.cat([src for src, _ in indices])
    labels = torch.cat([get(f"{prefix}/labels{i}")[tgt] for i, (_, tgt) in enumerate(indices)])
    targets = [get(f"{prefix}/gt_boxes{i}", dtype)[tgt] for i, (_, tgt) in enumerate(indices)]
    w_key = f"{prefix}/w_prime"
    loss, weight = IA_BCE_loss(
        logits,
        (image, query, labels),
        boxes[image, query],
        torch.cat(targets),
        indices,
        float(get(f"{prefix}/avg_factor")),
        alpha=0.25,
        gamma=2.0,
        w_prime=get(w_key, dtype) if w_key in GOLDEN.files else 1,
    )
    return loss, weight, logits, boxes


@pytest.mark.parametrize("case", RANK_CASES)
def test_local_rank(case):
    rank = get_local_rank(get(f"rank/{case}/quality"), indices_of(f"rank/{case}"))
    assert rank.tolist() == GOLDEN[f"rank/{case}/rank"].tolist()


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("case", LOSS_CASES)
def test_ia_bce(case, precision):
    loss, weight, logits, boxes = run_ia_bce(case, DTYPES[precision])
    expected = f"iabce/{case}/{precision}"
    # Not 1e-12: the recorded float64 IoUs differ from those of the recorded boxes by up to 1e-7.
    tight = 5e-6 if precision == "f32" else 1e-8
    assert loss.ndim == 0
    torch.testing.assert_close(loss, get(f"{expected}/loss"), rtol=tight, atol=0)
    golden_weight = get(f"{expected}/rank_weight")
    torch.testing.assert_close(torch.as_tensor(weight), golden_weight, rtol=tight, atol=0)

    loss.backward()
    grad = get(f"{expected}/grad_logits")
    torch.testing.assert_close(logits.grad, grad, rtol=1e-4, atol=1e-7)
    assert boxes.grad is None


@pytest.mark.parametrize("precision", DTYPES)
def test_saturated_logits_match_the_float64_reference(precision):
    """In float32 the reference gives inf and NaN here; what it gives in float64 is right."""
    loss, _, logits, _ = run_ia_bce("extreme", DTYPES[precision])
    truth = get("iabce/extreme/f64/loss").to(loss.dtype)
    torch.testing.assert_close(loss, truth, rtol=5e-6, atol=0)

    loss.backward()
    grad = get("iabce/extreme/f64/grad_logits").to(loss.dtype)
    torch.testing.assert_close(logits.grad, grad, rtol=1e-4, atol=1e-7)
