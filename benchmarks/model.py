"""The whole model: evaluation, training step (time and peak memory), demo iterations.

python benchmarks/model.py --parts eval train demo

Against the reference's formulation on the same weights (`baseline`) and against transformers'
Deformable DETR with ResNet-50 at equal size and queries. First, in float64 and at a small size,
detections, losses and gradients are compared with the baseline's; a disagreement ends the run
without a time. That the baseline is no straw man is for the lines "fair" to show: its time over
that of transformers, for deformable attention on the same tensors and for the whole model.

A training step is forward, backward, clipping and AdamW. Ours and the baseline's have denoising
queries besides the 900 for matching; transformers' has none, and "fair" leaves out the baseline's.
Peak memory is that of a process of its own after two steps. The baseline's step takes half a minute
on two cores: choose parts.
"""

import copy
import math
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs without being installed

import aligndetr.quiet  # noqa: F401 (before detectron2)

# isort: split

import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from aligndetr.engine.build import build_optimizer
from aligndetr.engine.trainer import Trainer
from benchmarks import peers
from benchmarks.baselines.model import BaselineAlignDETR
from benchmarks.baselines.ms_deform_attn import ms_deform_attn_baseline
from benchmarks.ms_deform_attn import random_inputs
from benchmarks.timing import BASELINE, Report, command_line, interleave, peak_memory

CONFIGS = Path(__file__).resolve().parents[1] / "projects" / "aligndetr" / "configs"
R50, DEMO = CONFIGS / "aligndetr_k=2_r50_4scale_12ep.py", CONFIGS / "aligndetr_demo.py"
OURS, PEER = "aligndetr", "transformers"
NO_DENOISING = "baseline without denoising"
OBJECTS = 10  # per image; COCO has 7 on average, the demo's tiles 13


def random_batch(sizes: list[tuple[int, int]], num_classes: int, objects: int = OBJECTS):
    """detectron2's batch: noise images of `sizes` (h, w), boxes of a tenth to a third of a side."""
    generator = torch.Generator().manual_seed(0)
    batch = []
    for height, width in sizes:
        start = torch.rand(objects, 2, generator=generator) * 0.6
        end = start + 0.1 + torch.rand(objects, 2, generator=generator) * 0.25
        instances = Instances((height, width))
        scale = torch.tensor([width, height, width, height])
        instances.gt_boxes = Boxes(torch.cat([start, end], -1) * scale)
        instances.gt_classes = torch.randint(num_classes, (objects,), generator=generator)
        image = torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8)
        batch.append({"image": image, "instances": instances})
    return batch


def load_config(path: Path, device: str, num_queries: int | None = None) -> DictConfig:
    cfg = LazyConfig.load(str(path))
    cfg.train.device = device
    if num_queries is not None:
        cfg.model.num_queries = num_queries
    return cfg


def build_model(cfg: DictConfig) -> nn.Module:
    """The config's model with random weights, also where a layer starts at zero.

    As initialised, samples lie exactly on pixels, where bilinear interpolation has no gradient to
    compare, and each layer returns the boxes it was given.
    """
    torch.manual_seed(0)
    model = instantiate(cfg.model)
    starting_at_zero = ("sampling_offsets", "attention_weights", "class_embed", "bbox_embed")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in starting_at_zero):
                parameter.add_(torch.randn_like(parameter) * 0.02)
    return model.to(cfg.train.device)


def build_candidate(name: str, cfg: DictConfig) -> nn.Module:
    if name == PEER:
        torch.manual_seed(0)
        model = peers.TransformersDetr(cfg.model.num_queries, cfg.model.num_classes)
        return model.to(cfg.train.device)
    model = build_model(cfg)
    if name == NO_DENOISING:
        model.dn_number = 0
    return model if name == OURS else BaselineAlignDETR(model)


def candidate_names(with_peer: bool) -> list[str]:
    return [BASELINE, OURS, *([PEER] if with_peer and peers.is_available() else [])]


def verify(config: Path, device: str) -> None:
    """Raise AssertionError where detections, a loss or a gradient differ from the baseline's.

    In float64, on two small images of which one is padded.
    """
    cfg = load_config(config, device, num_queries=100)  # fewer than tokens: they have to be chosen
    batch = random_batch([(128, 160), (96, 128)], cfg.model.num_classes, objects=3)
    verify_model(build_model(cfg), batch)


