"""Bad data is refused with a message that names the thing, its value and the remedy."""

import json
import logging
import math

import pytest

from aligndetr.data.checks import (
    BOX_PROBLEMS,
    DatasetError,
    check_images_exist,
    check_num_classes,
    check_same_classes,
    log_box_problems,
)
from aligndetr.data.coco_index import CocoIndex
from aligndetr.data.index_build import build_index
from tests.data.coco_json import COCO_TINY, make_content, write_dataset, write_json


@pytest.fixture
def check(tmp_path):
    """Checks a json: the index of a sound one."""

    def build(json_file):
        build_index(json_file, tmp_path / "index.arrow")
        return CocoIndex(tmp_path / "index.arrow")

    return build


@pytest.fixture
def find_unusable_boxes(check, tmp_path):
    """Ids of the annotations that the index of some content leaves out, after logging why."""

    def find(content):
        # The id stands in the category too: the index keeps no ids of annotations.
        for annotation in content["annotations"]:
            annotation["category_id"] = annotation["id"]
        ids = [annotation["id"] for annotation in content["annotations"]]
        content["categories"] = [{"id": i, "name": str(i)} for i in ids]
        info = (index := check(write_json(tmp_path, content))).info
        log_box_problems(info.box_problems, info.box_examples, info.num_annotations, "x.json")
        kept = [annotation[2] for row in range(len(index)) for annotation in index.annotations(row)]
        assert len(kept) == len(set(kept))
        return set(ids) - set(kept)

    return find


def test_real_coco_passes_without_a_word(check, caplog):
    index = check(COCO_TINY / "annotations" / "instances_train.json")
    assert index.info.box_problems == [0] * len(BOX_PROBLEMS)
    check_images_exist(index.images(), COCO_TINY / "train")
    assert caplog.records == []


def drop_field(key, field):
    return lambda content: content[key][0].pop(field)


def set_field(key, field, value):
    return lambda content: content[key][0].update({field: value})


SPOILED = {
    "list missing": (lambda c: c.pop("annotations"), ["not a COCO json", "'annotations'"]),
    "list is an object": (lambda c: c.update(images={}), ["not a COCO json", "'images'"]),
    "no images": (lambda c: c["images"].clear(), ["holds no images"]),
    "no categories": (lambda c: c["categories"].clear(), ["holds no categories"]),
    "image without width": (drop_field("images", "width"), ["images[0]", "id 5", "'width'"]),
    "width is text": (set_field("images", "width", "40"), ["images[0]", "width='40'", "float"]),
    "width is zero": (set_field("images", "width", 0), ["image 5", "width=0", "in pixels"]),
    "category without name": (drop_field("categories", "name"), ["categories[0]", "'name'"]),
    "annotation without box": (drop_field("annotations", "bbox"), ["id 11", "'bbox'"]),
    "annotation without id": (drop_field("annotations", "id"), ["annotations[0]", "'id'"]),
    "image is a number": (lambda c: c["images"].insert(0, 7), ["images[0]", "7"]),
    "unknown category": (
        set_field("annotations", "category_id", 4),
        ["annotation 11 of image 2", "category_id 4", "3, 7, 90", "correct the id"],
    ),
    "box of three numbers": (
        set_field("annotations", "bbox", [1, 2, 3]),
        ["annotation 11 of image 2", "[1, 2, 3]", "[x, y, width, height]"],
    ),
    "box is not a number": (
        set_field("annotations", "bbox", [1, 2, float("nan"), 4]),
        ["annotation 11 of image 2", "nan", "finite"],
    ),
    "area is nothing": (
        set_field("annotations", "area", None),
        ["annotation 11 of image 2", "area=None", "write a number, or leave 'area' out"],
    ),
    "area is text": (set_field("annotations", "area", "400"), ["image 2", "area='400'"]),
    "area is not finite": (set_field("annotations", "area", float("inf")), ["area=inf"]),
    "area is beyond floats": (set_field("annotations", "area", 10**400), ["area=1000"]),
    "crowd is nothing": (set_field("annotations", "iscrowd", None), ["iscrowd=None", "number"]),
    "crowd is text": (set_field("annotations", "iscrowd", "0"), ["iscrowd='0'", "number"]),
    "ignore is text": (set_field("annotations", "ignore", "0"), ["ignore='0'", "number"]),
    "image id twice": (set_field("images", "id", 2), ["id 2 ", "twice in images"]),
    "annotation id twice": (set_field("annotations", "id", 12), ["id 12 ", "in annotations"]),
    "category id twice": (set_field("categories", "id", 7), ["id 7 ", "twice in categories"]),
}


@pytest.mark.parametrize(("spoil", "expected"), SPOILED.values(), ids=SPOILED)
def test_bad_json_is_refused(spoil, expected, check, tmp_path):
    content = make_content()
    spoil(content)
    json_file = write_json(tmp_path, content)
    with pytest.raises(DatasetError) as error:
        check(json_file)
    for part in [*expected, str(json_file)]:
        assert part in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["annotations"]  # nothing half-written


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_an_error_does_not_depend_on_the_order_of_the_lists(spoil, check, tmp_path):
    content, messages = make_content(), set()
    spoil[0](content)
    for keys in (sorted(content), sorted(content, reverse=True)):
        with pytest.raises(DatasetError) as error:
            check(write_json(tmp_path, {key: content[key] for key in keys}))
        messages.add(str(error.value))
    assert len(messages) == 1


