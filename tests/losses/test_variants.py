"""Each classification loss worked by hand, in its limits, and against torchvision's focal loss."""

import math
import subprocess
import sys

import pytest
import torch
from torchvision.ops import sigmoid_focal_loss

from aligndetr.losses import VARIANTS, IABCELoss, get_local_rank

BOX = [0.5, 0.5, 0.4, 0.2]
HALF = [0.4, 0.5, 0.2, 0.2]  # the left half of BOX
IOU_HALF = 0.04 / (0.08 + 1e-6)
P = 0.8
LOGIT = math.log(P / (1 - P))
every_variant = pytest.mark.parametrize("variant", VARIANTS)


def one_image(logits, boxes, queries, objects=None):
    """Arguments of IABCELoss for one image whose objects are BOX and of class 0."""
    objects = objects or [0] * len(queries)
    count = max(objects, default=-1) + 1
    targets = [
        {
            "labels": torch.zeros(count, dtype=torch.long),
            "boxes": torch.tensor(BOX, dtype=torch.float64).expand(count, 4),
        }
    ]
    indices = [(torch.tensor(queries, dtype=torch.long), torch.tensor(objects, dtype=torch.long))]
    as_double = [torch.tensor([x], dtype=torch.float64) for x in (logits, boxes)]
    return *as_double, targets, indices, 1.0


def random_layer(seed=0, num_queries=11, num_classes=3, counts=(2, 0, 3), k=2):
    """A batch with k queries per object, in float64."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    logits = uniform(len(counts), num_queries, num_classes) * 6 - 3
    targets, indices = [], []
    for count in counts:
        labels = torch.randint(num_classes, (count,), generator=generator)
        targets.append({"labels": labels, "boxes": uniform(count, 4) * 0.4 + 0.2})
        queries = torch.randperm(num_queries, generator=generator)[: k * count]
        indices.append((queries, torch.arange(count).repeat_interleave(k)))
    boxes = uniform(len(counts), num_queries, 4) * 0.4 + 0.2
    return logits, boxes, targets, indices, 5.0


def bce(p, t):
    return -t * math.log(p) - (1 - t) * math.log(1 - p)


def test_one_matched_entry_by_hand():
    t = P**0.25 * IOU_HALF**0.75
    expected = {
        "ia_bce": bce(P, t),
        "ia_bce_focal": abs(t - P) ** 2 * bce(P, t),
        "focal": 0.25 * (1 - P) ** 2 * -math.log(P),
        "varifocal": IOU_HALF * bce(P, IOU_HALF),
    }
    for variant, value in expected.items():
        loss, weight = IABCELoss(variant=variant)(*one_image([[LOGIT]], [HALF], [0]))
        assert loss.item() == pytest.approx(value, rel=1e-9), variant
        assert weight.tolist() == [1]
    assert expected.keys() == VARIANTS.keys()


def test_an_entry_without_an_object_by_hand():
    expected = P**2 * -math.log(1 - P)
    for variant, share in (
        ("ia_bce", 1), ("ia_bce_focal", 1), ("focal", 0.75), ("varifocal", 0.75)
    ):  # fmt: skip
        loss, weight = IABCELoss(variant=variant)(*one_image([[LOGIT]], [HALF], []))
        assert loss.item() == pytest.approx(share * expected, rel=1e-9), variant
        assert weight.shape == (0,)


def test_the_rank_scales_targets_and_the_whole_focal_term():
    # Two candidates of one object with equal boxes: the more confident one has rank 0.
    arguments = one_image([[LOGIT], [0.0]], [HALF, HALF], [0, 1])
    w = math.exp(-1 / 1.5)
    t0, t1 = P**0.25 * IOU_HALF**0.75, w * 0.5**0.25 * IOU_HALF**0.75
    u0, u1 = IOU_HALF, w * IOU_HALF
    expected = {
        "ia_bce": bce(P, t0) + bce(0.5, t1),
        "ia_bce_focal": (P - t0) ** 2 * bce(P, t0) + (0.5 - t1) ** 2 * bce(0.5, t1),
        "focal": 0.25 * (-((1 - P) ** 2) * math.log(P) - w * 0.25 * math.log(0.5)),
        # Their qualities, the IoUs, are equal: the first in order ranks first.
        "varifocal": u0 * bce(P, u0) + u1 * bce(0.5, u1),
    }
    for variant, value in expected.items():
        loss, weight = IABCELoss(variant=variant)(*arguments)
        assert loss.item() == pytest.approx(value, rel=1e-7), variant  # w is float32
        assert weight.tolist() == pytest.approx([1, w])


def test_focal_is_the_focal_loss_of_torchvision():
    logits, boxes, targets, indices, num_boxes = random_layer(k=1)
    one_hot = torch.zeros_like(logits)
    for i, (query, gt) in enumerate(indices):
        one_hot[i, query, targets[i]["labels"][gt]] = 1
    expected = sigmoid_focal_loss(logits, one_hot, alpha=0.25, gamma=2, reduction="sum")
    loss, _ = IABCELoss(variant="focal")(logits, boxes, targets, indices, num_boxes)
    torch.testing.assert_close(loss, expected / num_boxes)


def test_varifocal_is_ia_bce_of_alpha_0_but_for_its_weights():
    # With gamma 0 all entries count alike: what is left to differ are the factors t and 0.75.
    arguments = one_image([[LOGIT]], [HALF], [0])
    plain, _ = IABCELoss(alpha=0.0, gamma=0.0)(*arguments)
    varifocal, _ = IABCELoss(gamma=0.0, variant="varifocal")(*arguments)
    assert varifocal.item() == pytest.approx(IOU_HALF * plain.item(), rel=1e-9)


@every_variant
def test_tau_towards_0_leaves_one_candidate_per_object(variant):
    """The others' target is 0, or, with the focal loss, they cost nothing."""
    arguments = random_layer(k=3)
    _, weight = IABCELoss(tau=1e-6, variant=variant)(*arguments)
    logits, boxes, targets, indices, num_boxes = arguments
    assert sorted(set(weight.tolist())) == [0, 1]
    assert weight.sum() == sum(len(t["labels"]) for t in targets)
    loss, _ = IABCELoss(tau=1e-6, variant=variant)(*arguments)
    # One candidate per object alone, and what the others then cost in place of a negative.
    best = [w.bool() for w in weight.split([len(query) for query, _ in indices])]
    kept = [(query[b], gt[b]) for (query, gt), b in zip(indices, best, strict=True)]
    alone, _ = IABCELoss(variant=variant)(logits, boxes, targets, kept, num_boxes)
    share = VARIANTS[variant].negative_weight
    for i, ((query, gt), b) in enumerate(zip(indices, best, strict=True)):
        p = logits[i, query[~b], targets[i]["labels"][gt[~b]]].sigmoid()
        of_target_0 = -(1 - p).log()
        cost = {"ia_bce": of_target_0, "ia_bce_focal": p**2 * of_target_0}.get(variant, 0 * p)
        alone += (cost - share * p**2 * of_target_0).sum() / num_boxes
    torch.testing.assert_close(loss, alone)


