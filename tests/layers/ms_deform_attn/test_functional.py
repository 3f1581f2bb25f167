"""The door and its implementations: same numbers as the reference, in value and gradient."""

import logging

import pytest
import torch

from aligndetr.layers import multi_scale_deformable_attn, multi_scale_deformable_attn_pytorch
from aligndetr.layers.ms_deform_attn import functional, sparse_products
from tests.builders import golden, needs_newer_dynamo, tensor

B, Q, M, L, P, D = 2, 7, 3, 4, 5, 8
SHAPES = [(11, 13), (5, 7), (3, 4), (2, 2)]
FAST = ["embedding_bag", "cpp"]
BACKENDS = ["reference", *FAST]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _skip_a_backend_that_cannot_run_here(request):
    # Asked here and not when tests are collected: the first question compiles `cpp`.
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    if "backend" in parameters:
        obstacle = functional.BACKENDS[parameters["backend"]].obstacle(CPU)
        if obstacle:
            pytest.skip(f"{parameters['backend']} {obstacle}")


def random_inputs(shapes=SHAPES, batch=B, queries=Q, heads=M, points=P, dim=D, dtype=torch.float64):
    """Value, locations (a third of them outside the map) and weights that require gradients."""
    generator = torch.Generator().manual_seed(0)
    samples = (batch, queries, heads, len(shapes), points)
    value = torch.randn(
        batch, sum(h * w for h, w in shapes), heads, dim, generator=generator, dtype=dtype
    )
    locations = torch.rand(*samples, 2, generator=generator, dtype=dtype) * 1.4 - 0.2
    weights = torch.randn(samples, generator=generator, dtype=dtype)
    return [tensor.requires_grad_() for tensor in (value, locations, weights)]


def value_and_gradients(backend, shapes, inputs, grad_out=None):
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    value, locations, weights = inputs
    out = multi_scale_deformable_attn(value, shapes, locations, weights, backend=backend)
    if grad_out is None:
        grad_out = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view(out.shape)
    gradients = torch.autograd.grad(out, inputs, grad_out)
    names = ("output", "grad_value", "grad_loc", "grad_weights")
    return dict(zip(names, (out.detach(), *gradients), strict=True))


def assert_equals_reference(backend, shapes, inputs, grad_out=None, **tolerance):
    truth = value_and_gradients("reference", shapes, inputs, grad_out)
    for name, ours in value_and_gradients(backend, shapes, inputs, grad_out).items():
        torch.testing.assert_close(
            ours, truth[name], msg=lambda m, name=name: f"{name}: {m}", **tolerance
        )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("precision", "tolerance"), [("f32", 1e-6), ("f64", 1e-13)])
def test_equals_the_recorded_numbers(backend, precision, tolerance):
    numbers = golden("msda")
    dtype = torch.float32 if precision == "f32" else torch.float64
    inputs = [
        tensor(numbers[f"core/{name}"], dtype)
        for name in ("value", "sampling_locations", "attention_weights")
    ]
    shapes, grad_out = tensor(numbers["core/spatial_shapes"]), tensor(numbers["core/grad_out"])
    for name, ours in value_and_gradients(backend, shapes, inputs, grad_out.to(dtype)).items():
        torch.testing.assert_close(
            ours,
            tensor(numbers[f"core/{precision}/{name}"]),
            rtol=tolerance,
            atol=tolerance,
            msg=lambda m, name=name: f"{name}: {m}",
        )


def one_sample(backend, location, image):
    """`image` (h, w) sampled at (x, y)."""
    h, w = image.shape
    return multi_scale_deformable_attn(
        image.reshape(1, h * w, 1, 1),
        [(h, w)],
        torch.tensor(location).view(1, 1, 1, 1, 1, 2),
        torch.ones(1, 1, 1, 1, 1),
        backend=backend,
    ).item()


