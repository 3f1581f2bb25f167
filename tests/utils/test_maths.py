import math

import torch

from aligndetr.utils import get_world_size, inverse_sigmoid, is_dist_avail_and_initialized
from tests.builders import golden, tensor


def test_inverse_sigmoid_equals_the_reference_in_value_and_gradient():
    numbers = golden("layers")
    x = tensor(numbers["invsig/in"]).requires_grad_()
    logits = inverse_sigmoid(x)
    logits.sum().backward()
    torch.testing.assert_close(logits, tensor(numbers["invsig/out"]), rtol=1e-6, atol=1e-6)
    expected = tensor(numbers["invsig/grad"])
    if not torch_holds_back_gradient_at_bounds():
        on_bound = torch.isin(x.detach(), torch.tensor([0.0, 1e-3, 0.999, 1.0]))
        assert on_bound.sum() < len(x) / 2
        x.grad[on_bound] = expected[on_bound]
    torch.testing.assert_close(x.grad, expected, rtol=1e-6, atol=1e-6)


def torch_holds_back_gradient_at_bounds() -> bool:
    """Older versions (2.4 is one) let it through `clamp` exactly at the bound."""
    bound = torch.zeros((), requires_grad=True)
    return torch.autograd.grad(bound.clamp(min=0), bound)[0].item() == 0


def test_inverse_sigmoid_takes_another_eps():
    numbers = golden("layers")
    logits = inverse_sigmoid(tensor(numbers["invsig/in"]), eps=1e-5)
    torch.testing.assert_close(logits, tensor(numbers["invsig/out_eps1e-5"]), rtol=1e-6, atol=1e-6)


def test_inverse_sigmoid_bounds_infinities_and_keeps_nan():
    logits = inverse_sigmoid(torch.tensor([math.nan, math.inf, -math.inf]))
    assert logits[0].isnan()
    torch.testing.assert_close(logits[1:], torch.tensor([math.log(1e3), -math.log(1e3)]))


def test_inverse_sigmoid_undoes_sigmoid_between_the_bounds():
    logits = torch.linspace(-6.9, 6.9, 101, dtype=torch.float64)
    torch.testing.assert_close(inverse_sigmoid(logits.sigmoid()), logits)


def test_inverse_sigmoid_leaves_its_input_alone():
    x = torch.tensor([-0.5, 0.5, 1.5])
    inverse_sigmoid(x)
    assert x.tolist() == [-0.5, 0.5, 1.5]


def test_one_process_without_a_group_is_a_world_of_one():
    assert not is_dist_avail_and_initialized()
    assert get_world_size() == 1
