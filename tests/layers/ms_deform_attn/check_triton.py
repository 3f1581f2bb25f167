"""The Triton kernels against the reference, in value and every gradient. Run by test_triton.py.

Triton decides when it is imported whether its kernels are compiled or interpreted, so these tests
have a process of their own: with TRITON_INTERPRET=1 they run on the CPU, without on a GPU. Sizes
are small because the interpreter takes 10 to 30 ms for each sample of a block.
"""

import logging
import os

import pytest
import torch

from aligndetr.layers import multi_scale_deformable_attn
from aligndetr.layers.ms_deform_attn import functional, triton_backend

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
NAMES = ("output", "grad_value", "grad_locations", "grad_weights")
# All sizes differ, none but M is a power of two; D = 24 in blocks of 32.
B, Q, M, P, D = 1, 5, 2, 3, 24
SHAPES = [(11, 13), (5, 7), (3, 4)]


def random_inputs(shapes=SHAPES, batch=B, queries=Q, heads=M, points=P, dim=D, dtype=torch.float64):
    """Value, locations (a third of them outside the map) and weights."""
    generator = torch.Generator().manual_seed(0)
    tokens, samples = sum(h * w for h, w in shapes), (batch, queries, heads, len(shapes), points)
    inputs = (
        torch.randn(batch, tokens, heads, dim, generator=generator, dtype=dtype),
        torch.rand(*samples, 2, generator=generator, dtype=dtype) * 1.4 - 0.2,
        torch.randn(samples, generator=generator, dtype=dtype),
    )
    return [x.to(DEVICE) for x in inputs]


def random_grad_out(inputs):
    """Of the values' dtype and exactly representable in all: it is not what is tested."""
    value, locations, _ = inputs
    shape = (*locations.shape[:2], value.shape[2] * value.shape[3])
    generator = torch.Generator().manual_seed(1)
    return torch.randint(-8, 9, shape, generator=generator).div(4).to(value)


def value_and_gradients(backend, shapes, inputs, grad_out):
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    out = multi_scale_deformable_attn(inputs[0], shapes, *inputs[1:], backend=backend)
    assert out.dtype == inputs[0].dtype
    gradients = torch.autograd.grad(out, inputs, grad_out)
    assert [g.dtype for g in gradients] == [x.dtype for x in inputs]
    return dict(zip(NAMES, (out.detach(), *gradients), strict=True))


def assert_equals_reference(shapes, inputs, grad_out=None, tolerance=1e-12, ignore=None):
    """In units of each result's largest number, against the reference in float64.

    tolerance: one number, or one for each of NAMES.
    ignore: (B, Q, M, L, P) bool, samples whose location gradient is not compared.
    """
    grad_out = random_grad_out(inputs) if grad_out is None else grad_out
    ours = value_and_gradients("triton", shapes, inputs, grad_out)
    exact = [x.double() for x in inputs]
    truth = value_and_gradients("reference", shapes, exact, grad_out.double())
    if ignore is not None:
        for results in (ours, truth):
            results["grad_locations"] = results["grad_locations"].masked_fill(ignore[..., None], 0)
    for name in NAMES:
        bound = tolerance[name] if isinstance(tolerance, dict) else tolerance
        scale = (truth[name].abs().max().item() if truth[name].numel() else 0) or 1.0
        torch.testing.assert_close(
            ours[name].double() / scale,
            truth[name] / scale,
            rtol=0,
            atol=bound,
            msg=lambda m, name=name: f"{name}: {m}",
        )


def near_a_kink(locations, shapes):
    """Samples within 1e-3 cells of a cell's centre line, where float32 may take either slope."""
    size = torch.tensor([[w, h] for h, w in shapes], dtype=torch.float64, device=locations.device)
    position = locations.double() * size[:, None] - 0.5
    return ((position - position.round()).abs() < 1e-3).any(-1)


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"batch": 2, "queries": 3, "points": 1},
        {"heads": 1, "dim": 1, "points": 2},
        {"heads": 1, "dim": 96, "queries": 9, "points": 1},  # 4 queries in a block
        {"shapes": [(1, 6), (5, 1), (1, 1)], "points": 2},
        {"shapes": [(4, 3)] * 5, "heads": 1, "points": 1},
        {"queries": 0},
        {"batch": 0},
    ],
    ids=str,
)
def test_float64_equals_the_reference(sizes):
    assert_equals_reference(sizes.get("shapes", SHAPES), random_inputs(**sizes))