@pytest.mark.parametrize("backend", BACKENDS)
def test_sampling_by_hand(backend):
    image = torch.tensor([[1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 30.0, 40.0]])
    assert one_sample(backend, (0.625, 0.25), image) == 3.0  # centre of column 2, row 0
    assert one_sample(backend, (0.5, 0.25), image) == 2.5  # between columns 1 and 2
    assert one_sample(backend, (0.5, 0.5), image) == (2 + 3 + 20 + 30) / 4
    assert one_sample(backend, (0.0, 0.25), image) == 0.5  # half of it reads the zeros outside
    assert one_sample(backend, (1.0, 1.0), image) == 10.0  # three quarters of it do
    assert one_sample(backend, (-0.125, 0.25), image) == 0.0  # a whole cell outside
    assert one_sample(backend, (7.0, -9.0), image) == 0.0


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"points": 1},
        {"heads": 1, "dim": 1},
        {"batch": 1, "queries": 1},
        {"dim": 32, "heads": 8, "points": 4},
        {"dim": 16},
        {"dim": 64},
        {"dim": 19},
        {"shapes": [(1, 1)]},
        {"shapes": [(1, 6), (5, 1), (1, 1)]},
        {"queries": 0},
        {"batch": 0},
    ],
    ids=str,
)
def test_equals_the_reference(backend, sizes):
    assert_equals_reference(backend, sizes.get("shapes", SHAPES), random_inputs(**sizes))


@pytest.mark.parametrize("gathered", [5, 512])  # 42 bags: several chunks, or one
@pytest.mark.parametrize("queries", [0, Q])
def test_embedding_bag_needs_no_mkl(monkeypatch, gathered, queries):
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    monkeypatch.setattr(sparse_products, "GATHERED", gathered)
    monkeypatch.setattr(torch, "sparse_csr_tensor", None)  # nothing asks for one
    assert_equals_reference("embedding_bag", SHAPES, random_inputs(queries=queries))


