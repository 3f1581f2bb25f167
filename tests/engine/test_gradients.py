"""Our two halves of gradient clipping against torch's whole."""

import copy
import math
import re

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from aligndetr.engine.gradients import check_clip_arguments, clip_gradients, gradient_norms


def with_gradients(scale):
    generator = torch.Generator().manual_seed(0)
    shapes = [(7, 5), (3,), (11, 2, 3), (1,)]
    parameters = [nn.Parameter(torch.randn(s, generator=generator)) for s in shapes]
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=generator) * scale
    return parameters


@pytest.mark.parametrize("norm_type", [2, 2.0, 1, math.inf])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e5])
def test_same_bits_as_clip_grad_norm(norm_type, scale):
    ours, theirs = with_gradients(scale), with_gradients(scale)
    norms, norm = gradient_norms(ours, norm_type)
    clip_gradients(ours, 0.1, norm)
    assert torch.equal(norm, clip_grad_norm_(theirs, 0.1, norm_type=norm_type))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.grad, b.grad)
    expected = [torch.linalg.vector_norm(p.grad, norm_type) for p in with_gradients(scale)]
    torch.testing.assert_close(norms, torch.stack(expected))


def test_small_gradients_stay_as_they_are():
    parameters = with_gradients(1e-6)
    before = copy.deepcopy([p.grad for p in parameters])
    clip_gradients(parameters, 0.1, gradient_norms(parameters)[1])
    assert all(torch.equal(p.grad, b) for p, b in zip(parameters, before, strict=True))


@pytest.mark.parametrize(
    "arguments", [{"norm_type": 2}, {"max_norm": 1, "foreach": True}, {"max_norm": 1, "norm": 2}]
)
def test_arguments_without_effect_are_refused(arguments):
    with pytest.raises(ValueError, match=r"train\.clip_grad\.params"):
        check_clip_arguments(arguments)


@pytest.mark.parametrize("name", ["max_norm", "norm_type"])
@pytest.mark.parametrize("value", [-1, 0, 0.0, None, math.nan, True, "0.1", [1]])
def test_a_norm_that_is_no_number_above_0_is_refused(name, value):
    remedy = r"must be a number greater than 0; .*train\.clip_grad\.enabled=False"
    with pytest.raises(
        ValueError, match=rf"params\.{name}` \(={re.escape(repr(value))}\) {remedy}"
    ):
        check_clip_arguments({"max_norm": 0.1, "norm_type": 2, name: value})


@pytest.mark.parametrize("norm_type", [2, 1.5, math.inf, "inf"])
def test_norms_that_torch_knows_pass(norm_type):
    check_clip_arguments({"max_norm": 0.1, "norm_type": norm_type})