def test_borders_centres_and_far_outside():
    # Sizes are powers of two, so a half cell is exact and both take the same side of a kink.
    shapes = [(4, 8), (2, 1)]
    value, locations, weights = random_inputs(shapes, queries=16, heads=1, points=4, dim=8)
    size = torch.tensor([[w, h] for h, w in shapes], dtype=torch.float64, device=DEVICE)
    half_cells = torch.randint(-4, 21, locations.shape, generator=torch.Generator().manual_seed(2))
    locations = half_cells.to(DEVICE) / 2 / size[:, None]
    locations[0, 0, 0, 0] = torch.tensor([[-1e9, 0.5], [0.5, 1e9], [3.0, 0.5], [0.5, -2.0]])
    assert_equals_reference(shapes, (value, locations, weights))


def test_float32():
    inputs = random_inputs(heads=1, dtype=torch.float32)
    kinks = near_a_kink(inputs[1], SHAPES)
    assert kinks.float().mean() < 0.1
    assert_equals_reference(SHAPES, inputs, tolerance=2e-6, ignore=kinks)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_values_are_summed_in_float32(dtype):
    inputs = random_inputs(queries=4, heads=1, dim=16, dtype=torch.float32)
    inputs[0] = inputs[0].to(dtype)
    rounding = torch.finfo(dtype).eps / 2  # of the result alone, once
    # The interpreter cuts bfloat16 off where a GPU rounds to the nearest.
    stored = rounding * 2 if (dtype, DEVICE) == (torch.bfloat16, "cpu") else rounding
    tolerance = {
        "output": stored + 1e-6,
        "grad_value": rounding + 1e-6,
        "grad_locations": 2e-6,
        "grad_weights": 2e-6,
    }
    kinks = near_a_kink(inputs[1], SHAPES)
    assert_equals_reference(SHAPES, inputs, tolerance=tolerance, ignore=kinks)


def test_takes_gradients_and_inputs_of_any_layout():
    inputs = random_inputs(batch=2, queries=3, points=1)
    transposed = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in inputs]
    grad_out = random_grad_out(inputs)
    assert_equals_reference(SHAPES, transposed, grad_out[:1, :1, :1].expand_as(grad_out))


def test_not_a_number_reads_nothing_and_shows_where_it_entered():
    value, locations, weights = random_inputs(heads=1, points=1)
    locations[0, 3, 0, 1, 0, 0] = float("nan")
    locations[0, 1, 0, 2, 0] = torch.tensor([float("inf"), -float("inf")])
    inputs = (value, locations, weights)
    results = value_and_gradients("triton", SHAPES, inputs, random_grad_out(inputs))
    assert results["output"].isnan().all(-1)[0].tolist() == [False, False, False, True, False]
    assert results["grad_value"].isfinite().all()
    assert results["grad_locations"].isnan().any(-1).nonzero().tolist() == [[0, 3, 0, 1, 0]]
    assert results["grad_weights"][0, 1, 0, 2, 0] == 0


