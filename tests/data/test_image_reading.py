"""Images from file to tensor: the pixels of detectron2, with fewer copies."""

import numpy as np
import pytest
import torch
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from PIL import Image

from aligndetr.data.image_reading import PillowInput, read_image
from tests.data.coco_json import COCO_TINY

PHOTOS = sorted(COCO_TINY.rglob("*.jpg"))
EXIF_ORIENTATION = 274


class Brighten(T.Augmentation):
    """Reads pixels, and gives a transform that Pillow is not asked for."""

    def get_transform(self, image):
        return T.BlendTransform(src_image=float(image.max()), src_weight=0.25, dst_weight=0.75)


class OwnCrop(T.RandomCrop):
    """A subclass may read what its base does not."""

    def get_transform(self, image):
        assert image.any()
        return super().get_transform(image)


PIPELINES = {
    "nothing": [],
    "training": [T.RandomFlip(), T.ResizeShortestEdge([240, 300, 333], 500, "choice")],
    "training with crop": [
        T.RandomFlip(),
        T.ResizeShortestEdge([200, 250, 300], sample_style="choice"),
        T.RandomCrop("absolute_range", (192, 300)),
        T.ResizeShortestEdge([240, 300, 333], 500, "choice"),
    ],
    "upside down": [T.RandomFlip(1.0, horizontal=False, vertical=True), T.Resize((123, 77))],
    "nearest": [T.Resize((123, 77), interp=Image.NEAREST), T.RandomFlip(1.0)],
    "no resize": [T.RandomFlip(1.0), T.RandomCrop("relative", (0.5, 0.6))],
    "own augmentations": [T.RandomFlip(1.0), Brighten(), T.Resize((99, 101)), T.RandomFlip(1.0)],
    "subclass": [T.Resize((300, 320)), OwnCrop("absolute", (111, 222)), T.RandomFlip(1.0)],
    "crop over the border": [T.CropTransform(30, 40, 10_000, 10_000), T.Resize((50, 60))],
    "fixed size": [T.FixedSizeCrop((300, 900)), T.RandomFlip(1.0)],
    "nested": [T.AugmentationList([T.RandomFlip(1.0), Brighten()]), T.Resize((99, 101))],
    "several at once": [T.RandomApply(T.RandomRotation([5.0, 5.0]), 1.0), T.Resize((99, 101))],
}


def detectron2_says(path, augmentations, img_format="RGB", seed=0):
    np.random.seed(seed)
    inputs = T.AugInput(detection_utils.read_image(str(path), format=img_format))
    T.AugmentationList(augmentations)(inputs)
    return torch.as_tensor(np.ascontiguousarray(inputs.image.transpose(2, 0, 1)))


def we_say(path, augmentations, img_format="RGB", seed=0, **options):
    np.random.seed(seed)
    inputs = PillowInput(read_image(path), img_format, **options)
    inputs.augment(T.AugmentationList(augmentations))
    image = inputs.to_tensor()
    assert image.is_contiguous()
    assert image.shape[1:] == inputs.size
    return image


@pytest.mark.parametrize("img_format", ["RGB", "BGR"])
@pytest.mark.parametrize("name", PIPELINES)
def test_pixels_are_detectron2s(name, img_format):
    for seed, path in enumerate(PHOTOS * 2):
        ours = we_say(path, PIPELINES[name], img_format, seed)
        theirs = detectron2_says(path, PIPELINES[name], img_format, seed)
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_images_of_every_mode(mode, tmp_path):
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    noise = np.random.default_rng(0).integers(0, 256, (31, 45, 3)).astype(np.uint8)
    Image.fromarray(noise).convert(mode).save(path)
    for augmentations in ([], [T.Resize((40, 50))]):
        assert torch.equal(we_say(path, augmentations), detectron2_says(path, augmentations))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation, tmp_path):
    tags = Image.Exif()
    tags[EXIF_ORIENTATION] = orientation
    noise = np.random.default_rng(0).integers(0, 256, (31, 45, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "image.jpg", exif=tags)
    augmentations = [T.RandomFlip(1.0)]
    assert torch.equal(
        we_say(tmp_path / "image.jpg", augmentations),
        detectron2_says(tmp_path / "image.jpg", augmentations),
    )


@pytest.mark.parametrize("size", [(7, 5), (2100, 2050)], ids=["small", "in several blocks"])
@pytest.mark.parametrize("arrow", [True, False], ids=["arrow", "copy"])
def test_memory_of_an_image(size, arrow, monkeypatch):
    if not arrow:
        monkeypatch.delattr(Image.Image, "__arrow_c_array__", raising=False)
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    image = PillowInput(Image.fromarray(noise)).to_tensor()
    np.testing.assert_array_equal(image.numpy(), noise.transpose(2, 0, 1))


def test_tensor_outlives_the_image():
    inputs = PillowInput(Image.new("RGB", (640, 480), (1, 2, 3)))
    image = inputs.to_tensor()
    del inputs
    Image.new("RGB", (640, 480), (9, 9, 9))
    assert image.flatten(1).unique(dim=1).flatten().tolist() == [1, 2, 3]


def test_augmentations_that_need_the_size_get_no_pixels():
    class Spy(PillowInput):
        def transform(self, transform):
            assert self._array is None
            super().transform(transform)
            assert self._array is None

    Spy(Image.new("RGB", (640, 480))).augment(T.AugmentationList(PIPELINES["training with crop"]))
    with pytest.raises(AssertionError):
        Spy(Image.new("RGB", (640, 480))).augment(T.AugmentationList(PIPELINES["subclass"]))


def test_transforms_are_detectron2s():
    for seed in range(5):
        np.random.seed(seed)
        ours = PillowInput(Image.new("RGB", (640, 480))).augment(
            T.AugmentationList(PIPELINES["training with crop"])
        )
        np.random.seed(seed)
        theirs = T.AugmentationList(PIPELINES["training with crop"])(
            T.AugInput(np.zeros((480, 640, 3), np.uint8))
        )
        assert [vars(t) for t in ours] == [vars(t) for t in theirs]


@pytest.mark.parametrize("img_format", ["RGB", "BGR"])
@pytest.mark.parametrize("name", ["training", "training with crop", "upside down"])
def test_fast_resize_is_within_2_of_255(name, img_format):
    for seed, path in enumerate(PHOTOS * 2):
        ours = we_say(path, PIPELINES[name], img_format, seed, fast_resize=True)
        difference = (ours.int() - detectron2_says(path, PIPELINES[name], img_format, seed)).abs()
        assert difference.max() <= 2
        assert (difference > 0).float().mean() < 0.01


def test_fast_resize_leaves_what_is_not_bilinear_to_pillow():
    (path, *_) = PHOTOS
    ours = we_say(path, PIPELINES["nearest"], fast_resize=True)
    assert torch.equal(ours, detectron2_says(path, PIPELINES["nearest"]))


def test_fast_resize_of_floats_is_refused():
    inputs = PillowInput(Image.new("RGB", (8, 6)), fast_resize=True)
    inputs.image = inputs.image.astype(np.float32)
    with pytest.raises(ValueError, match=r"`fast_resize` is for uint8.*float32"):
        inputs.transform(T.ResizeTransform(6, 8, 12, 16))
