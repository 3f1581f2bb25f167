"""The module around deformable attention: projections, reference points, initialisation."""

import itertools

import pytest
import torch

from aligndetr.layers import MultiScaleDeformableAttention
from tests.builders import golden, golden_json, needs_newer_dynamo, tensor

B, Q, C, M, L, P = 2, 7, 24, 3, 2, 5
SHAPES = [(5, 4), (3, 1)]
S = 23


def recorded_module(dtype=torch.float32):
    numbers, prefix = golden("msda"), "module/weights/"
    module = MultiScaleDeformableAttention(32, 4, 4, 4, dropout=0.0, batch_first=True)
    weights = {k.removeprefix(prefix): v for k, v in numbers.items() if k.startswith(prefix)}
    module.load_state_dict({name: tensor(array) for name, array in weights.items()})
    return module.to(dtype)


def recorded_input(name, dtype=torch.float32):
    return tensor(golden("msda")[f"module/in/{name}"], dtype)


def small_module(**overrides):
    """A module whose zero-initialised parts are random, so that nothing cancels."""
    torch.manual_seed(0)
    arguments = {"dropout": 0.0, "batch_first": True} | overrides
    module = MultiScaleDeformableAttention(C, M, L, P, **arguments)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module


def small_inputs(coordinates=4):
    return {
        "query": torch.randn(B, Q, C),
        "value": torch.randn(B, S, C),
        "reference_points": torch.rand(B, Q, L, coordinates),
        "spatial_shapes": SHAPES,
    }


@pytest.mark.parametrize(("precision", "tolerance"), [("f32", 1e-6), ("f64", 1e-13)])
@pytest.mark.parametrize(
    ("points", "mask", "pos"),
    list(itertools.product(["ref2", "ref4"], ["mask", "nomask"], ["pos", "nopos"])),
)
def test_equals_the_reference(points, mask, pos, precision, tolerance):
    dtype = torch.float32 if precision == "f32" else torch.float64
    out = recorded_module(dtype)(
        recorded_input("query", dtype),
        value=recorded_input("value", dtype),
        query_pos=recorded_input("query_pos", dtype) if pos == "pos" else None,
        key_padding_mask=recorded_input("key_padding_mask", torch.bool) if mask == "mask" else None,
        reference_points=recorded_input(points, dtype),
        spatial_shapes=recorded_input("spatial_shapes", torch.int64),
        level_start_index=recorded_input("level_start_index", torch.int64),
    )
    expected = tensor(golden("msda")[f"module/{precision}/out_{points}_{mask}_{pos}"])
    torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance)


def test_self_attention_equals_the_reference():
    out = recorded_module()(
        recorded_input("self_query"),
        query_pos=recorded_input("self_query_pos"),
        key_padding_mask=recorded_input("key_padding_mask", torch.bool),
        reference_points=recorded_input("self_ref2"),
        spatial_shapes=recorded_input("spatial_shapes", torch.int64).tolist(),
    )
    expected = tensor(golden("msda")["module/f32/out_self"])
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)


def test_offsets_start_as_the_reference():
    module = MultiScaleDeformableAttention(32, 4, 4, 4)
    expected = tensor(golden("msda")["module/init_sampling_offsets_bias"])
    torch.testing.assert_close(module.sampling_offsets.bias.detach(), expected, rtol=0, atol=1e-6)


def test_initialisation_has_the_statistics_of_the_reference():
    stats = golden_json("r50_4scale_init_stats")["stats"]
    prefix = "transformer.encoder.layers.0.attentions.0."
    torch.manual_seed(0)
    for name, parameter in MultiScaleDeformableAttention(256, 8, 4, 4).state_dict().items():
        mean, std, low, high = stats[prefix + name]
        assert parameter.mean().item() == pytest.approx(mean, abs=2e-3), name
        assert parameter.std().item() == pytest.approx(std, rel=0.01), name
        assert parameter.min().item() == pytest.approx(low, rel=1e-3), name
        assert parameter.max().item() == pytest.approx(high, rel=1e-3), name


def test_init_weights_starts_over():
    module = small_module()
    module.init_weights()
    assert module.sampling_offsets.weight.abs().max() == 0
    assert module.sampling_offsets.bias.abs().max() == P
    assert module.output_proj.bias.abs().max() == 0


