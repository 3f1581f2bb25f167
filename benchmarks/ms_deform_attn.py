"""Deformable attention: every implementation that can run here against the baseline.

python benchmarks/ms_deform_attn.py --sizes encoder800 decoder --threads 1

The candidates are the backends of `aligndetr.layers.multi_scale_deformable_attn` and the function
of transformers, where that is installed. Value and gradients of each are compared with the
baseline's in float64 first; a disagreement ends the run without a time. Locations lie around
random centres, which is hard on the caches: in an encoder neighbouring queries read the same cells.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs without being installed

import aligndetr.quiet  # noqa: F401 (before detectron2)

# isort: split

import torch
from torch import Tensor

from aligndetr.layers import multi_scale_deformable_attn
from aligndetr.layers.ms_deform_attn.functional import BACKENDS, choose_backend
from benchmarks import peers
from benchmarks.baselines.ms_deform_attn import ms_deform_attn_baseline
from benchmarks.timing import BASELINE, Report, command_line, interleave

# name: (spatial shapes, batch, queries or None for one per token); 8 heads of 32, 4 points
SIZES = {
    "encoder": ([(50, 76), (25, 38), (13, 19), (7, 10)], 2, None),  # a 400 x 600 image
    "decoder": ([(50, 76), (25, 38), (13, 19), (7, 10)], 2, 1100),
    "encoder800": ([(100, 134), (50, 67), (25, 34), (13, 17)], 1, None),  # an 800 x 1066 image
    "demo": ([(40, 40), (20, 20), (10, 10), (5, 5)], 8, None),  # the demo's 320 x 320 images
}
QUICK_SIZES = ["decoder", "demo"]
HEADS, HEAD_DIM, POINTS = 8, 32, 4


def random_inputs(
    shapes: list[tuple[int, int]], batch: int, queries: int | None, dtype: torch.dtype, device
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


def candidates(device: torch.device) -> dict[str, Callable[..., Tensor]]:
    """By name, those that can run on `device`."""
    functions = {BASELINE: ms_deform_attn_baseline}
    for name in sorted(BACKENDS):
        try:
            choose_backend(name, device)
        except ValueError as refusal:
            print(f"left out: {refusal}")
        else:
            functions[name] = partial(multi_scale_deformable_attn, backend=name)
    if peers.is_available():
        functions["transformers"] = peers.transformers_ms_deform_attn
    return functions


def run(function, shapes, inputs: list[Tensor], grad_out: Tensor | None) -> list[Tensor]:
    """Output, and the three gradients where `grad_out` is given."""
    value, locations, weights = (x.detach().requires_grad_(grad_out is not None) for x in inputs)
    out = function(value, shapes, locations, weights)
    if grad_out is None:
        return [out]
    return [out, *torch.autograd.grad(out, (value, locations, weights), grad_out)]


def verify(functions: dict[str, Callable[..., Tensor]], device: torch.device) -> None:
    """Raise AssertionError where a candidate differs from the baseline."""
    shapes = [(11, 13), (5, 7), (3, 4), (2, 2)]
    inputs = random_inputs(shapes, 2, 77, torch.float64, device)
    grad_out = torch.randn(2, 77, HEADS * HEAD_DIM, dtype=torch.float64, device=device)
    truth = run(functions[BASELINE], shapes, inputs, grad_out)
    for name, function in functions.items():
        torch.testing.assert_close(
            run(function, shapes, inputs, grad_out), truth, msg=lambda m, n=name: f"{n}: {m}"
        )
    print(f"{', '.join(functions)}: equal in value and every gradient (float64)")


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=None, help="default: all")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    repeats = min(args.repeats, 3) if args.quick else args.repeats
    device = torch.device(args.device)

    report = Report(args.threads)
    functions = candidates(device)
    verify(functions, device)
    report.note("backend 'auto'", takes=choose_backend("auto", device))
    for size in args.sizes or (QUICK_SIZES if args.quick else SIZES):
        shapes, batch, queries = SIZES[size]
        inputs = random_inputs(shapes, batch, queries, torch.float32, device)
        # Dense, as a layer above gives it: a broadcast one, as of `.sum()`, may be read faster.
        grad_out = torch.randn(*inputs[1].shape[:2], HEADS * HEAD_DIM, device=device)
        for work, gradient in (("forward", None), ("forward+backward", grad_out)):
            runs = {
                name: partial(run, function, shapes, inputs, gradient)
                for name, function in functions.items()
            }
            report.compare(f"{size} {work}", interleave(runs, repeats, args.device))
    report.save(args.json)


if __name__ == "__main__":
    main()
