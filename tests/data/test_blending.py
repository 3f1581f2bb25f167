"""Blending has fvcore's pixels, whatever the weights."""

from functools import partial

import numpy as np
import pytest
from detectron2.data import transforms as T
from fvcore.transforms.transform import BlendTransform

from aligndetr.data import blending
from aligndetr.data.blending import blend, random_saturation

IMAGE = np.random.default_rng(0).integers(0, 256, (31, 43, 3)).astype(np.uint8)
GREY = IMAGE.dot([0.299, 0.587, 0.114])[:, :, None]


class OwnBlend(BlendTransform):
    pass


@pytest.mark.parametrize(
    "augmentation",
    [T.RandomBrightness(0.2, 3), T.RandomContrast(0.2, 3), T.RandomSaturation(0.2, 3)],
    ids=lambda augmentation: type(augmentation).__name__,
)
def test_colour_augmentations(augmentation):
    for _ in range(100):
        transform = augmentation.get_transform(IMAGE)
        blended = blend(IMAGE, transform)
        assert blended.dtype == np.uint8
        np.testing.assert_array_equal(blended, transform.apply_image(IMAGE))


IMAGES = {"rgb": IMAGE, "bgr": IMAGE[:, ::-1, ::-1], "float": IMAGE / 255}


def drawn_alike(image):
    """The change of saturation as detectron2 draws it, and ours."""
    augmentation = T.RandomSaturation(0.2, 3)
    for get_transform in (augmentation.get_transform, partial(random_saturation, augmentation)):
        np.random.seed(0)
        yield get_transform(image)


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize("dot", ["as it is", "adds otherwise"])
def test_saturation_is_drawn_and_blended_as_in_detectron2(image, dot, monkeypatch):
    if dot == "adds otherwise":
        monkeypatch.setattr(blending, "_adds_as_dot_does", lambda: False)
    theirs, ours = drawn_alike(image)
    np.testing.assert_array_equal(ours.src_image, theirs.src_image)
    assert (ours.src_weight, ours.dst_weight) == (theirs.src_weight, theirs.dst_weight)


def test_saturation_adds_one_channel_to_the_next(monkeypatch):
    """As dot products do where a product is rounded before it is added, which not all do."""
    monkeypatch.setattr(blending, "_adds_as_dot_does", lambda: True)
    theirs, ours = drawn_alike(IMAGE)
    red, green, blue = (IMAGE[..., channel].astype(np.float64) for channel in range(3))
    expected = (red * 0.299 + green * 0.587) + blue * 0.114
    np.testing.assert_array_equal(ours.src_image[..., 0], expected)
    np.testing.assert_allclose(ours.src_image, theirs.src_image, rtol=1e-15, atol=0)
    assert (ours.src_weight, ours.dst_weight) == (theirs.src_weight, theirs.dst_weight)


@pytest.mark.parametrize("order", ["F", "C"])
@pytest.mark.parametrize("src_image", [np.float32(3.7), 255, GREY, GREY.astype(np.float32)])
def test_memory_in_any_order(src_image, order):
    transform = BlendTransform(src_image, 0.31, 0.69)
    for image in (np.array(IMAGE, order=order), IMAGE[::-1, :, ::-1]):
        np.testing.assert_array_equal(blend(image, transform), transform.apply_image(image))


def test_one_channel():
    transform = BlendTransform(GREY, 0.31, 0.69)
    image = IMAGE[:, :, :1]
    np.testing.assert_array_equal(blend(image, transform), transform.apply_image(image))


@pytest.mark.parametrize(
    ("image", "transform"),
    [
        (IMAGE, T.HFlipTransform(43)),
        (IMAGE, OwnBlend(0, 0.3, 0.7)),
        (IMAGE / 255, BlendTransform(0, 0.3, 0.7)),
        (IMAGE, BlendTransform(IMAGE[::-1], 0.3, 0.7)),
        (IMAGE, BlendTransform(np.ones(3), 0.3, 0.7)),
    ],
    ids=["flip", "subclass", "float", "another image", "a number per channel"],
)
def test_the_rest_is_left_to_fvcore(image, transform):
    assert blend(image, transform) is None
