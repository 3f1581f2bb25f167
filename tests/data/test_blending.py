"""Blending has fvcore's pixels, whatever the weights."""

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


@pytest.mark.parametrize("adds_alike", [True, False])
@pytest.mark.parametrize(
    "image", [IMAGE, IMAGE[:, ::-1, ::-1], IMAGE / 255], ids=["rgb", "bgr", "float"]
)
def test_saturation_draws_and_blends_as_detectron2(image, adds_alike, monkeypatch):
    monkeypatch.setattr(blending, "_adds_as_dot_does", lambda: adds_alike)
    augmentation = T.RandomSaturation(0.2, 3)
    np.random.seed(0)
    expected = augmentation.get_transform(image)
    np.random.seed(0)
    found = random_saturation(augmentation, image)
    np.testing.assert_array_equal(found.src_image, expected.src_image)
    assert (found.src_weight, found.dst_weight) == (expected.src_weight, expected.dst_weight)


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