@pytest.fixture
def deterministic_algorithms():
    """torch.empty also fills with NaN then: an element that no kernel writes shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("deterministic_algorithms")
def test_deterministic_algorithms_add_nothing_by_atomics(monkeypatch):
    options, launch = [], triton_backend._launch
    monkeypatch.setattr(
        triton_backend, "_launch", lambda *args, **kw: (options.append(kw), launch(*args, **kw))
    )
    inputs = random_inputs([(1, 2), (3, 1)], queries=20, heads=1, points=1, dtype=torch.float32)
    grad_out = random_grad_out(inputs)
    first, second = (
        value_and_gradients("triton", [(1, 2), (3, 1)], inputs, grad_out) for _ in range(2)
    )
    for name in NAMES:
        assert first[name].isfinite().all(), name
        assert torch.equal(first[name], second[name]), name
    assert [kw["ADD_TO_VALUE"] for kw in options if kw] == [False, False]


@pytest.mark.usefixtures("deterministic_algorithms")
def test_deterministic_gradients_equal_the_reference():
    inputs = random_inputs(batch=2, queries=3, heads=1, points=2)
    ours = value_and_gradients("triton", SHAPES, inputs, random_grad_out(inputs))
    torch.use_deterministic_algorithms(False)  # grid_sample refuses on a GPU
    truth = value_and_gradients("reference", SHAPES, inputs, random_grad_out(inputs))
    for name in NAMES:
        torch.testing.assert_close(ours[name], truth[name], msg=name)


def test_autocast_changes_nothing():
    inputs = random_inputs(queries=2, heads=1, points=1, dtype=torch.float32)
    grad_out = random_grad_out(inputs)
    plain = value_and_gradients("triton", SHAPES, inputs, grad_out)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        under_autocast = value_and_gradients("triton", SHAPES, inputs, grad_out)
    for name in NAMES:  # atomics: on a GPU the order of addends differs
        torch.testing.assert_close(under_autocast[name], plain[name], msg=name)


def test_says_that_it_has_no_second_derivative():
    value, locations, weights = random_inputs(queries=1, heads=1, points=1)
    value.requires_grad_()
    out = multi_scale_deformable_attn(value, SHAPES, locations, weights, backend="triton")
    (gradient,) = torch.autograd.grad(out.square().sum(), value, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_evaluation_in_inference_mode_comes_before_training():
    shapes = [(2, 3), (1, 2)]  # of this test alone: nothing is cached for them
    inputs = random_inputs(shapes, queries=1, heads=1, points=1)
    with torch.inference_mode():
        multi_scale_deformable_attn(inputs[0], shapes, *inputs[1:], backend="triton")
    assert_equals_reference(shapes, inputs)


def test_is_chosen_on_a_gpu_and_elsewhere_by_the_environment_variable(monkeypatch, caplog):
    device = torch.device(DEVICE)
    assert (functional.choose_backend("auto", device) == "triton") == (DEVICE == "cuda")
    functional._announce.cache_clear()
    monkeypatch.setenv(functional.BACKEND_VARIABLE, "triton")
    with caplog.at_level(logging.INFO, logger="aligndetr"):
        assert functional.choose_backend("auto", device) == "triton"
    assert any("triton" in message for message in caplog.messages)


def test_what_fails_in_a_first_call_is_not_chosen(monkeypatch):
    device = torch.device(DEVICE)
    assert triton_backend.obstacle_to_triton(device) is None

    def no_compiler(*args, **kwargs):
        raise RuntimeError("Failed to find C compiler\nand more lines")

    triton_backend._failure_on.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(triton_backend, "_launch", no_compiler)
        reason = triton_backend.obstacle_to_triton(device)
        assert reason == "failed in a first call (RuntimeError: Failed to find C compiler)"
        with pytest.raises(ValueError, match="'triton' failed in a first call.*use 'auto'"):
            functional.choose_backend("triton", device)
        assert functional.choose_backend("auto", device) != "triton"
        assert functional.choose_backend("auto", device)  # asked twice, found out once
    triton_backend._failure_on.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(triton_backend, "_launch", lambda *args: args[3][0].fill_(7.0))
        assert "got 7.0 in a first call" in triton_backend.obstacle_to_triton(device)
    triton_backend._failure_on.cache_clear()


if DEVICE == "cuda":  # the interpreter would take minutes

    def test_more_than_two_to_the_31_values():
        shapes, heads, dim = [(8200, 8200)], 1, 32  # 2.15e9 numbers, 4.3 GB in float16
        value = torch.zeros(1, 8200 * 8200, heads, dim, dtype=torch.float16, device=DEVICE)
        value[0, -1] = 1.0
        locations = torch.ones(1, 1, heads, 1, 1, 2, device=DEVICE) - 0.5 / 8200
        weights = torch.ones(1, 1, heads, 1, 1, device=DEVICE)
        out = multi_scale_deformable_attn(value, shapes, locations, weights, backend="triton")
        torch.testing.assert_close(out, torch.ones_like(out), rtol=0, atol=5e-3)