def test_embedding_bag_joins_its_chunks(monkeypatch):
    # B * Q * M = 42 bags: two whole chunks and a part.
    monkeypatch.setattr("aligndetr.layers.ms_deform_attn.embedding_bag.PART", 19)
    assert_equals_reference("embedding_bag", SHAPES, random_inputs())


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_takes_the_same_side_where_the_slope_jumps(backend, dtype):
    # On cell centres and on the map's rim the gradient of the location is one-sided.
    shapes = [(9, 13), (3, 5)]
    value, locations, weights = random_inputs(shapes, queries=200, points=2, dtype=dtype)
    size = torch.tensor([[w, h] for h, w in shapes], dtype=dtype)[:, None]
    cell = torch.randint(-3, 16, locations.shape, generator=torch.Generator().manual_seed(1))
    half_cells = torch.where(torch.arange(200)[:, None, None, None, None] < 100, 0.5, 0.0)
    locations = (cell + half_cells.to(dtype)) / size
    assert_equals_reference(backend, shapes, [value, locations, weights], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("x", [-0.125, 0.125, 0.875, 1.125])
@pytest.mark.parametrize("y", [-0.25, 0.25, 0.75, 1.25])
def test_takes_the_same_side_on_the_rim(backend, x, y):
    # Powers of two, so exact: a cell outside the map, or on the centre of its first or last.
    value, locations, weights = random_inputs([(2, 4)], batch=1, queries=1, heads=1, points=1)
    locations = torch.tensor([x, y], dtype=torch.float64).expand(locations.shape)
    assert_equals_reference(backend, [(2, 4)], [value, locations, weights])


@pytest.mark.parametrize("backend", FAST)
def test_takes_gradients_and_inputs_of_any_layout(backend):
    inputs = random_inputs()
    assert_equals_reference(
        backend, SHAPES, inputs, torch.ones((), dtype=torch.float64).expand(B, Q, M * D)
    )
    transposed = [x.detach().transpose(0, 1).contiguous().transpose(0, 1) for x in inputs]
    grad_out = torch.randn(Q, B, M * D, dtype=torch.float64).transpose(0, 1)
    assert_equals_reference(backend, SHAPES, transposed, grad_out)


@pytest.mark.parametrize("backend", FAST)
def test_passes_gradcheck(backend):
    inputs = random_inputs([(3, 4), (2, 1)], batch=1, queries=2, heads=2, points=3, dim=2)
    assert torch.autograd.gradcheck(
        lambda *x: multi_scale_deformable_attn(x[0], [(3, 4), (2, 1)], x[1], x[2], backend=backend),
        inputs,
    )


@pytest.mark.parametrize("backend", FAST)
def test_writes_every_element(backend, monkeypatch):
    # What is allocated without being filled starts as NaN, or as no index: a forgotten one shows.
    def poisoned(self, *size, **options):
        empty = new_empty(self, *size, **options)
        is_float = empty.is_floating_point()
        return empty.fill_(float("nan") if is_float else torch.iinfo(empty.dtype).min)

    new_empty = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
    for tensor_ in value_and_gradients(backend, SHAPES, random_inputs()).values():
        assert tensor_.isfinite().all()


@pytest.mark.parametrize("backend", FAST)
def test_says_that_it_has_no_second_derivative(backend):
    value, locations, weights = random_inputs()
    out = multi_scale_deformable_attn(value, SHAPES, locations, weights, backend=backend)
    (gradient,) = torch.autograd.grad(out.square().sum(), value, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_not_a_number_shows_where_it_entered(backend):
    value, locations, weights = (x.detach() for x in random_inputs())
    locations[1, 3, 2] = float("nan")
    locations[0, 0, 0, 0, 0] = float("inf")
    inputs = (value, locations, weights)
    out = value_and_gradients(backend, SHAPES, inputs)["output"].view(B, Q, M, D)
    bad = out.isnan().all(-1)
    assert bad[1, 3, 2]
    assert bad.sum() <= 2  # infinity lies outside the map: zero, or NaN by inf - inf


@pytest.mark.parametrize("backend", ["cpp"])
def test_cpp_treats_what_is_not_finite_as_the_reference(backend):
    value, locations, weights = (x.detach() for x in random_inputs())
    strange = [float("nan"), float("inf"), -float("inf"), 1e300, -1e19, 3e9]
    for index, number in enumerate(strange):
        locations[0, index, 0, 0, 0, index % 2] = number
    weights[1, 0, 0, 0, 0] = float("nan")
    value[1, 5, 1] = float("inf")
    inputs = (value, locations, weights)
    truth = value_and_gradients("reference", SHAPES, inputs)
    assert all(x.isnan().any() for name, x in truth.items() if name != "grad_value")
    for name, ours in value_and_gradients(backend, SHAPES, inputs).items():
        torch.testing.assert_close(ours, truth[name], equal_nan=True)


@pytest.mark.parametrize("backend", ["cpp"])
def test_cpp_is_deterministic_whatever_the_number_of_threads(backend):
    inputs = random_inputs(queries=300, dtype=torch.float32)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = value_and_gradients(backend, SHAPES, inputs)
        torch.set_num_threads(5)
        together = value_and_gradients(backend, SHAPES, inputs)
    finally:
        torch.set_num_threads(threads)
    for name, expected in alone.items():
        torch.testing.assert_close(together[name], expected, rtol=0, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_values_are_summed_in_float32(backend, dtype):
    value, locations, weights = (x.detach().float() for x in random_inputs())
    value = value.to(dtype)
    out = multi_scale_deformable_attn(value, SHAPES, locations, weights, backend=backend)
    assert out.dtype == dtype
    exact = multi_scale_deformable_attn(value.float(), SHAPES, locations, weights, backend=backend)
    torch.testing.assert_close(out, exact.to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("backend", [*BACKENDS, "deterministic"])
def test_autocast_changes_nothing(backend):
    inputs = [x.detach().float() for x in random_inputs()]
    plain = value_and_gradients(backend, SHAPES, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = value_and_gradients(backend, SHAPES, inputs)
    for name, expected in plain.items():
        torch.testing.assert_close(under_autocast[name], expected, rtol=0, atol=0)


def test_shapes_may_be_a_tensor():
    inputs = random_inputs()
    from_list = multi_scale_deformable_attn(inputs[0], SHAPES, *inputs[1:])
    from_tensor = multi_scale_deformable_attn(inputs[0], torch.tensor(SHAPES), *inputs[1:])
    torch.testing.assert_close(from_tensor, from_list, rtol=0, atol=0)


def test_auto_takes_embedding_bag_on_the_cpu_and_says_so_once(caplog):
    functional._announce.cache_clear()
    with caplog.at_level(logging.INFO, logger="aligndetr"):
        assert functional.choose_backend("auto", torch.device("cpu")) == "embedding_bag"
        assert functional.choose_backend("auto", torch.device("cpu")) == "embedding_bag"
    assert caplog.messages == ["Deformable attention on cpu: embedding_bag"]


def test_auto_takes_the_reference_elsewhere_and_says_why(caplog, monkeypatch):
    functional._announce.cache_clear()
    without_compiler = functional.BACKENDS["triton"]._replace(obstacle=lambda _: "has no compiler")
    monkeypatch.setitem(functional.BACKENDS, "triton", without_compiler)
    with caplog.at_level(logging.INFO, logger="aligndetr"):
        assert functional.choose_backend("auto", torch.device("cuda", 0)) == "reference"
    assert caplog.messages == ["Deformable attention on cuda: reference (triton has no compiler)"]


def test_a_fallback_is_a_warning_that_says_why(caplog, monkeypatch):
    functional._announce.cache_clear()
    monkeypatch.setenv(functional.BACKEND_VARIABLE, "cpp")
    refusal = functional.BACKENDS["cpp"]._replace(obstacle=lambda device: "has a bad day")
    monkeypatch.setitem(functional.BACKENDS, "cpp", refusal)
    for _ in range(2):
        assert functional.choose_backend("auto", CPU) == functional.choose_backend("auto", CPU)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "(cpp has a bad day" in record.message
    with pytest.raises(ValueError, match="backend 'cpp' has a bad day; use 'auto'"):
        functional.choose_backend("cpp", CPU)


def test_a_run_sets_what_auto_means(monkeypatch):
    monkeypatch.setattr(functional, "_default_backend", "auto")
    monkeypatch.delenv(functional.BACKEND_VARIABLE, raising=False)
    assert functional.set_default_backend("reference", "cpu") == "reference"
    assert functional.choose_backend("auto", CPU) == "reference"
    monkeypatch.setenv(functional.BACKEND_VARIABLE, "embedding_bag")  # wins
    assert functional.BACKENDS["embedding_bag"].obstacle(CPU) or (
        functional.choose_backend("auto", CPU) == "embedding_bag"
    )
    with pytest.raises(ValueError, match="unknown backend 'fast'.*train.ms_deform_attn"):
        functional.set_default_backend("fast", "cpu")


def test_the_environment_variable_decides_for_auto(monkeypatch):
    monkeypatch.setenv(functional.BACKEND_VARIABLE, "reference")
    assert functional.choose_backend("auto", torch.device("cpu")) == "reference"
    monkeypatch.setenv(functional.BACKEND_VARIABLE, "fast")
    with pytest.raises(ValueError, match=f"'fast'.*{functional.BACKEND_VARIABLE}"):
        functional.choose_backend("auto", torch.device("cpu"))


def test_a_backend_that_cannot_run_is_refused():
    with pytest.raises(ValueError, match="CPU only, the tensors are on cuda"):
        functional.choose_backend("embedding_bag", torch.device("cuda"))


def test_detrex_name_is_always_the_reference(monkeypatch):
    inputs = random_inputs(dtype=torch.float32)
    monkeypatch.delitem(functional.BACKENDS, "embedding_bag")
    out = multi_scale_deformable_attn_pytorch(inputs[0], SHAPES, *inputs[1:])
    assert out.shape == (B, Q, M * D)


@pytest.mark.parametrize(
    ("position", "shape", "message"),
    [
        (0, (B, 200, M, D), "hold 194 tokens but `value` has 200"),
        (0, (B, 194, M * D), "expected `value`"),
        (1, (B, Q, M, L - 1, P, 2), "`sampling_locations` is"),
        (1, (B, Q, M, L, P, 3), "`sampling_locations` is"),
        (2, (B, Q, M, P, L), "`attention_weights` is"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(position, shape, message):
    inputs = random_inputs()
    inputs[position] = torch.zeros(shape, dtype=torch.float64)
    with pytest.raises(ValueError, match=message):
        multi_scale_deformable_attn(inputs[0], SHAPES, *inputs[1:])


def attend(value, locations, weights):
    return multi_scale_deformable_attn(value, SHAPES, locations, weights)


@needs_newer_dynamo
def test_compiles_into_one_graph():
    inputs = random_inputs()
    compiled = torch.compile(attend, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), attend(*inputs))


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:FutureWarning")
def test_can_be_traced():
    inputs = [x.detach() for x in random_inputs()]
    torch.testing.assert_close(torch.jit.trace(attend, inputs)(*inputs), attend(*inputs))