def verify_model(model: nn.Module, batch: list[dict]) -> None:
    """As `verify`, for any `AlignDETR` (a copy is used) and detectron2's batch."""
    ours = copy.deepcopy(model).double()
    baseline = BaselineAlignDETR(copy.deepcopy(ours))
    losses, expected = ({}, {})
    for candidate, found in ((ours, losses), (baseline, expected)):
        candidate.train()
        torch.manual_seed(0)  # the noise of the denoising queries
        found |= candidate(batch)
        sum(found.values()).backward()
    _assert_equal("loss", losses, expected, 1e-6)
    gradients = ({n: p.grad for n, p in m.named_parameters()} for m in (ours, baseline.model))
    _assert_equal("gradient of", *gradients, 1e-4)

    detections = []
    for candidate in (ours, baseline):
        candidate.eval()
        with torch.no_grad():
            instances = candidate(batch[:1])[0]["instances"]
        detections.append({"boxes": instances.pred_boxes.tensor, "scores": instances.scores})
    _assert_equal("detections'", *detections, 1e-5)


def _assert_equal(what: str, found: dict, expected: dict, tolerance: float) -> None:
    """Each tensor within `tolerance` of the largest number in it."""
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    for name, tensor in found.items():
        if tensor is None and expected[name] is None:  # frozen
            continue
        error = (tensor - expected[name]).abs().max()
        allowed = tolerance * expected[name].abs().max() + 1e-9
        assert error <= allowed, f"{what} {name} differs by {error:.2e}, allowed {allowed:.2e}"


def train_step(name: str, model: nn.Module, cfg: DictConfig, batch: list[dict]) -> Callable:
    """A function that makes one training step; ours is the library's own."""
    model.train()
    if name == OURS:
        optimizer = build_optimizer(cfg, model)
        clip = cfg.train.clip_grad.params if cfg.train.clip_grad.enabled else None
        trainer = Trainer(model, [batch] * 10_000, optimizer, clip_grad=clip, log_period=10_000)
        trainer.iter, trainer.max_iter = 0, 10_000

        def library_step() -> None:
            with EventStorage():
                trainer.run_step()

        return library_step
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=cfg.optimizer.lr, weight_decay=1e-4)

    def plain_step() -> None:
        total = sum(model(batch).values())
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(parameters, max_norm=0.1)
        optimizer.step()

    return plain_step


def run_steps(
    name: str, count: int, num_queries: int, sizes: list[tuple[int, int]], device: str, threads: int
) -> None:
    """For a process of its own, to see what it holds; from the second step on AdamW's state too."""
    torch.set_num_threads(threads)
    cfg = load_config(R50, device, num_queries)
    batch = random_batch(sizes, cfg.model.num_classes)
    step = train_step(name, build_candidate(name, cfg), cfg, batch)
    for _ in range(count):
        step()


def matrix_rate(device: str, size: int = 2048) -> float:
    """Floating point operations per second of a large float32 matrix product, median of 9."""
    a, b = torch.randn(2, size, size, device=device)
    seconds = interleave({"matmul": lambda: a @ b}, 9, device)["matmul"]
    return 2 * size**3 / statistics.median(seconds)


