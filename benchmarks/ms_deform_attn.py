"""Deformable attention: each implementation side by side with the grid_sample reference.

python benchmarks/ms_deform_attn.py --sizes encoder decoder demo --repeats 7 --threads 1

First every implementation is compared with the reference in value and gradient, in float64; a
disagreement ends the run without a time. Then all of them run in turn, `--repeats` times after
a warm-up, so that whatever else the machine does meets them alike. Each line gives the median
time and the median, lowest and highest ratio to the reference of the same turn.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs without being installed

from aligndetr.layers import multi_scale_deformable_attn
from aligndetr.layers.ms_deform_attn.functional import BACKENDS, choose_backend

# name: (spatial shapes, batch, queries or None for one per token); 8 heads of 32, 4 points
SIZES = {
    "encoder": ([(50, 76), (25, 38), (13, 19), (7, 10)], 2, None),  # a 400 x 600 image
    "decoder": ([(50, 76), (25, 38), (13, 19), (7, 10)], 2, 1100),
    "encoder800": ([(100, 134), (50, 67), (25, 34), (13, 17)], 1, None),  # an 800 x 1066 image
    "demo": ([(32, 32), (16, 16), (8, 8), (4, 4)], 8, None),  # the demo's 256 x 256 tiles
}
HEADS, HEAD_DIM, POINTS = 8, 32, 4


def random_inputs(
    shapes: list[tuple[int, int]], batch: int, queries: int | None, dtype: torch.dtype, device: str
) -> list[Tensor]:
    """Values, locations around a random centre per query, softmax weights."""
    generator = torch.Generator().manual_seed(0)
    tokens = sum(h * w for h, w in shapes)
    queries = queries or tokens
    samples = (batch, queries, HEADS, len(shapes), POINTS)
    value = torch.randn(batch, tokens, HEADS, HEAD_DIM, generator=generator, dtype=dtype)
    centers = torch.rand(batch, queries, 1, 1, 1, 2, generator=generator, dtype=dtype)
    offsets = torch.randn(*samples, 2, generator=generator, dtype=dtype) * 0.05
    logits = torch.randn(samples, generator=generator, dtype=dtype)
    weights = logits.flatten(3).softmax(-1).view(samples)
    return [tensor.to(device) for tensor in (value, centers + offsets, weights)]


def run(backend: str, shapes, inputs: list[Tensor], grad_out: Tensor | None) -> list[Tensor]:
    """Output, and the three gradients where `grad_out` is given."""
    inputs = [x.detach().requires_grad_(grad_out is not None) for x in inputs]
    value, locations, weights = inputs
    out = multi_scale_deformable_attn(value, shapes, locations, weights, backend=backend)
    if grad_out is None:
        return [out]
    return [out, *torch.autograd.grad(out, inputs, grad_out)]


def verify(backends: list[str], device: str) -> None:
    """Raise AssertionError where an implementation differs from the reference."""
    shapes = [(11, 13), (5, 7), (3, 4), (2, 2)]
    inputs = random_inputs(shapes, 2, 77, torch.float64, device)
    grad_out = torch.randn(2, 77, HEADS * HEAD_DIM, dtype=torch.float64, device=device)
    truth = run("reference", shapes, inputs, grad_out)
    for backend in backends:
        torch.testing.assert_close(run(backend, shapes, inputs, grad_out), truth)


def seconds(backend: str, shapes, inputs: list[Tensor], grad_out: Tensor | None) -> float:
    synchronize = torch.cuda.synchronize if inputs[0].is_cuda else lambda: None
    synchronize()
    start = time.perf_counter()
    run(backend, shapes, inputs, grad_out)
    synchronize()
    return time.perf_counter() - start


def measure(size: str, backward: bool, backends: list[str], repeats: int, device: str) -> None:
    shapes, batch, queries = SIZES[size]
    inputs = random_inputs(shapes, batch, queries, torch.float32, device)
    locations = inputs[1]
    grad_out = torch.randn(*locations.shape[:2], HEADS * HEAD_DIM, device=device)
    turns = [
        {name: seconds(name, shapes, inputs, grad_out if backward else None) for name in backends}
        for _ in range(repeats + 1)
    ][1:]  # the first is the warm-up
    for name in backends:
        median = statistics.median(turn[name] for turn in turns)
        ratios = sorted(turn["reference"] / turn[name] for turn in turns)
        print(
            f"{size:11s} {'forward+backward' if backward else 'forward':17s} {name:14s} "
            f"{median * 1e3:9.1f} ms   {statistics.median(ratios):5.2f}x "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["encoder", "decoder"])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    backends = ["reference"]
    for name in sorted(set(BACKENDS) - {"reference"}):
        try:
            backends.append(choose_backend(name, torch.device(args.device)))
        except ValueError as refusal:
            print(f"left out: {refusal}")
    verify(backends, args.device)
    print(f"{', '.join(backends)}: equal in value and gradient (float64)")
    print(f"torch {torch.__version__}, {args.device}, {args.threads} threads")
    for size in args.sizes:
        for backward in (False, True):
            measure(size, backward, backends, args.repeats, args.device)


if __name__ == "__main__":
    main()