def test_missing_json_is_named(check, tmp_path):
    with pytest.raises(DatasetError, match=r"absent\.json' does not exist"):
        check(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"images": [', "is not JSON .*expected a COCO"),
        (b"", "is not JSON"),
        (b"\x89PNG\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[1, 2]", "is not a COCO json: it holds a list"),
        (b"null", "it holds a NoneType"),
        (b'{"images": [], "images": []}', "has 'images' twice"),
        (json.dumps(make_content()).encode() + b"}", "is not JSON .Extra data: char"),
    ],
    ids=["cut off", "empty", "picture", "deeply nested", "list", "null", "list twice", "more"],
)
def test_what_is_no_coco_json_is_refused(content, message, check, tmp_path):
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        check(path)


def test_ids_of_images_are_of_one_type(check, tmp_path):
    content = make_content()
    content["images"][0]["id"] = "5"
    with pytest.raises(DatasetError, match="numbers and texts as ids"):
        check(write_json(tmp_path, content))


def test_what_json_writes_for_a_number_that_is_none_is_read(check, tmp_path):
    content = make_content()
    content["annotations"][0]["score"] = math.nan
    assert check(write_json(tmp_path, content)).info.num_annotations == 3


def test_what_converters_write_for_crowd_and_area_passes(check, tmp_path):
    content = make_content()
    first, second, third = content["annotations"]
    first.update(iscrowd=False, area=31.5, ignore=0)
    second.update(iscrowd=True, area=0)
    third.pop("iscrowd")
    index = check(write_json(tmp_path, content))
    crowd = [[one[1] for one in index.annotations(row)] for row in range(2)]
    assert crowd == [[0], [1, 0]]


BOXES = {  # in an image of 40 x 20: (box, dropped, word of the message, None if there is none)
    "inside": ([0, 0, 40, 20], False, None),
    "rounded": ([0, 0, 40.05, 20.05], False, None),
    "zero width": ([5, 5, 0, 4], True, "not positive"),
    "negative height": ([5, 5, 4, -4], True, "not positive"),
    "right of the image": ([40, 5, 4, 4], True, "outside"),
    "above the image": ([5, -4, 4, 4], True, "outside"),
    "over the left border": ([-3, 5, 10, 4], False, "clips"),
    "over the lower border": ([5, 15, 4, 10], False, "clips"),
}


@pytest.mark.parametrize(("box", "is_dropped", "word"), BOXES.values(), ids=BOXES)
def test_unusable_boxes_are_dropped_and_named(box, is_dropped, word, find_unusable_boxes, caplog):
    content = make_content()
    content["annotations"][0]["bbox"] = box
    assert find_unusable_boxes(content) == ({11} if is_dropped else set())
    if word is None:
        assert caplog.records == []
    else:
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        for part in ("1 of 3 boxes", "'x.json'", "annotation 11 of image 2", str(box), word):
            assert part in record.getMessage()


@pytest.mark.parametrize("image_id", [99, 0, "2"])
def test_annotation_of_an_unlisted_image_is_dropped(image_id, find_unusable_boxes, caplog):
    content = make_content()
    content["annotations"][0]["image_id"] = image_id
    assert find_unusable_boxes(content) == {11}
    assert f"annotation 11 of image {image_id!r} " in caplog.text


@pytest.mark.parametrize("image_id", [-1, -(2**61) - 1, 2**70, True])
def test_numbers_of_equal_hash_are_different_images(image_id, find_unusable_boxes):
    content = make_content()
    content["images"][1]["id"] = -2
    content["annotations"][0]["image_id"] = image_id
    assert find_unusable_boxes(content) == {11}


def test_a_long_list_is_shortened(find_unusable_boxes, caplog):
    content = make_content()
    bad = {"image_id": 2, "bbox": [1, 1, 0, 0]}
    content["annotations"] = [{"id": i, **bad} for i in range(12)]
    find_unusable_boxes(content)
    assert "12 of 12 boxes" in caplog.text
    assert "and 7 more" in caplog.text


def test_missing_image_files_are_counted_and_named(tmp_path):
    content = make_content()
    write_dataset(tmp_path, content)
    (tmp_path / "train" / "a.png").unlink()
    with pytest.raises(DatasetError) as error:
        check_images_exist(content["images"], tmp_path / "train")
    for part in ("1 of 2", "'a.png' (image id 2)", "dataset.train_images"):
        assert part in str(error.value)
    assert "b.png" not in str(error.value)


def test_images_in_subfolders_are_found(tmp_path):
    for folder in ("x", "y/z"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "1.png").touch()
    check_images_exist(
        [{"id": 1, "file_name": "x/1.png"}, {"id": 2, "file_name": "y/z/1.png"}], tmp_path
    )
    with pytest.raises(DatasetError, match="1 of 1 image files"):
        check_images_exist([{"id": 1, "file_name": "absent/1.png"}], tmp_path)


def test_number_of_classes_must_fit():
    check_num_classes(2, ["car", "tree"])
    with pytest.raises(DatasetError, match=r"is 80, .* has 2 classes \(car, tree\).*num_classes=2"):
        check_num_classes(80, ["car", "tree"])


def test_train_and_val_must_have_the_same_classes():
    check_same_classes(["car", "tree"], ["car", "tree"])
    with pytest.raises(DatasetError, match="car, tree, the val json tree, car"):
        check_same_classes(["car", "tree"], ["tree", "car"])
