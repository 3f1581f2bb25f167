"""The one door to multi-scale deformable attention: checks, dtypes, choice of implementation."""

import functools
import logging
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import cpp_build
from .cpp import ms_deform_attn_cpp
from .deterministic import ms_deform_attn_deterministic
from .embedding_bag import ms_deform_attn_embedding_bag
from .reference import ms_deform_attn_reference
from .triton_backend import ms_deform_attn_triton, obstacle_to_triton

logger = logging.getLogger(__name__)

BACKEND_VARIABLE = "ALIGNDETR_MS_DEFORM_ATTN"


class Backend(NamedTuple):
    """An implementation, and where it can run."""

    run: Callable[[Tensor, list[tuple[int, int]], Tensor, Tensor], Tensor]
    # Why it cannot run on a device: a phrase that follows its name. None if it can.
    obstacle: Callable[[torch.device], str | None]
    # Reads float16 and bfloat16 values as they are, and returns the dtype of the values.
    takes_half: bool = False


def _graph_is_captured() -> bool:
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def _obstacle_to_capture(_: torch.device) -> str | None:
    return "cannot be compiled, traced or exported" if _graph_is_captured() else None


def _obstacle_to_cpu_code(device: torch.device) -> str | None:
    if device.type != "cpu":
        return f"runs on the CPU only, the tensors are on {device}"
    return _obstacle_to_capture(device)


def _obstacle_to_cpp(device: torch.device) -> str | None:
    return _obstacle_to_cpu_code(device) or cpp_build.obstacle()


def _obstacle_to_triton(device: torch.device) -> str | None:
    return _obstacle_to_capture(device) or obstacle_to_triton(device)


BACKENDS = {
    "cpp": Backend(ms_deform_attn_cpp, _obstacle_to_cpp),
    "deterministic": Backend(ms_deform_attn_deterministic, _obstacle_to_capture),
    "embedding_bag": Backend(ms_deform_attn_embedding_bag, _obstacle_to_cpu_code),
    "reference": Backend(ms_deform_attn_reference, lambda _: None),
    "triton": Backend(ms_deform_attn_triton, _obstacle_to_triton, takes_half=True),
}
_default_backend = "auto"  # the process's, see `set_default_backend`


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
        backend: "auto" or a name in BACKENDS. "auto" takes what the environment variable
            ALIGNDETR_MS_DEFORM_ATTN names, or else `set_default_backend`; where that cannot
            run or nothing is named, triton on CUDA and embedding_bag on the CPU. Where these
            cannot run either (a graph is being captured, no triton) it is the reference,
            or deterministic on a GPU under `torch.use_deterministic_algorithms`.

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
    implementation, _, takes_half = BACKENDS[choose_backend(backend, value.device)]
    tensors = (value, sampling_locations, attention_weights)
    dtype = functools.reduce(torch.promote_types, (t.dtype for t in tensors), torch.float32)
    out = implementation(
        value if takes_half else value.to(dtype),
        spatial_shapes,
        sampling_locations.to(dtype),
        attention_weights.to(dtype),
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
    """(h, w) of each level as Python ints, from those or from an (L, 2) tensor.

    Of a graph that is captured, sizes stay what they are: an int would fix them in it.
    """
    if isinstance(spatial_shapes, Tensor):
        spatial_shapes = spatial_shapes.tolist()
    if _graph_is_captured():
        return [(h, w) for h, w in spatial_shapes]
    return [(int(h), int(w)) for h, w in spatial_shapes]


def set_default_backend(name: str, device: torch.device | str) -> str:
    """What "auto" shall mean in this process; to be called when a run starts.

    The environment variable ALIGNDETR_MS_DEFORM_ATTN, if set, wins over `name`. A backend that
    is compiled on first use is compiled now, and not in the middle of the first step.

    Returns:
        Name of the implementation that "auto" takes on `device`.

    Raises:
        ValueError: `name` or the environment variable is unknown. One that cannot run on
            `device` is no error: a line of the log says why, and "auto" takes another.
    """
    global _default_backend
    check_backend_name(name)
    _default_backend = name
    return choose_backend("auto", torch.device(device))


def choose_backend(backend: str, device: torch.device) -> str:
    """Name of the implementation to run on `device`.

    Raises:
        ValueError: `backend`, or what "auto" reads, is unknown; or `backend` is not "auto" and
            cannot run on `device`.
    """
    check_backend_name(backend)
    if backend == "auto":
        return _first_that_runs(device)
    obstacle = BACKENDS[backend].obstacle(device)
    if obstacle:
        raise ValueError(f"backend {backend!r} {obstacle}; use 'auto' or 'reference'")
    return backend


def _first_that_runs(device: torch.device) -> str:
    wanted = os.environ.get(BACKEND_VARIABLE) or _default_backend
    check_backend_name(wanted)
    automatic = _automatic(device)
    candidates = automatic if wanted == "auto" else (wanted, *automatic)
    obstacles = []
    for name in candidates:
        obstacle = BACKENDS[name].obstacle(device)
        if obstacle is None:
            break
        obstacles.append(f"{name} {obstacle}")
    if not _graph_is_captured():
        level = logging.INFO if wanted in ("auto", name) else logging.WARNING
        _announce(level, name, device.type, "; ".join(obstacles))
    return name


def _automatic(device: torch.device) -> tuple[str, ...]:
    """What "auto" tries, in this order, where nothing is named or that cannot run.

    Left out is cpp, which takes its time to compile.
    """
    if device.type == "cpu":
        return ("embedding_bag", "reference")
    if torch.are_deterministic_algorithms_enabled():
        return ("triton", "deterministic", "reference")  # grid_sample's backward would raise there
    return ("triton", "reference")


def check_backend_name(backend: str) -> None:
    """Raise a ValueError unless there is such an implementation; "auto" is one."""
    if backend != "auto" and backend not in BACKENDS:
        raise ValueError(
            f"unknown backend {backend!r} for deformable attention; choose 'auto' or one of "
            f"{sorted(BACKENDS)}, as `backend`, in the config (train.ms_deform_attn) or in the "
            f"environment variable {BACKEND_VARIABLE}"
        )


@functools.cache
def _announce(level: int, backend: str, device_type: str, obstacles: str) -> None:
    """One line a process and device: the cache is what keeps it from being repeated."""
    reason = f" ({obstacles})" if obstacles else ""
    logger.log(level, "Deformable attention on %s: %s%s", device_type, backend, reason)


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
