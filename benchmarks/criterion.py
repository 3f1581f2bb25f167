"""Criterion and matcher, forward and backward, against the reference's formulation.

python benchmarks/criterion.py --objects 10 100 300

Sizes of the R-50 model: 2 images, 80 classes, 7 sets of 900 predictions (the encoder's proposals
and 6 decoder layers) and 6 of denoising queries (as many as `dn_number` 100 gives). Every loss
and every gradient is compared first; a disagreement ends the run without a time.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs without being installed

import aligndetr.quiet  # noqa: F401 (before detectron2)

# isort: split

import torch
from torch import Tensor

from aligndetr.criterions import AlignDETRCriterion
from aligndetr.matchers import MixedMatcher
from benchmarks.baselines.criterion import BaselineCriterion
from benchmarks.timing import BASELINE, Report, command_line, interleave

LAYERS, CLASSES, DN_NUMBER = 6, 80, 100
OURS = "aligndetr"


def r50_criterion() -> AlignDETRCriterion:
    """As `projects/aligndetr/configs/models/aligndetr_r50.py` builds it."""
    weights = {"loss_class": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0}
    return AlignDETRCriterion(
        num_classes=CLASSES,
        matcher=MixedMatcher(cost_class=2.0, cost_bbox=5.0, cost_giou=2.0),
        weight_dict=weights | {f"{name}_dn": weight for name, weight in weights.items()},
        match_num=[2] * LAYERS + [1],
        alpha=0.25,
        gamma=2.0,
        tau=1.5,
    )


def random_step(
    objects: int, queries: int = 900, batch: int = 2, dtype=torch.float32, device: str = "cpu"
) -> tuple[dict, list[dict[str, Tensor]], dict, list[Tensor]]:
    """Outputs, targets, denoising outputs, and the leaves in them that get gradients.

    As in the middle of training: a third of the queries lie around objects and favour their
    class, the others lie anywhere.
    """
    generator = torch.Generator().manual_seed(0)
    targets = [
        {
            "labels": torch.randint(CLASSES, (objects,), generator=generator),
            "boxes": torch.rand(objects, 4, generator=generator, dtype=dtype) * 0.3 + 0.1,
        }
        for _ in range(batch)
    ]
    groups, group_size = max(1, DN_NUMBER // objects), 2 * objects
    leaves = []

    def predictions(count: int) -> dict[str, Tensor]:
        logits = torch.randn(batch, count, CLASSES, generator=generator, dtype=dtype) - 4
        boxes = torch.rand(batch, count, 4, generator=generator, dtype=dtype) * 0.5 + 0.1
        near = torch.arange(0, count, 3)
        for i, target in enumerate(targets):
            noise = 0.03 * torch.randn(len(near), 4, generator=generator, dtype=dtype)
            boxes[i, near] = (target["boxes"][near % objects] + noise).clamp(0.01, 0.99)
            logits[i, near, target["labels"][near % objects]] += 3
        made = {"pred_logits": logits.to(device), "pred_boxes": boxes.to(device)}
        leaves.extend(x.requires_grad_() for x in made.values())
        return made

    def all_layers(count: int) -> dict:
        *aux, last = (predictions(count) for _ in range(LAYERS))
        return {**last, "aux_outputs": aux}

    outputs = all_layers(queries) | {"enc_outputs": predictions(queries)}
    dn_metas = {
        "dn_num": groups,
        "single_padding": group_size,
        "output_known_lbs_bboxes": all_layers(groups * group_size),
    }
    targets = [{name: x.to(device) for name, x in target.items()} for target in targets]
    return outputs, targets, dn_metas, leaves


def train_step(criterion, step) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Losses by name and the gradients of their weighted sum."""
    outputs, targets, dn_metas, leaves = step
    losses = criterion(outputs, targets, dn_metas)
    total = sum(criterion.weighted(losses).values())
    return losses, torch.autograd.grad(total, leaves)


def verify(ours: AlignDETRCriterion, objects: int, queries: int = 900, device: str = "cpu") -> None:
    """Raise AssertionError where a loss or a gradient differs from the baseline's (float64)."""
    step = random_step(objects, queries, dtype=torch.float64, device=device)
    losses, gradients = train_step(ours, step)
    expected, expected_gradients = train_step(BaselineCriterion(ours), step)
    assert losses.keys() == expected.keys(), losses.keys() ^ expected.keys()
    for name, loss in losses.items():
        torch.testing.assert_close(
            loss, expected[name], rtol=1e-5, atol=1e-7, msg=lambda text, n=name: f"{n}: {text}"
        )
    for index, (gradient, truth) in enumerate(zip(gradients, expected_gradients, strict=True)):
        torch.testing.assert_close(
            gradient, truth, rtol=1e-5, atol=1e-7, msg=lambda text, i=index: f"leaf {i}: {text}"
        )


def main() -> None:
    parser = command_line(__doc__, repeats=9)
    parser.add_argument("--objects", type=int, nargs="+", default=[10, 100, 300], metavar="N")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    repeats = min(args.repeats, 3) if args.quick else args.repeats

    report = Report(args.threads)
    ours = r50_criterion().to(args.device)
    for objects in args.objects:
        verify(ours, objects, device=args.device)
    print("aligndetr, baseline: equal in every loss and gradient (float64)")
    candidates = {BASELINE: BaselineCriterion(ours), OURS: ours}
    for objects in args.objects:
        step = random_step(objects, device=args.device)
        runs = {
            name: lambda criterion=criterion, step=step: train_step(criterion, step)
            for name, criterion in candidates.items()
        }
        report.compare(
            f"criterion + matcher, {objects} objects", interleave(runs, repeats, args.device)
        )
    report.save(args.json)


if __name__ == "__main__":
    main()