def count_operations(run: Callable[[], object]) -> int:
    """Of matrix products and convolutions; sampling is not among them."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def note_fairness(
    report: Report, work: str, seconds: dict[str, list[float]], baseline: str = BASELINE
) -> None:
    """The baseline's time over transformers', turn by turn."""
    ratios = [a / b for a, b in zip(seconds[baseline], seconds[PEER], strict=True)]
    ratio = statistics.median(ratios)
    report.note(
        f"fair: {work}",
        baseline_over_transformers=ratio,
        lowest=min(ratios),
        highest=max(ratios),
        no_straw_man=ratio <= 1.15,
    )


def compare_attention(report: Report, side: int, repeats: int, device: str) -> None:
    """Baseline and transformers on the same tensors; equal in value, or there is no time."""
    strides = [8, 16, 32, 64]
    shapes = [(math.ceil(side / stride), math.ceil(side * 4 / 3 / stride)) for stride in strides]
    inputs = random_inputs(shapes, 1, None, torch.float32, device)
    value, locations, weights = inputs
    functions = {BASELINE: ms_deform_attn_baseline, PEER: peers.transformers_ms_deform_attn}
    results = [function(value, shapes, locations, weights) for function in functions.values()]
    torch.testing.assert_close(*results)
    for part, backward in (("forward", False), ("forward+backward", True)):
        runs = {
            name: partial(_attend, function, shapes, inputs, backward)
            for name, function in functions.items()
        }
        note_fairness(report, f"attention {part}", interleave(runs, repeats, device))


def _attend(function: Callable, shapes, inputs: list[Tensor], backward: bool) -> None:
    value, locations, weights = (x.detach().requires_grad_(backward) for x in inputs)
    out = function(value, shapes, locations, weights)
    if backward:
        out.backward(torch.ones_like(out).contiguous())


def measure_eval(report: Report, quick: bool, repeats: int, device: str) -> None:
    size, num_queries = ((320, 426), 300) if quick else ((800, 1066), 900)
    cfg = load_config(R50, device, num_queries)
    batch = random_batch([size], cfg.model.num_classes)
    models = {name: build_candidate(name, cfg).eval() for name in candidate_names(True)}
    for model in models.values():
        model.requires_grad_(False)  # the counter of operations fails on views of parameters
    with torch.no_grad():
        runs = {name: partial(model, batch) for name, model in models.items()}
        seconds = interleave(runs, repeats, device)
        operations = count_operations(runs[OURS])
    work = f"evaluation, 1 x {size[0]} x {size[1]}"
    report.compare(work, seconds)
    if PEER in seconds:
        note_fairness(report, "model, evaluation", seconds)
        report.compare(work, {name: seconds[name] for name in (PEER, OURS)}, against=PEER)
    rate = matrix_rate(device)
    median = statistics.median(seconds[OURS])
    report.note(
        "evaluation against the matrix rate",
        gflop=operations / 1e9,
        gflop_per_s_of_a_matrix_product=rate / 1e9,
        gflop_per_s_of_evaluation=operations / median / 1e9,
        time_over_ideal=median * rate / operations,
    )


def measure_train(report: Report, quick: bool, repeats: int, device: str) -> None:
    sizes, num_queries = ([(128, 128)] * 2, 300) if quick else ([(640, 640)] * 2, 900)
    cfg = load_config(R50, device, num_queries)
    batch = random_batch(sizes, cfg.model.num_classes)
    names = candidate_names(True)
    timed = [*names, NO_DENOISING] if PEER in names else names
    steps = {name: train_step(name, build_candidate(name, cfg), cfg, batch) for name in timed}
    seconds = interleave(steps, repeats, device)
    work = f"training step, {len(sizes)} x {sizes[0][0]} x {sizes[0][1]}"
    report.compare(work, seconds)
    if PEER in seconds:
        note_fairness(report, "model, training, both without denoising", seconds, NO_DENOISING)
        report.compare(work, {name: seconds[name] for name in (PEER, OURS)}, against=PEER)
    del steps
    arguments = (1 if quick else 2, num_queries, sizes, device, torch.get_num_threads())
    peaks = {name: peak_memory(run_steps, name, *arguments) for name in names}
    for name, peak in peaks.items():
        ratio = peak / peaks[BASELINE]
        report.note(f"peak memory, {name}", gib=peak / 2**30, of_baseline=ratio)


def measure_demo(report: Report, quick: bool, repeats: int, device: str) -> None:
    sizes = [(128, 128)] * 4 if quick else [(320, 320)] * 8
    cfg = load_config(DEMO, device)
    batch = random_batch(sizes, cfg.model.num_classes, objects=13)
    steps = {
        name: train_step(name, build_candidate(name, cfg), cfg, batch)
        for name in candidate_names(False)
    }
    seconds = interleave(steps, repeats, device)
    report.compare(f"demo training, {len(sizes)} x {sizes[0][0]} x {sizes[0][1]}", seconds)
    rates = {name: 60 / statistics.median(times) for name, times in seconds.items()}
    report.note("demo iterations per minute", **rates)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument(
        "--parts", nargs="+", choices=["eval", "train", "demo"], default=["eval", "train", "demo"]
    )
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    repeats = min(args.repeats, 1) if args.quick else args.repeats
    report = Report(args.threads)

    for path in [DEMO, R50] if "demo" in args.parts else [R50]:
        verify(path, args.device)
    print("aligndetr, baseline: equal detections, losses and gradients (float64)")
    if peers.is_available():
        compare_attention(report, 320 if args.quick else 800, repeats, args.device)
    measures = {"eval": measure_eval, "train": measure_train, "demo": measure_demo}
    for part in args.parts:
        measures[part](report, args.quick, repeats, args.device)
    report.save(args.json)


if __name__ == "__main__":
    main()
