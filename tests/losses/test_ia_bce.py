"""IA-BCE worked by hand, and at the ends of the number range."""

import math

import pytest
import torch

from aligndetr.losses import IA_BCE_loss, negative_loss

BOX = torch.tensor([0.5, 0.5, 0.4, 0.2])
ONE_PAIR = [(torch.tensor([0]), torch.tensor([0]))]


def one_positive(logits, iou_box=BOX, alpha=0.25, gamma=2.0, w_prime=1):
    """Loss for one image, one object of class 0 matched to query 0, avg_factor 1."""
    position = tuple(torch.tensor([0]) for _ in range(3))
    return IA_BCE_loss(
        logits, position, iou_box[None], BOX[None], ONE_PAIR, 1.0, alpha, gamma, w_prime
    )[0]


def no_positive(logits, gamma=2.0):
    empty = torch.zeros(0, dtype=torch.long)
    none = torch.zeros(0, 4)
    indices = [(empty, empty)] * len(logits)
    return IA_BCE_loss(logits, (empty, empty, empty), none, none, indices, 1.0, 0.25, gamma)[0]


def test_at_probability_one_half():
    # A positive costs ln 2 whatever its target, a negative costs (1/2)^2 ln 2.
    loss = one_positive(torch.zeros(1, 1, 2))
    torch.testing.assert_close(loss, torch.tensor(1.25 * math.log(2)))


def test_positive_is_drawn_to_its_quality():
    # Half the box: IoU 1/2 but for the epsilon. p = 0.8, t = 0.8^0.25 * 0.5^0.75.
    half = torch.tensor([0.4, 0.5, 0.2, 0.2])
    logit = math.log(0.8 / 0.2)
    t = 0.8**0.25 * (0.04 / (0.08 + 1e-6)) ** 0.75
    expected = -t * math.log(0.8) - (1 - t) * math.log(0.2)
    loss = one_positive(torch.full((1, 1, 1), logit), half)
    torch.testing.assert_close(loss, torch.tensor(expected))


def test_rank_weight_scales_the_target():
    position = (torch.zeros(2, dtype=torch.long), torch.tensor([0, 1]), torch.tensor([0, 0]))
    indices = [(torch.tensor([0, 1]), torch.tensor([0, 0]))]
    logits = torch.tensor([[[0.0], [2.0]]], dtype=torch.float64)
    w_prime = torch.tensor([1.0, 0.25], dtype=torch.float64)
    boxes = BOX.double().expand(2, 4)
    loss, weight = IA_BCE_loss(logits, position, boxes, boxes, indices, 3.0, 0.5, 2.0, w_prime)
    assert weight.tolist() == [0.25, 1.0]  # the second query is the more confident one

    iou = 0.08 / (0.08 + 1e-6)
    cost = 0.0
    for logit, w in ((0.0, 0.25), (2.0, 1.0)):
        p = 1 / (1 + math.exp(-logit))
        t = w * math.sqrt(p * iou)
        cost -= t * math.log(p) + (1 - t) * math.log(1 - p)
    assert loss.item() == pytest.approx(cost / 3, rel=1e-12)


def test_quality_has_a_floor():
    far_away = torch.tensor([0.1, 0.1, 0.05, 0.05])  # IoU 0
    loss = one_positive(torch.zeros(1, 1, 1, dtype=torch.float64) - 3, far_away)
    p = 1 / (1 + math.exp(3))
    expected = -0.01 * math.log(p) - 0.99 * math.log(1 - p)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_gradient_flows_through_the_weight_of_negatives_but_not_through_the_quality():
    logit = torch.full((1, 1, 2), 0.7, dtype=torch.float64, requires_grad=True)
    one_positive(logit).backward()
    p = 1 / (1 + math.exp(-0.7))
    t = p**0.25 * (0.08 / (0.08 + 1e-6)) ** 0.75
    # d/dx of -t log p - (1 - t) log(1 - p), t constant; of p^2 * -log(1 - p) with p^2 varying.
    positive = p - t
    negative = p**3 - 2 * p**2 * (1 - p) * math.log(1 - p)
    torch.testing.assert_close(
        logit.grad[0, 0], torch.tensor([positive, negative], dtype=torch.float64)
    )


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_saturated_logits_give_finite_losses_and_gradients(dtype, gamma):
    logits = torch.tensor([[[-6e4, -150.0], [-20.0, 0.0], [20.0, 150.0], [6e4, 6e4]]])
    logits = logits.to(dtype).requires_grad_()
    loss = no_positive(logits, gamma) + one_positive(logits, gamma=gamma)
    loss.backward()
    assert loss.isfinite()
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert logits.grad.dtype == dtype
    assert logits.grad.isfinite().all()


def test_saturated_wrong_answers_cost_their_logit():
    assert no_positive(torch.full((1, 1, 1), 500.0)).item() == pytest.approx(500)
    # Quality is at its floor (p = 0): 0.01 * 500.
    assert one_positive(torch.full((1, 1, 1), -500.0)).item() == pytest.approx(5)


def test_a_batch_without_objects_still_trains_all_entries():
    logits = torch.randn(2, 5, 3, generator=torch.manual_seed(0)).requires_grad_()
    loss = no_positive(logits)
    p = logits.detach().sigmoid()
    torch.testing.assert_close(loss.detach(), (-(p**2) * (1 - p).log()).sum())
    loss.backward()
    assert (logits.grad != 0).all()


def test_more_candidates_than_weights_is_an_error():
    indices = [(torch.arange(3), torch.zeros(3, dtype=torch.long))]
    zeros = torch.zeros(3, dtype=torch.long)
    boxes = BOX.expand(3, 4)
    with pytest.raises(IndexError):
        IA_BCE_loss(
            torch.zeros(1, 3, 1), (zeros, torch.arange(3), zeros), boxes, boxes, indices,
            1.0, 0.25, 2.0, torch.ones(2),
        )  # fmt: skip


def test_float16_predictions_are_computed_in_float32():
    logits = torch.randn(1, 7, 5, generator=torch.manual_seed(1)).half()
    torch.testing.assert_close(one_positive(logits), one_positive(logits.float()), rtol=0, atol=0)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.5])
def test_gradient_of_the_negatives(gamma):
    logits = torch.tensor([-60.0, -20.0, -3.0, -0.1, 0.4, 5.0, 38.0, 41.0, 60.0]).double()
    logits = logits.view(1, 3, 3).requires_grad_()
    position = tuple(torch.tensor([i]) for i in (0, 1, 2))
    assert torch.autograd.gradcheck(lambda x: negative_loss(x, position, gamma), logits)
    p = logits.detach().sigmoid()
    expected = -(p**gamma) * torch.nn.functional.logsigmoid(-logits.detach())
    expected[position] = 0
    torch.testing.assert_close(negative_loss(logits, position, gamma), expected.sum())


def test_one_weight_for_all_ranks_and_an_average_factor_may_be_tensors():
    logits = torch.tensor([[[0.3, -0.2]]])
    position = tuple(torch.tensor([0]) for _ in range(3))
    arguments = (logits, position, BOX[None], BOX[None], ONE_PAIR)
    loss, _ = IA_BCE_loss(*arguments, torch.tensor([3.0]), 0.25, 2.0, torch.tensor(0.5))
    expected, _ = IA_BCE_loss(*arguments, 3.0, 0.25, 2.0, 0.5)
    assert loss.shape == ()
    torch.testing.assert_close(loss, expected)
