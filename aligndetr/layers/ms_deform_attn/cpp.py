"""Deformable attention on the CPU in C++: the operators of cpp_kernels.cpp under autograd.

Opt-in: the operators are compiled for this machine on first use, see cpp_build.py.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import cpp_build


def ms_deform_attn_cpp(
    value: Tensor,
    spatial_shapes: list[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Arguments and result as `multi_scale_deformable_attn`, all float32 or all float64.

    Differentiable once: a second derivative raises and needs `backend="reference"`. The same
    inputs give the same result and gradients, with any number of threads.
    """
    return _CppAttention.apply(value, spatial_shapes, sampling_locations, attention_weights)


class _CppAttention(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)  # turns autocast off
    def forward(ctx, value, spatial_shapes, locations, weights):
        value, locations, weights = (x.contiguous() for x in (value, locations, weights))
        ctx.save_for_backward(value, locations, weights)
        ctx.sides = [side for shape in spatial_shapes for side in shape]
        return cpp_build.operators().forward(value, ctx.sides, locations, weights)

    @staticmethod
    @once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx, grad_out):
        value, locations, weights = ctx.saved_tensors
        grad_value, grad_locations, grad_weights = cpp_build.operators().backward(
            value, ctx.sides, locations, weights, grad_out.contiguous()
        )
        return grad_value, None, grad_locations, grad_weights
