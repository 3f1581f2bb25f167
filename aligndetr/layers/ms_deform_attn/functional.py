"""The one door to multi-scale deformable attention: checks, dtypes, choice of implementation."""

import functools
import logging
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from .embedding_bag import ms_deform_attn_embedding_bag
from .reference import ms_deform_attn_reference

logger = logging.getLogger(__name__)

BACKENDS = {
    "embedding_bag": ms_deform_attn_embedding_bag,
    "reference": ms_deform_attn_reference,
}
BACKEND_VARIABLE = "ALIGNDETR_MS_DEFORM_ATTN"


def multi_scale_deformable_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]] | Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    *,
    backend: str = "auto",
) -> Tensor:
    """Weighted sum of bilinear samples (Deformable DETR, equation 3, without the projections).

    Shapes: B batch, Q queries, S tokens over all levels, L levels, M heads, P points, D head dim.

    Args:
        value: (B, S, M, D), floating point; level after level, each row by row.
        spatial_shapes: (h, w) of each level, S = sum of h * w. A list of ints; an (L, 2)
            tensor works too, but on a GPU reading it makes the host wait.
        sampling_locations: (B, Q, M, L, P, 2), (x, y) with 0 and 1 the outer edges of the
            map. Samples outside the map read zeros.
        attention_weights: (B, Q, M, L, P); summing to 1 over (L, P) is the caller's part.
        backend: "auto", "embedding_bag" or "reference". "auto" asks the environment variable
            ALIGNDETR_MS_DEFORM_ATTN, then takes embedding_bag on the CPU where torch has MKL
            and no graph is being captured, and the reference elsewhere.

    Returns:
        (B, Q, M * D) in the dtype of `value`. Computed in float32, or in float64 if an
        argument is, under autocast too: sampling locations do not survive half precision.

    Raises:
        ValueError: shapes that do not fit together, or a backend that is unknown or cannot
            run here.
    """
    spatial_shapes = as_shape_list(spatial_shapes)
    if not torch.jit.is_tracing():  # sizes are tensors there, and checks would end in the trace
        _check_shapes(value, spatial_shapes, sampling_locations, attention_weights)
    implementation = BACKENDS[choose_backend(backend, value.device)]
    tensors = (value, sampling_locations, attention_weights)
    dtype = functools.reduce(torch.promote_types, (t.dtype for t in tensors), torch.float32)
    out = implementation(
        value.to(dtype), spatial_shapes, sampling_locations.to(dtype), attention_weights.to(dtype)
    )
    return out.to(value.dtype)


def multi_scale_deformable_attn_pytorch(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]] | Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """`multi_scale_deformable_attn` by the reference implementation, under detrex's name."""
    return multi_scale_deformable_attn(
        value, spatial_shapes, sampling_locations, attention_weights, backend="reference"
    )


def as_shape_list(spatial_shapes: Sequence[tuple[int, int]] | Tensor) -> list[tuple[int, int]]:
    """(h, w) of each level as Python ints, from those or from an (L, 2) tensor."""
    if isinstance(spatial_shapes, Tensor):
        spatial_shapes = spatial_shapes.tolist()
    return [(int(h), int(w)) for h, w in spatial_shapes]


def choose_backend(backend: str, device: torch.device) -> str:
    """Name of the implementation to run on `device`.

    Raises:
        ValueError: `backend`, or the environment variable that "auto" reads, is unknown or
            cannot run on `device`.
    """
    if backend == "auto":
        backend = os.environ.get(BACKEND_VARIABLE, "auto")
    if backend != "auto" and backend not in BACKENDS:
        raise ValueError(
            f"unknown backend {backend!r} for deformable attention; choose 'auto' or one of "
            f"{sorted(BACKENDS)}, as `backend` or in the environment variable {BACKEND_VARIABLE}"
        )
    obstacle = _obstacle_to_embedding_bag(device)
    if backend == "embedding_bag" and obstacle:
        raise ValueError(f"backend 'embedding_bag' {obstacle}; use 'auto' or 'reference'")
    if backend == "auto":
        backend = "reference" if obstacle else "embedding_bag"
    if not _graph_is_captured():
        _announce(backend, device.type, obstacle)
    return backend


def _obstacle_to_embedding_bag(device: torch.device) -> str | None:
    """Why embedding_bag cannot run, None if it can."""
    if device.type != "cpu":
        return f"runs on the CPU only, the tensors are on {device}"
    if _graph_is_captured():  # first: torch.compile cannot follow the question for MKL
        return "cannot be compiled, traced or exported"
    if not torch.backends.mkl.is_available():
        return "needs a build of torch with MKL for its backward pass"
    return None


def _graph_is_captured() -> bool:
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


@functools.cache
def _announce(backend: str, device_type: str, obstacle: str | None) -> None:
    """One line a process and device: the cache is what keeps it from being repeated."""
    reason = f" (embedding_bag {obstacle})" if obstacle else ""
    logger.info("Deformable attention on %s: %s%s", device_type, backend, reason)


def _check_shapes(
    value: Tensor,
    spatial_shapes: list[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> None:
    if value.dim() != 4 or sampling_locations.dim() != 6:
        raise ValueError(
            "expected `value` (B, S, M, D) and `sampling_locations` (B, Q, M, L, P, 2), got "
            f"{tuple(value.shape)} and {tuple(sampling_locations.shape)}"
        )
    batch, tokens, heads, _ = value.shape
    _, queries, _, _, points, _ = sampling_locations.shape
    weights_shape = (batch, queries, heads, len(spatial_shapes), points)
    if tuple(sampling_locations.shape) != (*weights_shape, 2):
        raise ValueError(
            f"`sampling_locations` is {tuple(sampling_locations.shape)} but `value` "
            f"{tuple(value.shape)} and {len(spatial_shapes)} spatial shapes ask for "
            f"(B, Q, M, L, P, 2) = {(*weights_shape, 2)}"
        )
    if tuple(attention_weights.shape) != weights_shape:
        raise ValueError(
            f"`attention_weights` is {tuple(attention_weights.shape)} but "
            f"`sampling_locations` asks for (B, Q, M, L, P) = {weights_shape}"
        )
    if sum(h * w for h, w in spatial_shapes) != tokens:
        raise ValueError(
            f"`spatial_shapes` {spatial_shapes} hold {sum(h * w for h, w in spatial_shapes)} "
            f"tokens but `value` has {tokens}"
        )
