"""Counted operations against formulas, torch's own counter, and the reference's formulation."""

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from aligndetr.layers import MultiScaleDeformableAttention, set_default_backend
from aligndetr.profiling import count_model
from tests.builders import tiny_model

HEIGHT, WIDTH = 96, 128
TOKENS = 12 * 16 + 6 * 8 + 3 * 4 + 2 * 2  # at strides 8 to 64


class OneLayer(nn.Module):
    """A detector that is one layer of deformable attention; the image gives nothing but a call."""

    B, Q, C, M, L, P = 1, 7, 24, 3, 2, 5
    SHAPES = [(4, 6), (2, 3)]
    S = 4 * 6 + 2 * 3

    def __init__(self):
        super().__init__()
        self.attention = MultiScaleDeformableAttention(
            self.C, self.M, self.L, self.P, dropout=0.0, batch_first=True
        )
        self.value = nn.Parameter(torch.randn(self.B, self.S, self.C))
        self.query = nn.Parameter(torch.randn(self.B, self.Q, self.C))
        self.reference = nn.Parameter(torch.rand(self.B, self.Q, self.L, 2))

    def forward(self, batch):
        found = self.attention(
            self.query,
            value=self.value,
            reference_points=self.reference,
            spatial_shapes=self.SHAPES,
        )
        return found + batch[0]["image"].sum()


def test_deformable_attention_costs_what_the_paper_says():
    s = OneLayer
    counts = count_model(OneLayer(), 8, 8)
    samples = s.M * s.L * s.P
    # Offsets (two numbers a sample) and weights; the value projection; the output projection.
    projections = s.Q * s.C * 3 * samples + s.S * s.C**2 + s.Q * s.C**2
    sampling = 5 * s.Q * s.L * s.P * s.C
    assert counts.flops_by_operator() == {"linear": projections, "grid_sampler": sampling}
    assert counts.flops("attention") == projections + sampling


@pytest.mark.parametrize("backend", ["auto", "embedding_bag", "reference"])
def test_every_implementation_is_counted_alike(backend):
    set_default_backend(backend, "cpu")
    assert count_model(OneLayer(), 8, 8).flops_by_operator()["grid_sampler"] == 8400


@pytest.fixture(scope="module")
def counts():
    torch.manual_seed(0)
    return count_model(tiny_model(), HEIGHT, WIDTH)


def test_products_equal_those_of_torchs_counter(counts):
    """It counts convolutions, matrix products and attention, two operations per multiply-add."""
    image = {"image": torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8)}
    # Not every build of torch counts its fused attention: let it be two matrix products.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        tiny_model().eval().requires_grad_(False)([image])
    ours = counts.flops_by_operator()
    products = sum(ours[name] for name in ("conv", "linear", "scaled_dot_product_attention"))
    assert 2 * products == counter.get_total_flops()


def test_sampling_and_attention_of_a_model(counts):
    layers, queries, dim, samples = (2, 3), 20, 32, 4 * 4
    ours = counts.flops_by_operator()
    assert ours["grid_sampler"] == 5 * samples * dim * (layers[0] * TOKENS + layers[1] * queries)
    assert ours["scaled_dot_product_attention"] == layers[1] * 2 * queries**2 * dim


def test_parts_sum_up(counts):
    parts = ("backbone", "neck", "transformer")
    assert sum(map(counts.flops, parts)) == counts.flops()
    model = tiny_model()
    assert counts.parameters() == sum(p.numel() for p in model.parameters())
    assert counts.parameters("backbone") == sum(p.numel() for p in model.backbone.parameters())


def test_a_convolution_is_its_outputs_times_its_kernel(counts):
    # The stem: 7 x 7 at stride 2, 3 to 16 channels.
    outputs = 16 * HEIGHT // 2 * WIDTH // 2
    assert counts.flops_by_operator("backbone.stem")["conv"] == outputs * 3 * 7 * 7
    assert counts.activations("backbone.stem") == outputs


def test_the_table_names_parts_down_to_the_depth(counts):
    assert "| transformer " in counts.table(depth=1)
    assert "transformer.encoder" not in counts.table(depth=1)
    assert "transformer.encoder" in counts.table(depth=2)


def test_an_image_without_pixels_is_refused():
    with pytest.raises(ValueError, match="0 x 128"):
        count_model(tiny_model(), 0, 128)
