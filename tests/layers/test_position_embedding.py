import math

import pytest
import torch

from aligndetr.layers import PositionEmbeddingSine, get_sine_pos_embed
from tests.builders import golden, tensor


@pytest.mark.parametrize(
    ("num_pos_feats", "mask", "out"),
    [(16, "mask", "out"), (128, "mask", "out128"), (16, "mask_all_padded", "out_all_padded")],
)
def test_map_embedding_equals_the_reference(num_pos_feats, mask, out):
    numbers = golden("layers")
    embed = PositionEmbeddingSine(num_pos_feats, normalize=True, offset=-0.5)
    embedding = embed(tensor(numbers[f"pos/{mask}"]))
    torch.testing.assert_close(embedding, tensor(numbers[f"pos/{out}"]), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("positions", "out", "options"),
    [
        ("in4", "out4", {}),
        ("in4", "out4_npf16", {"num_pos_feats": 16}),
        ("in4", "out4_noexch", {"exchange_xy": False}),
        ("in2", "out2", {}),
    ],
)
def test_coordinate_embedding_equals_the_reference(positions, out, options):
    numbers = golden("layers")
    embedding = get_sine_pos_embed(tensor(numbers[f"sine/{positions}"]), **options)
    torch.testing.assert_close(embedding, tensor(numbers[f"sine/{out}"]), rtol=0, atol=1e-6)


def test_map_embedding_holds_y_then_x():
    # With two features a coordinate is its sine and cosine, counted from 1.
    embedding = PositionEmbeddingSine(num_pos_feats=2)(torch.zeros(1, 3, 5, dtype=torch.bool))
    y, x = 2.0, 4.0
    expected = torch.tensor([math.sin(y), math.cos(y), math.sin(x), math.cos(x)])
    torch.testing.assert_close(embedding[0, :, 1, 3], expected)


def test_normalised_coordinates_are_those_of_the_valid_part():
    embed = PositionEmbeddingSine(num_pos_feats=6, normalize=True, offset=-0.5)
    padded = torch.ones(1, 9, 11, dtype=torch.bool)
    padded[:, :5, :7] = False
    alone = embed(torch.zeros(1, 5, 7, dtype=torch.bool))
    torch.testing.assert_close(embed(padded)[:, :, :5, :7], alone)


def test_cell_centres_agree_with_the_embedding_of_coordinates():
    # The decoder embeds boxes as the encoder embeds cells: same coordinates, same features.
    h, w = 4, 6
    embed = PositionEmbeddingSine(num_pos_feats=8, normalize=True, offset=-0.5, eps=0.0)
    of_cells = embed(torch.zeros(1, h, w, dtype=torch.bool))[0, :, 2, 5]
    of_point = get_sine_pos_embed(torch.tensor([5.5 / w, 2.5 / h]), num_pos_feats=8)
    torch.testing.assert_close(of_cells, of_point)


def test_any_leading_dimensions():
    assert get_sine_pos_embed(torch.rand(2, 7, 3, 4), num_pos_feats=10).shape == (2, 7, 3, 40)
    assert get_sine_pos_embed(torch.rand(0, 4), num_pos_feats=10).shape == (0, 40)


def test_an_odd_number_of_features_ends_with_a_sine():
    x = torch.rand(3, 2, dtype=torch.float64)
    odd = get_sine_pos_embed(x, num_pos_feats=5, exchange_xy=False).view(3, 2, 5)
    for i in range(5):
        phase = x * 2 * math.pi / 10000 ** (2 * (i // 2) / 5)
        expected = phase.cos() if i % 2 else phase.sin()
        torch.testing.assert_close(odd[..., i], expected, rtol=1e-6, atol=1e-6)
    assert PositionEmbeddingSine(5)(torch.zeros(1, 2, 3, dtype=torch.bool)).shape == (1, 10, 2, 3)
