"""What was found: counted, indexed, converted, drawn and written."""

import numpy as np
import pytest
from PIL import Image

from aligndetr.inference import Detections
from aligndetr.inference.drawing import PALETTE

NAMES = ["cat", "bus"]


def three(source=None, **changes):
    """A bus, a cat and a bus in an image of 60 x 40 pixels (width x height)."""
    fields = {
        "boxes": np.array([[1, 2, 11, 22], [30, 10, 45.5, 30], [5, 5, 6, 7]], np.float32),
        "scores": np.array([0.9, 0.5, 0.25], np.float32),
        "class_ids": np.array([1, 0, 1]),
        "class_names": NAMES,
        "image_size": (40, 60),
        "source": np.full((40, 60, 3), 90, np.uint8) if source is None else source,
        "max_pixels": 10_000,
    }
    return Detections(**(fields | changes))


def nothing():
    return three()[:0]


def test_it_counts_and_iterates():
    found = three()
    assert len(found) == 3
    assert found.names == ["bus", "cat", "bus"]
    assert [d.name for d in found] == found.names
    assert found[1] == ((30, 10, 45.5, 30), 0.5, 0, "cat")
    assert found[-1] == list(found)[2]
    assert list(nothing()) == []
    with pytest.raises(IndexError):
        found[3]


def test_it_is_indexed_like_an_array():
    found = three()
    certain = found[found.scores >= 0.5]
    assert certain.names == ["bus", "cat"]
    assert found[::-1].scores.tolist() == [0.25, 0.5, pytest.approx(0.9)]
    assert found[[2]].boxes.tolist() == [[5, 5, 6, 7]]
    assert certain.image_size == found.image_size


def test_it_says_what_was_found():
    assert repr(three()) == "Detections(2 bus, 1 cat; image of 60 x 40 pixels)"
    assert repr(nothing()) == "Detections(nothing; image of 60 x 40 pixels)"


def test_coco_results_have_widths_and_the_ids_of_the_data_set():
    bus, cat, _ = three().to_coco(image_id=17, category_ids=[3, 44])
    assert bus == {
        "image_id": 17, "category_id": 44, "category_name": "bus", "bbox": [1, 2, 10, 20],
        "score": pytest.approx(0.9),
    }  # fmt: skip
    assert cat["bbox"] == [30, 10, 15.5, 20]
    assert three("a/b.jpg").to_coco()[0]["image_id"] == "a/b.jpg"
    assert three().to_coco()[1]["category_id"] == 0
    assert nothing().to_coco() == []


def test_supervision_gets_the_same_boxes():
    pytest.importorskip("supervision")
    found = three().to_supervision()
    np.testing.assert_array_equal(found.xyxy, three().boxes)
    assert found["class_name"].tolist() == ["bus", "cat", "bus"]
    assert found.class_id.tolist() == [1, 0, 1]
    assert len(nothing().to_supervision()) == 0


def test_pandas_gets_a_row_per_detection():
    pytest.importorskip("pandas")
    table = three().to_pandas()
    assert list(table.columns) == ["xmin", "ymin", "xmax", "ymax", "score", "class_id", "name"]
    assert table.loc[1, ["xmin", "xmax", "name"]].tolist() == [30, 45.5, "cat"]
    assert len(nothing().to_pandas()) == 0


def test_the_picture_is_saved_in_the_images_size(tmp_path):
    image = np.full((40, 60, 3), 90, np.uint8)
    three(image).save(tmp_path / "new" / "out.png")
    picture = np.asarray(Image.open(tmp_path / "new" / "out.png"))
    assert picture.shape == (40, 60, 3)
    for class_id in (0, 1):
        assert (picture == PALETTE[class_id]).all(axis=-1).any()
    assert (image == 90).all()
    nothing().save(tmp_path / "empty.jpg")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("out.xyz", ValueError, r"out.xyz' must end in .png"),
        ("out", ValueError, "must end in .png"),
        ("file/out.png", OSError, r"file/out.png' cannot be written: "),
    ],
)
def test_where_nothing_can_be_written_is_named(name, error, message, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(error, match=message):
        three().save(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_lines_grow_with_the_image():
    def line_width(height):
        image = np.full((height, height, 3), 90, np.uint8)
        box = np.array([[height / 4, height / 4, height / 2, height / 2]], np.float32)
        found = three(image, boxes=box, scores=np.array([1.0]), class_ids=np.array([0]),
                      image_size=(height, height), max_pixels=height**2)  # fmt: skip
        row = np.asarray(found.plot())[height * 3 // 8]
        return (row == PALETTE[0]).all(1).sum() / 2  # left and right

    assert line_width(100) == 2
    assert line_width(3000) == 6
