"""Deformable attention on CUDA by Triton kernels, which compile on their first use.

Shapes: B batch, Q queries, S tokens over all levels, L levels, M heads, P points, D head dim.
"""

import functools
import os

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .deterministic import deterministic_value_gradient, level_table

# What torch 2.6 comes with. 3.0 and 3.1 interpret these kernels to wrong numbers.
MIN_VERSION = (3, 2)
NUM_WARPS = 4
# Numbers in a block: with 4 warps, 4 for each thread, which it loads at once.
BLOCK_SIZE = 512


def ms_deform_attn_triton(
    value: Tensor,
    spatial_shapes: list[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Arguments and result as `multi_scale_deformable_attn`.

    `sampling_locations` and `attention_weights` are both float32 or both float64, the dtype that
    is computed in; `value` may be float16 or bfloat16 as well. Gradients have their input's dtype.

    The gradient of `value` is summed by atomics, in an order that differs from run to run; under
    `torch.use_deterministic_algorithms` by sorting, in a fixed order. Differentiable once: a
    second derivative raises and needs `backend="reference"`.
    """
    return _TritonAttention.apply(value, spatial_shapes, sampling_locations, attention_weights)


def obstacle_to_triton(device: torch.device) -> str | None:
    """Why Triton cannot run on `device`, None if it can."""
    if device.type != "cuda" and not _is_interpreted():
        return f"runs on CUDA devices only, the tensors are on {device}"
    version = _installed_version()
    if version is None:
        return "needs the package triton, which is not installed (`pip install triton`)"
    if version < MIN_VERSION:
        needed, found = (".".join(map(str, v)) for v in (MIN_VERSION, version))
        return f"needs triton {needed} or newer, {found} is installed"
    return _failure_on(device)


@functools.cache
def _failure_on(device: torch.device) -> str | None:
    """What is wrong with a first small call on `device`, None if nothing is.

    Triton needs a C compiler, Python's headers and a GPU that it knows, and says so only when a
    kernel is launched. Found out here, it costs another implementation and not the run.
    """
    try:
        value = torch.arange(4.0, device=device).view(1, 4, 1, 1)
        centre = torch.full((1, 1, 1, 1, 1, 2), 0.5, device=device)  # half the mean of the cells
        with torch.no_grad():
            result = ms_deform_attn_triton(value, [(2, 2)], centre, centre[..., 0]).item()
    except Exception as error:  # whatever compilers and drivers raise
        reason = next(iter(str(error).splitlines()), "")
        return f"failed in a first call ({type(error).__name__}: {reason})"
    return None if result == 0.75 else f"got {result} in a first call, where 0.75 is right"


class _TritonAttention(torch.autograd.Function):
    # Kernels know no autocast, so there is none to turn off: dtypes stay what they are.
    @staticmethod
    def forward(ctx, value, spatial_shapes, locations, weights):
        from .triton_kernels import forward_kernel

        value, locations, weights = (x.contiguous() for x in (value, locations, weights))
        ctx.save_for_backward(value, locations, weights)
        ctx.spatial_shapes = spatial_shapes
        batch, queries, heads = locations.shape[:3]
        out = value.new_empty(batch, queries, heads * value.shape[-1])
        _launch(forward_kernel, spatial_shapes, (value, locations, weights), (out,))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):
        from .triton_kernels import backward_kernel

        value, locations, weights = ctx.saved_tensors
        grad_out = grad_out.contiguous()
        grad_locations, grad_weights = torch.empty_like(locations), torch.empty_like(weights)
        # Half precision would lose addends: many samples meet in one cell.
        atomics = not torch.are_deterministic_algorithms_enabled()
        if atomics:
            grad_value = torch.zeros_like(value, dtype=locations.dtype)
        else:
            grad_value = deterministic_value_gradient(
                grad_out.to(locations.dtype), ctx.spatial_shapes, locations, weights
            )
        _launch(
            backward_kernel,
            ctx.spatial_shapes,
            (value, locations, weights),
            (grad_out, grad_value, grad_locations, grad_weights),
            BLOCK_K=_power_of_two(weights.shape[3:].numel()),
            ADD_TO_VALUE=atomics,
        )
        return grad_value.to(value.dtype), None, grad_locations, grad_weights


def _launch(
    kernel,
    spatial_shapes: list[tuple[int, int]],
    inputs: tuple[Tensor, Tensor, Tensor],
    others: tuple[Tensor, ...],
    **options: int,
) -> None:
    """Run `kernel` over all queries, heads and batch entries."""
    value, locations, weights = inputs
    batch, tokens, heads, head_dim = value.shape
    _, queries, _, num_levels, points, _ = locations.shape
    if not batch * queries * heads:  # a grid must not be empty
        return
    blocks = block_sizes(head_dim)
    grid = (-(-queries // blocks["BLOCK_Q"]), heads, batch)
    levels = level_table(spatial_shapes, value.device)
    sizes = {"S": tokens, "Q": queries, "M": heads, "D": head_dim, "L": num_levels, "P": points}
    # Triton launches on the current device, which need not be the tensors'.
    with torch.cuda.device_of(value):
        kernel[grid](
            value, levels, locations, weights, *others,
            **sizes, **blocks, **options, num_warps=NUM_WARPS,
        )  # fmt: skip


def block_sizes(head_dim: int) -> dict[str, int]:
    """Queries and features of a block, powers of two: all features, a few at least."""
    block_d = max(4, _power_of_two(head_dim))
    return {"BLOCK_Q": max(1, BLOCK_SIZE // block_d), "BLOCK_D": block_d}


def _power_of_two(number: int) -> int:
    """The smallest one that is not below `number`."""
    return 1 << (number - 1).bit_length()


def _is_interpreted() -> bool:
    """Triton's own switch: kernels run on the CPU, slowly, to be tested."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _installed_version() -> tuple[int, int] | None:
    try:
        import triton
    except ImportError:
        return None
    major, minor = triton.__version__.split(".")[:2]
    return int(major), int(minor)
