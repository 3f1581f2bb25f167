"""What can be given as an image, and what each thing that cannot is told."""

import numpy as np
import pytest
import torch
from PIL import Image

from aligndetr.inference import ImageError, load_image

COLORS = np.random.default_rng(0).integers(0, 256, (7, 5, 3)).astype(np.uint8)


def pixels(source, **options):
    image = load_image(source, **options)
    assert image.mode == "RGB"
    return np.asarray(image)


def test_colours_come_through_unchanged(tmp_path):
    Image.fromarray(COLORS).save(tmp_path / "image.png")
    tensor = torch.tensor(COLORS).permute(2, 0, 1)
    strided = np.asarray(np.flip(np.flip(COLORS)))
    for source in (tmp_path / "image.png", Image.fromarray(COLORS), COLORS, strided, tensor):
        np.testing.assert_array_equal(pixels(source), COLORS)
    np.testing.assert_array_equal(pixels(tensor / 255), COLORS)


def test_grey_images_get_three_channels(tmp_path):
    grey = COLORS[:, :, 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    for source in (tmp_path / "grey.png", grey, grey[:, :, None], torch.tensor(grey)[None]):
        np.testing.assert_array_equal(pixels(source), np.stack([grey] * 3, axis=2))


@pytest.mark.parametrize("mode", ["CMYK", "RGBA", "P", "LA", "1", "YCbCr"])
def test_other_modes_are_converted_as_for_training(mode):
    image = Image.fromarray(COLORS).convert(mode)
    np.testing.assert_array_equal(pixels(image), np.asarray(image.convert("RGB")))


def test_the_previews_in_a_phones_photograph_are_no_frames(tmp_path):
    first, second = Image.fromarray(COLORS), Image.fromarray(COLORS[::-1])
    first.save(tmp_path / "phone.jpg", "MPO", save_all=True, append_images=[second], quality=95)
    assert Image.open(tmp_path / "phone.jpg").n_frames == 2
    assert pixels(tmp_path / "phone.jpg").shape == COLORS.shape


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory):
    """Files that are not what they should be, by name."""
    tmp_path = tmp_path_factory.mktemp("spoilt")
    noise = np.random.default_rng(0).integers(0, 256, (50, 40, 3)).astype(np.uint8)
    image = Image.fromarray(noise)
    image.save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:900])
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "empty.jpg").touch()
    Image.fromarray(noise[:, :, 0].astype(np.uint16) * 200).save(tmp_path / "deep.png")
    image.save(tmp_path / "film.gif", save_all=True, append_images=[image.rotate(90)])
    # 20,000 pixels square, of one colour: 150 kB on disk, 1.2 GB decoded.
    Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png")
    Image.new("1", (10_000, 10_000)).save(tmp_path / "large.png")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cut.jpg", "cannot be decoded .* is it complete"),
        ("text.jpg", "is not an image that Pillow knows"),
        ("empty.jpg", "is not an image that Pillow knows"),
        ("deep.png", r"more than 8 bits per channel .*'I;16'"),
        ("film.gif", "has 2 frames or pages; choose one"),
        ("huge.png", r"has 20000 x 20000 pixels .* more than the 89000000 .*tiles"),
        ("large.png", r"has 10000 x 10000 pixels .* more than the 89000000 .*tiles"),
        (".", r"is a folder; give its files"),
    ],
)
def test_a_bad_file_is_named_with_what_is_wrong(name, message, spoilt):
    with pytest.raises(ImageError, match=message) as error:
        load_image(spoilt / name)
    assert repr(str(spoilt / name)) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match=r"image 'no/such.jpg' does not exist"):
        load_image("no/such.jpg")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (COLORS / 255, "the array has dtype float64; expected uint8"),
        (COLORS.astype(np.uint16), "dtype uint16"),
        (COLORS.transpose(2, 0, 1), r"shape \(3, 7, 5\); expected \(H, W, 3\)"),
        (np.zeros((4, 4, 4), np.uint8), r"RGBA give image\[..., :3\]"),
        (COLORS[None], r"shape \(1, 7, 5, 3\).* list\(images\)"),
        (COLORS[:0], "the array is empty: 5 x 0 pixels"),
        (torch.zeros(7, 5, 3), r"shape \(7, 5, 3\); expected \(3, H, W\)"),
        (torch.zeros(2, 3, 7, 5), r"list\(tensor\)"),
        (torch.full((3, 7, 5), 255.0), r"values from 255 to 255; floats must be in \[0, 1\]"),
        (torch.full((3, 7, 5), torch.nan), "values from nan to nan"),
        (torch.zeros(3, 7, 5, dtype=torch.int64), "dtype int64"),
        (Image.new("F", (2, 2)), "more than 8 bits"),
    ],
)  # fmt: skip
def test_a_bad_array_is_told_what_is_expected(source, message):
    with pytest.raises(ImageError, match=message):
        load_image(source)


def test_the_size_limit_is_the_users():
    assert pixels(COLORS, max_pixels=35).shape == (7, 5, 3)
    with pytest.raises(ImageError, match="5 x 7 pixels"):
        load_image(COLORS, max_pixels=34)


def test_the_size_limit_goes_before_pillows(monkeypatch, tmp_path):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    Image.fromarray(COLORS).save(tmp_path / "image.png")
    assert pixels(tmp_path / "image.png").shape == (7, 5, 3)
    assert Image.MAX_IMAGE_PIXELS == 10  # for others, it stays as it was


def test_other_things_are_no_images():
    with pytest.raises(TypeError, match="got NoneType as an image"):
        load_image(None)
