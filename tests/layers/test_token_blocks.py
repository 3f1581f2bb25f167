"""The feed-forward step in blocks of tokens is the plain one, in less memory."""

import pytest
import torch
from torch import nn

from aligndetr.layers import FFN
from aligndetr.layers.token_blocks import TOKENS_PER_BLOCK, feed_forward_in_blocks

C, HIDDEN, OUT = 6, 10, 4


def layers(bias):
    torch.manual_seed(0)
    return nn.Linear(C, HIDDEN, bias=bias).double(), nn.Linear(HIDDEN, OUT, bias=bias).double()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tokens", [1, TOKENS_PER_BLOCK, TOKENS_PER_BLOCK + 1, 1700])
def test_values_and_gradients_are_those_of_the_plain_step(tokens, bias):
    first, last = layers(bias)
    x = torch.randn(2, tokens, C, dtype=torch.float64).transpose(0, 1).requires_grad_()
    found = feed_forward_in_blocks(x, first.weight, first.bias, last.weight, last.bias)
    expected = last(first(x).relu())
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    wanted = [x, *first.parameters(), *last.parameters()]
    weights = torch.randn_like(expected)
    for gradient, reference in zip(
        torch.autograd.grad(found, wanted, weights),
        torch.autograd.grad(expected, wanted, weights),
        strict=True,
    ):
        torch.testing.assert_close(gradient, reference, rtol=1e-10, atol=1e-12)


def test_numerical_gradients():
    first, last = layers(bias=True)
    x = torch.randn(3, C, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        feed_forward_in_blocks, (x, first.weight, first.bias, last.weight, last.bias)
    )


def test_frozen_weights_get_no_gradient_and_pass_it_on():
    first, last = layers(bias=True)
    first.requires_grad_(False)
    x = torch.randn(5, C, dtype=torch.float64, requires_grad=True)
    feed_forward_in_blocks(x, first.weight, first.bias, last.weight, last.bias).sum().backward()
    assert first.weight.grad is None
    assert x.grad.abs().sum() > 0
    assert last.weight.grad.abs().sum() > 0


def kept_numbers(run):
    """How many numbers autograd keeps after `run`, each storage once."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 4
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(kept.values())


def test_ffn_does_not_keep_what_lies_between_its_layers():
    ffn, x = FFN(8, 64), torch.randn(1, 2000, 8, requires_grad=True)
    weights = sum(p.numel() for p in ffn.parameters())
    assert kept_numbers(lambda: ffn(x)) <= x.numel() + weights
    assert kept_numbers(lambda: ffn.layers(x)) >= 2000 * 64  # what it is compared with does keep


@pytest.mark.parametrize(
    "ffn",
    [FFN(8, 16, activation=nn.GELU()), FFN(8, 16, num_fcs=3), FFN(8, 16, ffn_drop=0.5)],
    ids=["activation", "three layers", "dropout"],
)
def test_ffn_of_another_kind_runs_its_modules(ffn):
    x = torch.randn(3, 8)
    torch.manual_seed(0)
    found = ffn(x)
    torch.manual_seed(0)
    assert torch.equal(found, ffn.layers(x) + x)


def test_hooks_of_its_layers_are_obeyed():
    """A GPU runs them, so a CPU must: what runs in blocks calls no module."""

    def zero_output(module, args, out):
        return torch.zeros_like(out)

    for part in (lambda ffn: ffn.layers, lambda ffn: ffn.layers[0], lambda ffn: ffn.layers[1]):
        ffn, x = FFN(8, 16, fc_bias=False), torch.randn(3, 8)
        handle = part(ffn).register_forward_hook(zero_output)
        assert torch.equal(ffn(x), x)
        handle.remove()
        assert not torch.equal(ffn(x), x)


@pytest.mark.parametrize("kind", ["forward_pre", "full_backward", "full_backward_pre"])
def test_hooks_of_any_kind_are_called(kind):
    ffn, calls = FFN(8, 16), []
    getattr(ffn.layers[0][0], f"register_{kind}_hook")(lambda *_: calls.append(kind))
    ffn(torch.randn(3, 8, requires_grad=True)).sum().backward()
    assert calls == [kind]


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize(
    "weight_norm", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm]
)
def test_a_normed_weight_is_that_of_the_last_step(weight_norm):
    ffn, x = FFN(8, 16), torch.randn(3, 8)
    weight_norm(ffn.layers[0][0])
    optimizer = torch.optim.SGD(ffn.parameters(), lr=0.5)
    ffn(x).square().sum().backward()
    optimizer.step()
    found = ffn(x)
    assert torch.equal(found, ffn.layers(x) + x)


def test_ffn_under_autocast_has_its_dtype():
    ffn, x = FFN(8, 16, add_identity=False), torch.randn(3, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert ffn(x).dtype == torch.bfloat16
