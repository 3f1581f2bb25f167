"""JPEG by OpenCV: Pillow's pixels, or Pillow itself."""

import io

import numpy as np
import pytest
from PIL import Image

from aligndetr.data import jpeg
from aligndetr.data.image_reading import read_image
from aligndetr.data.jpeg import decode_jpeg
from tests.data.coco_json import COCO_TINY

PHOTOS = [p for p in sorted(COCO_TINY.rglob("*.jpg")) if Image.open(p).mode == "RGB"]


def photo(width=61, height=47):
    return Image.open(PHOTOS[0]).convert("RGB").resize((width, height))


def saved(image, **options):
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def opened(data):
    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize("path", PHOTOS, ids=lambda path: path.stem)
def test_photos_have_pillows_pixels(path):
    ours = decode_jpeg(Image.open(path))
    assert ours.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(Image.open(path)))


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (17, 33), (61, 47)], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {"subsampling": "4:4:4"},
        {"subsampling": "4:2:2"},
        {"subsampling": "4:2:0"},
        {"progressive": True},
        {"quality": 5},
        {"quality": 100, "keep_rgb": True},
        {"restart_marker_rows": 1},
    ],
    ids=str,
)
def test_every_kind_of_jpeg_has_pillows_pixels(size, options):
    data = saved(photo(*size), **options)
    np.testing.assert_array_equal(np.asarray(decode_jpeg(opened(data))), np.asarray(opened(data)))


def turned(orientation):
    tags = Image.Exif()
    tags[274] = orientation
    return saved(photo(), exif=tags)


def with_size(data, width, height):
    """The same JPEG, its frame header saying another size."""
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + data[at + 4 :]


def without_scan(data):
    return data[: data.index(b"\xff\xda")] + b"\xff\xd9"


@pytest.mark.parametrize(
    "data",
    [
        saved(photo().convert("L")),
        saved(photo().convert("CMYK")),
        turned(6),
        saved(photo())[:-40],
        saved(photo()) + b"\0" * 7,
        without_scan(saved(photo())),
        with_size(saved(photo()), 60_000, 60_000),  # more than OpenCV decodes
    ],
    ids=["grey", "CMYK", "turned", "cut off", "more behind its end", "no pixels", "huge"],
)
def test_the_rest_is_left_to_pillow(data, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert decode_jpeg(opened(data)) is None
    (tmp_path / "image.jpg").write_bytes(saved(photo()))
    assert decode_jpeg(Image.open(tmp_path / "image.jpg")) is not None


def test_what_is_no_file_or_is_decoded_already_is_left_alone():
    assert decode_jpeg(photo()) is None
    image = opened(saved(photo()))
    image.load()
    assert decode_jpeg(image) is None


def test_two_libraries_that_differ_leave_all_to_pillow(monkeypatch):
    decode = jpeg._decode
    monkeypatch.setattr(jpeg, "_decode", lambda data: decode(data) ^ 1)
    jpeg._decodes_as_pillow_does.cache_clear()
    try:
        assert decode_jpeg(opened(saved(photo()))) is None
    finally:
        jpeg._decodes_as_pillow_does.cache_clear()


def test_an_image_left_to_pillow_can_still_be_read(tmp_path):
    path = tmp_path / "image.jpg"
    path.write_bytes(turned(6))
    assert read_image(path).size == (47, 61)
    path.write_bytes(saved(photo())[:-40])
    with pytest.raises(OSError, match="truncated"):
        read_image(path)


def test_damaged_files_have_the_pixels_that_pillow_gives_them(tmp_path):
    """Bytes behind the header are changed at random; most such files still decode, to something."""
    path = tmp_path / "image.jpg"
    whole = saved(photo())
    num_decoded = 0
    for seed in range(60):
        random = np.random.RandomState(seed)
        data = bytearray(whole)
        for position in random.randint(200, len(data) - 2, 3):
            data[position] = random.randint(256)
        path.write_bytes(data)
        try:
            expected = np.asarray(Image.open(path).convert("RGB"))
        except Exception:
            continue
        num_decoded += 1
        np.testing.assert_array_equal(np.asarray(read_image(path)), expected)
    assert num_decoded > 20
