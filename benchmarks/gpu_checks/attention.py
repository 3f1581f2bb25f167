"""Deformable attention: Triton against the reference, and how fast each implementation is."""

import functools
import statistics

import torch
from torch import Tensor

from benchmarks.gpu_checks.common import Skip, attention, refusal, runs
from benchmarks.timing import interleave


def triton_against_reference(device: torch.device) -> str:
    """Value and gradients at encoder size, against the reference in float64."""
    if not runs("triton", device):
        raise Skip(refusal("triton", device))
    cuda = device.type == "cuda"  # else in the interpreter, a thousand times slower
    shapes = [(50, 76), (25, 38), (13, 19), (7, 10)] if cuda else [(5, 7), (3, 4)]
    heads, dim, points, queries = (
        (8, 32, 4, sum(h * w for h, w in shapes)) if cuda else (1, 8, 3, 4)
    )
    generator = torch.Generator().manual_seed(0)
    samples = (2, queries, heads, len(shapes), points)
    size = torch.tensor([[w, h] for h, w in shapes])[:, None]
    # Away from the cells' centre lines: there float32 may take the slope of either side.
    fraction = 0.01 + 0.98 * torch.rand(*samples, 2, generator=generator)
    cell = (torch.rand(*samples, 2, generator=generator) * (size + 4) - 2).floor()
    inputs = (
        torch.randn(2, sum(h * w for h, w in shapes), heads, dim, generator=generator),
        (cell + fraction + 0.5) / size,
        torch.randn(samples, generator=generator).flatten(3).softmax(-1).view(samples),
    )
    grad_out = torch.randn(2, queries, heads * dim, generator=generator)
    seen = []
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        given = [x.to(device) for x in (inputs[0].to(dtype), *inputs[1:])]
        grad = grad_out.to(device, dtype)
        truth = attention("reference", shapes, [x.double() for x in given], grad.double())
        ours = attention("triton", shapes, given, grad)
        # Float32 sums, rounded once (Triton's interpreter cuts bfloat16 off, which is twice that).
        stored = 1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps + 1e-5
        for name, want in truth.items():
            scale = want.abs().max()
            error = ((ours[name].double() - want).abs().max() / scale).item()
            bound = stored if name in ("output", "grad_value") else 1e-5
            assert error < bound, f"{dtype} {name} is off by {error:.1e} of its largest"
        seen.append(f"{str(dtype).removeprefix('torch.')} ok")
    return ", ".join(seen)


def attention_benchmark(device: torch.device) -> str:
    """Each implementation against the reference in float32, in turn, median of five.

    The last column is to be held against the memory's bandwidth: what has to be read and
    written at least, in that time. Wrong numbers are not timed.
    """
    if device.type == "cuda" and runs("triton", device):
        triton_against_reference(device)
    shapes = [(100, 134), (50, 67), (25, 34), (13, 17)]  # an 800 x 1066 image
    if device.type != "cuda":
        shapes = [(h // 8, w // 8) for h, w in shapes]
    fastest = 0.0
    for name, queries in (("encoder", sum(h * w for h, w in shapes)), ("decoder", 1100)):
        for backward in (False, True):
            work = attention_candidates(device, shapes, queries, backward)
            seconds = {
                candidate: statistics.median(turns)
                for candidate, turns in interleave(work, 5, device.type).items()
            }
            for candidate, median in seconds.items():
                ratio = seconds["reference fp32"] / median
                fastest = max(fastest, ratio)
                part = "forward + backward" if backward else "forward"
                rate = compulsory_bytes(*work[candidate].args[2:]) / median / 1e9
                print(
                    f"{name} {part:18} {candidate:19} {median * 1e3:8.2f} ms {ratio:6.2f}x "
                    f"{rate:7.1f} GB/s"
                )
    return f"the best is {fastest:.1f}x the reference; all lines above"


def attention_candidates(
    device: torch.device, shapes: list[tuple[int, int]], queries: int, backward: bool
) -> dict[str, functools.partial]:
    """What to time: 2 images, 8 heads of 32, 4 points around each query's own place."""
    generator = torch.Generator().manual_seed(0)
    samples = (2, queries, 8, len(shapes), 4)
    value = torch.randn(2, sum(h * w for h, w in shapes), 8, 32, generator=generator)
    centers = torch.rand(2, queries, 1, 1, 1, 2, generator=generator)
    locations = centers + 0.05 * torch.randn(*samples, 2, generator=generator)
    weights = torch.randn(samples, generator=generator).flatten(3).softmax(-1).view(samples)
    grad_out = torch.randn(2, queries, 256, generator=generator)
    locations, weights = locations.to(device), weights.to(device)
    half = {"fp16": torch.float16, "bf16": torch.bfloat16} if device.type == "cuda" else {}
    work = {}
    for backend in ("reference", "deterministic", "triton"):
        # The interpreter is for numbers: it would take hours here.
        if not runs(backend, device) or (backend == "triton" and device.type == "cpu"):
            continue
        for name, dtype in {"fp32": torch.float32, **half}.items():
            inputs = [value.to(device, dtype), locations, weights]
            grad = grad_out.to(device, dtype) if backward else None
            work[f"{backend} {name}"] = functools.partial(attention, backend, shapes, inputs, grad)
    return work


def compulsory_bytes(inputs: list[Tensor], grad_out: Tensor | None) -> int:
    """Inputs and output; with gradients, the inputs again, the output's and the inputs'."""
    value, locations, _ = inputs
    inside = sum(x.nbytes for x in inputs)
    out = locations.shape[:2].numel() * value.shape[2:].numel() * value.element_size()
    return inside + out if grad_out is None else 3 * inside + 2 * out
