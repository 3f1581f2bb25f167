"""Backbones that need images of a certain size get them."""

import pytest

from aligndetr.modeling import ChannelMapper, SimpleFeaturePyramid, ViT
from tests.builders import golden_tiny_batch, tiny_model


def padded_size(model):
    """Of two images of 128 x 160 and 112 x 144 pixels."""
    return tuple(model.preprocess_image(golden_tiny_batch()).tensor.shape[-2:])


def test_a_detector_pads_to_the_square_that_its_backbone_asks_for(monkeypatch):
    model = tiny_model()
    assert padded_size(model) == (128, 160)
    monkeypatch.setattr(type(model.backbone), "padding_constraints", {"square_size": 192})
    assert padded_size(model) == (192, 192)


@pytest.mark.parametrize(("square_pad", "expected"), [(0, (128, 160)), (192, (192, 192))])
def test_a_plain_vit_asks_for_the_square_that_it_was_given(square_pad, expected):
    pytest.importorskip("timm")
    backbone = SimpleFeaturePyramid(
        ViT(img_size=64, embed_dim=32, depth=1, num_heads=2),
        in_feature="last_feat",
        out_channels=32,
        scale_factors=[2.0, 1.0, 0.5],
        square_pad=square_pad,
    )
    neck = ChannelMapper(None, None, 32, kernel_size=1, num_outs=4)
    assert padded_size(tiny_model(backbone=backbone, neck=neck)) == expected
