"""Gradients summed in a fixed order: those of the reference, and the same bits in every run."""

import pytest
import torch

from aligndetr.layers.ms_deform_attn import deterministic
from aligndetr.layers.ms_deform_attn.deterministic import (
    deterministic_value_gradient,
    level_table,
    ms_deform_attn_deterministic,
)
from aligndetr.layers.ms_deform_attn.reference import ms_deform_attn_reference

SHAPES = [(11, 13), (5, 7), (3, 4), (2, 2)]
B, Q, M, P, D = 2, 7, 3, 5, 8


def random_inputs(shapes=SHAPES, batch=B, queries=Q, heads=M, points=P, dim=D, dtype=torch.float64):
    """Value, locations (a third of them outside the map) and weights."""
    generator = torch.Generator().manual_seed(0)
    tokens, samples = sum(h * w for h, w in shapes), (batch, queries, heads, len(shapes), points)
    return (
        torch.randn(batch, tokens, heads, dim, generator=generator, dtype=dtype),
        torch.rand(*samples, 2, generator=generator, dtype=dtype) * 1.4 - 0.2,
        torch.randn(samples, generator=generator, dtype=dtype),
    )


def value_and_gradients(implementation, shapes, inputs, grad_out=None):
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    out = implementation(inputs[0], shapes, *inputs[1:])
    if grad_out is None:
        grad_out = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view(out.shape)
    names = ("output", "grad_value", "grad_locations", "grad_weights")
    return dict(
        zip(names, (out.detach(), *torch.autograd.grad(out, inputs, grad_out)), strict=True)
    )


def assert_equals_reference(shapes, inputs, grad_out=None, **tolerance):
    truth = value_and_gradients(ms_deform_attn_reference, shapes, inputs, grad_out)
    ours = value_and_gradients(ms_deform_attn_deterministic, shapes, inputs, grad_out)
    for name, tensor in ours.items():
        torch.testing.assert_close(
            tensor, truth[name], msg=lambda m, name=name: f"{name}: {m}", **tolerance
        )


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"points": 1},
        {"heads": 1, "dim": 1},
        {"batch": 1, "queries": 1},
        {"shapes": [(1, 1)]},
        {"shapes": [(1, 6), (5, 1), (1, 1)]},
        {"queries": 0},
        {"batch": 0},
    ],
    ids=str,
)
def test_equals_the_reference(sizes):
    assert_equals_reference(sizes.get("shapes", SHAPES), random_inputs(**sizes))


def test_joins_its_chunks(monkeypatch):
    monkeypatch.setattr(deterministic, "CHUNK", 8)  # of Q * M = 21 bags: two chunks and a part
    assert_equals_reference(SHAPES, random_inputs())


def test_takes_the_same_side_where_the_slope_jumps():
    shapes = [(9, 13), (3, 5)]
    value, locations, weights = random_inputs(shapes, queries=200, points=2, dtype=torch.float32)
    size = torch.tensor([[w, h] for h, w in shapes], dtype=torch.float32)[:, None]
    half_cells = torch.randint(-6, 32, locations.shape, generator=torch.Generator().manual_seed(1))
    assert_equals_reference(shapes, (value, half_cells / 2 / size, weights), rtol=1e-4, atol=1e-4)


def test_takes_gradients_and_inputs_of_any_layout():
    inputs = random_inputs()
    assert_equals_reference(SHAPES, inputs, torch.ones((), dtype=torch.float64).expand(B, Q, M * D))
    transposed = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in inputs]
    assert_equals_reference(
        SHAPES, transposed, torch.randn(Q, B, M * D, dtype=torch.float64).transpose(0, 1)
    )


def test_every_run_gives_the_same_bits():
    # All samples in two cells: float32 sums of thousands of terms, which any other order changes.
    value, locations, weights = random_inputs([(1, 2)], queries=1000, dtype=torch.float32)
    grad_out = torch.randn(B, 1000, M * D, generator=torch.Generator().manual_seed(2))
    gradient = deterministic_value_gradient(grad_out, [(1, 2)], locations, weights)
    for _ in range(3):
        again = deterministic_value_gradient(grad_out, [(1, 2)], locations, weights)
        assert torch.equal(gradient, again)
    flipped = [x.flip(1) for x in (locations, weights)]
    other_order = deterministic_value_gradient(grad_out.flip(1), [(1, 2)], *flipped)
    assert not torch.equal(gradient, other_order)  # so the equality above says something
    torch.testing.assert_close(gradient, other_order, rtol=1e-4, atol=1e-3)


def test_uses_only_deterministic_operations():
    torch.use_deterministic_algorithms(True)  # an operation that has no such form raises
    try:
        assert_equals_reference(SHAPES, random_inputs())
    finally:
        torch.use_deterministic_algorithms(False)


def test_not_a_number_shows_in_the_gradient():
    value, locations, weights = random_inputs()
    locations[1, 3, 2, 0, 0] = float("nan")
    gradients = value_and_gradients(
        ms_deform_attn_deterministic, SHAPES, (value, locations, weights)
    )
    assert gradients["grad_locations"][1, 3, 2, 0, 0].isnan().all()
    assert gradients["grad_locations"].isnan().sum() == 2
    assert gradients["grad_value"].isfinite().all()


def test_says_that_it_has_no_second_derivative():
    value, locations, weights = random_inputs()
    value.requires_grad_()
    out = ms_deform_attn_deterministic(value, SHAPES, locations, weights)
    (gradient,) = torch.autograd.grad(out.square().sum(), value, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_level_table_made_in_inference_mode_serves_training():
    shapes = [(3, 17), (2, 19)]
    with torch.inference_mode():
        table = level_table(shapes, torch.device("cpu"))
    assert table.tolist() == [[3, 17, 0], [2, 19, 51]]
    assert not table.is_inference()
    assert level_table(shapes, torch.device("cpu")) is table