def test_padding_counts_as_zero_value():
    module, inputs = small_module(), small_inputs()
    padding = torch.zeros(B, S, dtype=torch.bool)
    padding[1, 5:9] = True
    out = module(**inputs, key_padding_mask=padding)
    changed = inputs["value"].masked_fill(padding[..., None], 1e6)
    torch.testing.assert_close(
        module(**(inputs | {"value": changed}), key_padding_mask=padding), out
    )
    assert not torch.allclose(module(**inputs)[1], out[1])
    torch.testing.assert_close(module(**inputs)[0], out[0])


def test_offsets_count_in_cells_or_in_half_boxes():
    module = small_module()
    with torch.no_grad():
        module.sampling_offsets.weight.zero_()
        offsets = module.sampling_offsets.bias.view(M, L, P, 2)
    query, center, size = torch.zeros(B, Q, C), torch.rand(B, Q, L, 2), torch.rand(B, Q, L, 2)

    of_points = module._sampling_locations(query, center, SHAPES)
    cells = torch.tensor([[w, h] for h, w in SHAPES])[:, None]
    torch.testing.assert_close(
        of_points - center[:, :, None, :, None], (offsets / cells).expand(B, Q, M, L, P, 2)
    )

    of_boxes = module._sampling_locations(query, torch.cat([center, size], -1), SHAPES)
    half_boxes = size[:, :, None, :, None] / 2
    torch.testing.assert_close(of_boxes, center[:, :, None, :, None] + offsets / P * half_boxes)


def test_batch_first_changes_the_layout_only():
    inputs, pos, identity = small_inputs(), torch.randn(B, Q, C), torch.randn(B, Q, C)
    out = small_module()(**inputs, query_pos=pos, identity=identity)
    for name in ("query", "value"):
        inputs[name] = inputs[name].transpose(0, 1)
    other = small_module(batch_first=False)(
        **inputs, query_pos=pos.transpose(0, 1), identity=identity.transpose(0, 1)
    )
    torch.testing.assert_close(other.transpose(0, 1), out)


def test_identity_replaces_the_residual():
    module, inputs = small_module(), small_inputs()
    identity = torch.randn(B, Q, C)
    torch.testing.assert_close(
        module(**inputs, identity=identity) - identity, module(**inputs) - inputs["query"]
    )


@pytest.mark.parametrize("coordinates", [2, 4])
def test_locations_keep_float32_under_autocast(coordinates):
    module, inputs = small_module(), small_inputs(coordinates)
    args = (inputs["query"], inputs["reference_points"], SHAPES)
    exact = module._sampling_locations(*args)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = module._sampling_locations(*args)
    assert under_autocast.dtype == torch.float32
    torch.testing.assert_close(under_autocast, exact, rtol=0, atol=0)


def test_trains_under_autocast():
    module, inputs = small_module(), small_inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = module(**inputs)
    out.float().square().mean().backward()
    torch.testing.assert_close(out.float(), module(**inputs), rtol=0.05, atol=0.05)
    assert all(p.grad.isfinite().all() and p.grad.any() for p in module.parameters())


def test_a_misspelt_keyword_is_refused():
    with pytest.raises(TypeError, match="refrence_points"):
        small_module()(**small_inputs(), refrence_points=None)


def test_arguments_that_cannot_work_are_refused():
    inputs = small_inputs()
    with pytest.raises(ValueError, match="divisible by `num_heads`, got 30 and 8"):
        MultiScaleDeformableAttention(30, 8)
    with pytest.raises(ValueError, match="needs `reference_points` and `spatial_shapes`"):
        small_module()(inputs["query"], value=inputs["value"], spatial_shapes=SHAPES)
    for wrong in (torch.rand(B, Q, L, 3), torch.rand(B, Q, L + 1, 4)):
        with pytest.raises(ValueError, match=r"must be \(B, Q, 2, 2 or 4\)"):
            small_module()(**(inputs | {"reference_points": wrong}))


@needs_newer_dynamo
def test_compiles_into_one_graph():
    module, inputs = small_module(), small_inputs(coordinates=2)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(**inputs), module(**inputs))