@every_variant
def test_tau_towards_infinity_is_no_rank_weight_at_all(variant):
    arguments = random_layer(k=3)
    without, weight = IABCELoss(variant=variant, rank_weights=False)(*arguments)
    infinite, _ = IABCELoss(variant=variant, tau=math.inf)(*arguments)
    large, _ = IABCELoss(variant=variant, tau=1e9)(*arguments)
    assert (weight == 1).all()
    assert without == infinite
    torch.testing.assert_close(large, without)


def test_weights_follow_the_rank_within_each_object():
    logits, boxes, targets, indices, num_boxes = random_layer(k=3)
    _, weight = IABCELoss(alpha=1.0, tau=2.0)(logits, boxes, targets, indices, num_boxes)
    score = torch.cat(
        [
            logits[i, query, targets[i]["labels"][gt]].sigmoid()
            for i, (query, gt) in enumerate(indices)
        ]
    )
    rank = get_local_rank(score.clamp(min=0.01), indices)
    torch.testing.assert_close(weight, torch.exp(-rank / 2.0).double())


@every_variant
def test_gradient_is_that_of_the_formula_with_a_constant_quality(variant):
    arguments = list(random_layer(k=2))
    logits = arguments[0].requires_grad_()
    boxes = arguments[1].requires_grad_()
    loss, _ = IABCELoss(variant=variant)(*arguments)
    loss.backward()
    assert boxes.grad is None
    # A step against the gradient, with the qualities of before: take them from a fixed IoU.
    step = 1e-6
    sure = IABCELoss(alpha=0.0, variant=variant)  # no score in the quality, nor in the ranks
    sure_loss, _ = sure(*arguments)
    (grad,) = torch.autograd.grad(sure_loss, logits)
    after, _ = sure(logits.detach() - step * grad, *arguments[1:])
    assert (sure_loss - after).item() / step == pytest.approx(grad.square().sum().item(), rel=1e-4)


@every_variant
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_saturated_logits_give_finite_losses_and_gradients(variant, gamma, dtype):
    logits = torch.tensor([[[-6e4], [-20.0], [0.0], [20.0], [6e4], [6e4]]], dtype=dtype)
    logits.requires_grad_()
    boxes = torch.tensor([BOX] * 6)[None]
    targets = [{"labels": torch.zeros(5, dtype=torch.long), "boxes": torch.tensor([BOX] * 5)}]
    indices = [(torch.arange(5), torch.arange(5))]
    loss, _ = IABCELoss(gamma=gamma, variant=variant)(logits, boxes, targets, indices, 5.0)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


@every_variant
def test_a_batch_without_objects(variant):
    logits, boxes, targets, indices, _ = random_layer(counts=(0, 0))
    loss, weight = IABCELoss(variant=variant)(logits.requires_grad_(), boxes, targets, indices, 1)
    loss.backward()
    assert weight.shape == (0,)
    assert (logits.grad > 0).all()


@pytest.mark.parametrize(
    ("argument", "value"),
    [("alpha", 1.1), ("gamma", -1), ("tau", 0), ("tau", math.nan), ("variant", "focl")],
)
def test_arguments_out_of_range(argument, value):
    with pytest.raises(ValueError, match=rf"{'focl' if argument == 'variant' else argument}"):
        IABCELoss(**{argument: value})


def test_needs_torch_alone():
    code = (
        "import sys; from aligndetr.losses import IABCELoss; "
        "print(sorted({'detectron2', 'torchvision', 'scipy', 'omegaconf', 'projects'}"
        " & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_printed_model_shows_which_loss_it_has():
    text = repr(IABCELoss(alpha=0.4, gamma=1.5, tau=2.0, variant="varifocal"))
    assert text == "IABCELoss(varifocal, alpha=0.4, gamma=1.5, tau=2.0)"
