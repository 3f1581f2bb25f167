"""The numbers of the reference implementation, on any device."""

import torch

from benchmarks.gpu_checks.common import DTYPES, attention, evaluate, runs, to, train
from tests.builders import golden, golden_json, golden_tiny_batch, golden_tiny_model, tensor
from tests.criterions.test_golden_criterion import CASES, golden_losses, load, make_criterion


def golden_evaluation(device: torch.device) -> str:
    """Logits, boxes and detections of both golden images."""
    outputs, seen = golden("tiny32_outputs"), {}
    for precision, bound in (("f32", 1e-4), ("f64", 1e-6)):
        model = golden_tiny_model().to(device, DTYPES[precision]).eval()
        for image, x in enumerate(golden_tiny_batch()):
            want = f"eval/img{image}/{precision}/"
            logits, boxes, instances = evaluate(model, x)
            for name, got in (("pred_logits", logits), ("pred_boxes", boxes)):
                error = (got.cpu().double() - tensor(outputs[want + name]).double()).abs().max()
                seen[precision] = max(seen.get(precision, 0.0), error.item())
            assert instances.pred_classes.tolist() == outputs[want + "inst0/pred_classes"].tolist()
            torch.testing.assert_close(  # pixels, of images of 150 to 320
                instances.pred_boxes.tensor.cpu().double(),
                tensor(outputs[want + "inst0/pred_boxes"]).double(),
                rtol=0,
                atol=300 * bound,
            )
        assert seen[precision] < bound, f"{precision}: off by {seen[precision]:.1e}"
    return ", ".join(f"{name} off by {error:.1e}" for name, error in seen.items())


def golden_trajectory(device: torch.device) -> str:
    """Twenty steps of training, loss by loss."""
    recorded, seen = golden_json("tiny32_trajectory"), []
    for precision, bound in (("f32", 1e-3), ("f64", 1e-6)):
        model = golden_tiny_model().to(device, DTYPES[precision]).train()
        parameters = dict(model.named_parameters())
        groups = [
            group | {"params": [parameters[name] for name in group["params"]]}
            for group in recorded["param_groups"]
        ]
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8)
        totals = train(model, optimizer, golden_tiny_batch(), len(recorded[precision]["total"]))
        error = max(
            abs(got / want - 1)
            for got, want in zip(totals, recorded[precision]["total"], strict=True)
        )
        assert error < bound, f"{precision}: a loss is off by {error:.1e} of it"
        seen.append(f"{precision} off by {error:.1e}")
    return ", ".join(seen)


def golden_attention(device: torch.device) -> str:
    """Deformable attention, value and gradients, by every implementation that runs here."""
    numbers, ran = golden("msda"), []
    shapes = [tuple(shape) for shape in numbers["core/spatial_shapes"].tolist()]
    names = ("value", "sampling_locations", "attention_weights", "grad_out")
    for backend in ("reference", "deterministic", "triton"):
        if not runs(backend, device):
            continue
        for precision, bound in (("f32", 1e-5), ("f64", 1e-12)):
            given = [
                tensor(numbers[f"core/{name}"], DTYPES[precision]).to(device) for name in names
            ]
            for name, got in attention(backend, shapes, given[:3], given[3]).items():
                torch.testing.assert_close(
                    got.cpu(),
                    tensor(numbers[f"core/{precision}/{name}"]),
                    rtol=bound,
                    atol=bound,
                    msg=lambda m, what=f"{backend} {precision} {name}": f"{what}: {m}",
                )
        ran.append(backend)
    return ", ".join(ran)


def golden_criterion(device: torch.device) -> str:
    """All losses of the golden cases, and the norms of their gradients."""
    worst = 0.0
    for precision, bound in (("f32", 1e-4), ("f64", 5e-6)):
        for case in CASES:
            outputs, targets, dn_metas, leaves = load(case, DTYPES[precision])
            losses = make_criterion().to(device)(*to((outputs, targets, dn_metas), device))
            for name, want in golden_losses(case, precision).items():
                error = abs(losses[name].item() - want) / max(abs(want), 1e-6)
                assert error < bound, f"{case} {precision} {name} is off by {error:.1e} of it"
                worst = max(worst, error)
            sum(losses.values()).backward()
            for layer, tensors in leaves.items():
                for key, leaf in tensors.items():
                    want = golden("criterion")[f"{case}/{precision}/gradnorm/{layer}/{key}"].item()
                    assert abs(leaf.grad.norm().item() - want) <= 1e-3 * want, (case, layer, key)
    return f"{len(CASES)} cases, off by {worst:.1e}"
