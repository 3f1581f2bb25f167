"""The feed-forward step in blocks of tokens, for CPUs: what lies between its layers stays in cache.

With 2048 features between the two linear layers, the encoder of an 800 x 1066 image writes 150 MB
per layer to memory and reads them again, and training keeps them for the backward pass. In blocks
they are never whole: the backward pass computes them again, which costs one matrix product more
and saves writing, reading and keeping them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# With 2048 features between the layers, 4 MB of them.
TOKENS_PER_BLOCK = 512


def feed_forward_in_blocks(
    x: Tensor, weight1: Tensor, bias1: Tensor | None, weight2: Tensor, bias2: Tensor | None
) -> Tensor:
    """linear(relu(linear(x, weight1, bias1)), weight2, bias2).

    Args:
        x: (..., C).
        weight1, bias1: (F, C) and (F,) or None.
        weight2, bias2: (O, F) and (O,) or None.

    Returns:
        (..., O). The gradient of a gradient is not available.
    """
    return _FeedForward.apply(x, weight1, bias1, weight2, bias2)


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight1, bias1, weight2, bias2):
        ctx.save_for_backward(x, weight1, bias1, weight2)
        tokens = x.flatten(0, -2)
        out = tokens.new_empty(len(tokens), len(weight2))
        for block, out_block in zip(_blocks(tokens), _blocks(out), strict=True):
            out_block.copy_(F.linear(F.linear(block, weight1, bias1).relu_(), weight2, bias2))
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight1, bias1, weight2 = ctx.saved_tensors
        needs_x, needs1, needs_bias1, needs2, needs_bias2 = ctx.needs_input_grad
        tokens, grad = x.flatten(0, -2), grad.flatten(0, -2)
        grad_tokens = torch.empty_like(tokens) if needs_x else None
        grad_weight1 = torch.zeros_like(weight1) if needs1 else None
        grad_weight2 = torch.zeros_like(weight2) if needs2 else None
        grad_bias1 = torch.zeros_like(bias1) if needs_bias1 else None
        for start, (block, grad_block) in enumerate(
            zip(_blocks(tokens), _blocks(grad), strict=True)
        ):
            hidden = F.linear(block, weight1, bias1).relu_()
            if grad_weight2 is not None:
                grad_weight2.addmm_(grad_block.T, hidden)
            grad_hidden = grad_block @ weight2
            torch.ops.aten.threshold_backward.grad_input(
                grad_hidden, hidden, 0, grad_input=grad_hidden
            )
            if grad_weight1 is not None:
                grad_weight1.addmm_(grad_hidden.T, block)
            if grad_bias1 is not None:
                grad_bias1 += grad_hidden.sum(0)
            if grad_tokens is not None:
                rows = slice(start * TOKENS_PER_BLOCK, (start + 1) * TOKENS_PER_BLOCK)
                torch.mm(grad_hidden, weight1, out=grad_tokens[rows])
        return (
            None if grad_tokens is None else grad_tokens.view_as(x),
            grad_weight1,
            grad_bias1,
            grad_weight2,
            grad.sum(0) if needs_bias2 else None,
        )


def _blocks(tokens: Tensor) -> tuple[Tensor, ...]:
    return tokens.split(TOKENS_PER_BLOCK)
