"""Segmentations that are none leave an object with its box."""

import pytest

from aligndetr.data.coco_dataset import _valid_segmentation


@pytest.mark.parametrize("counts", [[0, 400, 400], [800], "abc"])
def test_run_lengths_are_kept(counts):
    assert _valid_segmentation({"counts": counts, "size": [20, 40]})["size"] == [20, 40]


@pytest.mark.parametrize(
    "counts", [[float("inf"), 400], [0, None], [-1, 801], [0, 400], [800.0], 5]
)
def test_run_lengths_that_do_not_fill_the_mask_are_left_out(counts):
    assert _valid_segmentation({"counts": counts, "size": [20, 40]}) is None


@pytest.mark.parametrize("size", [[20], [20, None], [0, 40], "20", [20, 40, 1], [1e999, 40]])
def test_a_mask_without_a_size_is_left_out(size):
    assert _valid_segmentation({"counts": [0, 400, 400], "size": size}) is None
    assert _valid_segmentation({"counts": "abc", "size": size}) is None
