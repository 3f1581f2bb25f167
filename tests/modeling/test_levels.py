import pytest
import torch

from aligndetr.modeling import (
    FeatureLevels,
    check_num_levels,
    encoder_reference_points,
    padding_masks,
    propose_from_tokens,
    valid_ratio,
)

SHAPES = [(11, 13), (5, 7), (3, 4), (2, 2)]


def test_tokens_are_joined_row_by_row_from_fine_to_coarse():
    batch, channels = 2, 3
    maps = [torch.randn(batch, channels, h, w) for h, w in SHAPES]
    masks = [torch.rand(batch, h, w) > 0.5 for h, w in SHAPES]
    positions = [torch.randn_like(m) for m in maps]
    embeds = torch.randn(4, channels)
    levels = FeatureLevels.from_maps(maps, masks, positions, embeds)
    start = 0
    for level, (h, w) in enumerate(SHAPES):
        y, x = h - 1, w // 2
        token = start + y * w + x
        assert torch.equal(levels.tokens[:, token], maps[level][:, :, y, x])
        assert torch.equal(levels.padding_mask[:, token], masks[level][:, y, x])
        expected = positions[level][:, :, y, x] + embeds[level]
        assert torch.equal(levels.positions[:, token], expected)
        start += h * w
    assert levels.tokens.shape == (batch, start, channels)
    assert levels.spatial_shapes == SHAPES


def test_wrong_number_of_levels_is_an_error():
    maps, mask = [torch.zeros(1, 3, 2, 2)], torch.zeros(1, 2, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="got 1 feature maps but `num_feature_levels` is 4"):
        FeatureLevels.from_maps(maps, [mask], maps, torch.zeros(4, 3))


def test_padding_masks_and_valid_ratios():
    (mask,) = padding_masks([(8, 12), (4, 6)], (8, 12), [(4, 6)], torch.device("cpu"))
    assert not mask[0].any()
    assert (~mask[1]).nonzero().amax(0).tolist() == [1, 2]  # 2 of 4 rows, 3 of 6 columns
    assert valid_ratio(mask).tolist() == [[1.0, 1.0], [0.5, 0.5]]


def test_reference_points_without_padding_are_cell_centres():
    points = encoder_reference_points(SHAPES, torch.ones(2, 4, 2))
    assert points.shape == (2, sum(h * w for h, w in SHAPES), 4, 2)
    torch.testing.assert_close(points[1, 13 + 2, 3], torch.tensor([2.5 / 13, 1.5 / 11]))
    torch.testing.assert_close(points[0, -1, 0], torch.tensor([0.75, 0.75]))


def test_proposals_sit_on_their_token_and_double_in_size():
    mask = torch.zeros(1, sum(h * w for h, w in SHAPES), dtype=torch.bool)
    proposals, unusable = propose_from_tokens(mask, SHAPES)
    boxes = proposals.sigmoid()
    torch.testing.assert_close(boxes[0, 13 + 2], torch.tensor([2.5 / 13, 1.5 / 11, 0.05, 0.05]))
    torch.testing.assert_close(boxes[0, -1], torch.tensor([0.75, 0.75, 0.4, 0.4]))
    assert not unusable.any()


def test_levels_that_cannot_give_a_proposal_are_refused():
    shapes = [(4, 4)] * 6
    _, unusable = propose_from_tokens(torch.zeros(1, 6 * 16, dtype=torch.bool), shapes)
    usable = [not level.all() for level in unusable.view(6, 16)]
    assert usable == [True] * 5 + [False]
    check_num_levels(5)
    with pytest.raises(ValueError, match=r"num_feature_levels` \(=6\) must be at most 5"):
        check_num_levels(6)


def test_padding_and_border_tokens_cannot_be_proposals():
    # One row of 60 cells: the first centre is at 0.5 / 60 < 0.01, the last at 1 - 0.5 / 60.
    mask = torch.zeros(2, 60, dtype=torch.bool)
    mask[1, 30:] = True
    proposals, unusable = propose_from_tokens(mask, [(1, 60)])
    assert unusable[0].nonzero().flatten().tolist() == [0, 59]
    assert unusable[1].nonzero().flatten().tolist() == list(range(30, 60))
    assert (proposals[unusable].sigmoid() == 1).all()
    # With half of the row padded the coordinates are of the unpadded half.
    torch.testing.assert_close(proposals[1, 15].sigmoid()[0], torch.tensor(15.5 / 30))
