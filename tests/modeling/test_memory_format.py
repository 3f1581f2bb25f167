"""Models in channels-last order keep the numbers of their group norms."""

import pytest
import torch
from torch import nn

from aligndetr.modeling import to_channels_last
from tests.builders import tiny_model


def unit():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 1), nn.GroupNorm(4, 16))


def test_convolutions_are_channels_last_and_nothing_else_changes():
    module, plain = to_channels_last(unit()), unit()
    assert module[0].weight.is_contiguous(memory_format=torch.channels_last)
    for (name, value), (known, expected) in zip(
        module.state_dict().items(), plain.state_dict().items(), strict=True
    ):
        assert name == known
        assert torch.equal(value, expected)


@pytest.mark.parametrize("mean", [0, 10, 100])
def test_group_norm_is_right_where_the_mean_is_far_from_zero(mean):
    (norm,) = to_channels_last(nn.Sequential(nn.GroupNorm(4, 16)))
    generator = torch.Generator().manual_seed(0)
    maps = mean + torch.randn(2, 16, 40, 40, generator=generator)
    maps = maps.to(memory_format=torch.channels_last)
    expected = nn.functional.group_norm(maps.double(), 4, eps=norm.eps)
    # torch's own, on the channels-last map, is off by 3e-4 for a mean of 10, 3e-2 for 100.
    torch.testing.assert_close(norm(maps).double(), expected, rtol=0, atol=2e-6 + 2e-6 * mean)


def test_gradients_are_those_of_torch():
    module, plain = to_channels_last(unit()).double(), unit().double()
    images = torch.randn(2, 3, 5, 7, dtype=torch.float64)
    gradients = []
    for each in (module, plain):
        x = images.clone().requires_grad_()
        each(x).sin().sum().backward()
        gradients.append([x.grad, *(p.grad for p in each.parameters())])
    torch.testing.assert_close(*gradients)


def test_a_model_has_no_other_group_norm():
    norms = [type(m) for m in tiny_model().modules() if isinstance(m, nn.GroupNorm)]
    assert norms
    assert nn.GroupNorm not in norms
