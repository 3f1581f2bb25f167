"""One data set in three layouts: the same images, boxes and classes, or one clear error."""

import json
import logging
import os
import shutil
import sys
import time

import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from PIL import Image

from aligndetr.data import DatasetError, class_names, register_dataset
from aligndetr.data.yolo import MAX_TEXT
from aligndetr.evaluation import COCOEvaluator
from tests.data.coco_json import COCO_TINY, make_content, write_dataset
from tests.data.layouts_on_disk import write_roboflow, write_yolo


def load(split, root):
    name = register_dataset(split, root=str(root))
    return class_names(name), DatasetCatalog.get(name)


def objects(record):
    """Class and box of what can be trained on, in the order of the file."""
    kept = [a for a in record["annotations"] if not a["iscrowd"]]
    return [a["category_id"] for a in kept], [x for a in kept for x in a["bbox"]]


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("write", [write_roboflow, write_yolo])
def test_every_layout_gives_the_same_images_boxes_and_classes(write, split, tmp_path):
    names, records = load(split, write(COCO_TINY, tmp_path / "copy"))
    expected_names, expected = load(split, COCO_TINY)
    assert names == expected_names
    assert len(records) == len(expected)
    for ours, theirs in zip(records, expected):
        assert os.path.basename(ours["file_name"]) == os.path.basename(theirs["file_name"])
        assert (ours["height"], ours["width"]) == (theirs["height"], theirs["width"])
        assert os.path.isfile(ours["file_name"])
        assert objects(ours)[0] == objects(theirs)[0]
        assert objects(ours)[1] == pytest.approx(objects(theirs)[1], abs=1e-9)


@pytest.fixture
def small(tmp_path):
    """Two images of 40 x 20 pixels, three classes, three boxes, in COCO layout."""
    for split in ("train", "val"):
        write_dataset(tmp_path / "coco", make_content(), split)
    return tmp_path / "coco"


@pytest.fixture
def yolo(small, tmp_path):
    return write_yolo(small, tmp_path / "yolo")


def change_yaml(root, **settings):
    data = yaml.safe_load((root / "data.yaml").read_text()) | settings
    (root / "data.yaml").write_text(yaml.safe_dump(data))


def test_coco_layout_goes_before_the_others(small, tmp_path):
    shutil.copytree(small, tmp_path / "yolo")
    root = write_yolo(COCO_TINY, tmp_path / "yolo")
    assert load("train", root)[0] == ["car", "boat", "tree"]


# ---------------------------------------------------------------------------------------------
# Roboflow


def test_the_placeholder_is_no_class_and_the_export_stays_as_it_is(small, tmp_path):
    root = write_roboflow(small, tmp_path / "roboflow", val="val")
    before = (root / "train" / "_annotations.coco.json").read_bytes()
    assert load("train", root)[0] == load("val", root)[0] == ["car", "boat", "tree"]
    assert (root / "train" / "_annotations.coco.json").read_bytes() == before


def test_a_split_that_is_named_has_the_same_classes(small, tmp_path):
    """As where a test split is evaluated: it is no split that the root is searched for."""
    root = write_roboflow(small, tmp_path / "roboflow")
    (root / "valid").rename(root / "test")
    json_file = root / "test" / "_annotations.coco.json"
    name = register_dataset("val", str(root), json_file, json_file.parent)
    assert class_names(name) == load("train", root)[0] == ["car", "boat", "tree"]


def test_a_first_category_that_any_split_uses_is_a_class(small, tmp_path):
    root = write_roboflow(small, tmp_path / "roboflow")
    path = root / "valid" / "_annotations.coco.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["category_id"] = 0
    path.write_text(json.dumps(content))
    assert load("train", root)[0] == load("val", root)[0] == ["things", "car", "boat", "tree"]


def test_an_unused_class_of_no_group_stays(small, tmp_path):
    root = write_roboflow(small, tmp_path / "roboflow")
    for path in root.glob("*/_annotations.coco.json"):
        content = json.loads(path.read_text())
        content["categories"].append({"id": 99, "name": "kite", "supercategory": "none"})
        path.write_text(json.dumps(content))
    assert load("train", root)[0] == ["car", "boat", "tree", "kite"]


def test_a_damaged_export_is_named(small, tmp_path):
    root = write_roboflow(small, tmp_path / "roboflow")
    (root / "valid" / "_annotations.coco.json").write_text('{"images": [')
    with pytest.raises(DatasetError, match=r"valid/_annotations.coco.json' is not a COCO json"):
        register_dataset("train", root=str(root))


# ---------------------------------------------------------------------------------------------
# YOLO


def test_crowded_boxes_and_background_images(yolo):
    (yolo / "labels" / "train" / "a.txt").unlink()
    _, (first, second) = load("train", yolo)
    assert first["annotations"] == []
    assert objects(second) == ([0], pytest.approx([0, 0, 40, 20]))


def test_a_polygon_gives_its_box(yolo):
    (yolo / "labels" / "train" / "a.txt").write_text("2 0.25 0.5 0.75 0.5 0.5 0.9\n")
    _, (first, _) = load("train", yolo)
    assert objects(first) == ([2], pytest.approx([10, 10, 20, 8]))
    assert first["annotations"][0]["segmentation"] == [pytest.approx([10, 10, 30, 10, 20, 18])]


def test_an_edited_label_is_read_anew(yolo):
    load("train", yolo)
    (yolo / "labels" / "train" / "a.txt").write_text("1 0.5 0.5 0.5 0.5\n")
    _, (first, _) = load("train", yolo)
    assert objects(first) == ([1], pytest.approx([10, 5, 20, 10]))


def hidden_files(root):
    """Of `.aligndetr`, by suffix: jsons, stamps and indexes."""
    folder = root / ".aligndetr"
    return {suffix: sorted(folder.glob(f"*{suffix}")) for suffix in (".json", ".stamp", ".arrow")}


def test_jsons_of_earlier_labels_go_with_their_indexes_after_their_time(yolo):
    def edit(number):
        (yolo / "labels" / "train" / "a.txt").write_text(f"1 0.5 0.5 0.5 {number / 10}\n")
        load("train", yolo)

    def make_old(paths):
        for path in paths:
            os.utime(path, (0, 0))

    load("val", yolo)
    of_val = hidden_files(yolo)
    (yolo / ".aligndetr" / "yolo_train-0123456789abcdef.json").write_text("of another version")
    make_old(yolo.glob(".aligndetr/yolo_train-*"))
    for number in range(1, 4):
        edit(number)
    files = hidden_files(yolo)
    assert [len(paths) for paths in files.values()] == [4, 4, 4]  # a training may need them

    make_old([path for paths in files.values() for path in paths])
    load("train", yolo)  # an old state, but in use
    edit(4)
    after = hidden_files(yolo)
    assert [len(paths) for paths in after.values()] == [3, 3, 3]
    for suffix, paths in after.items():
        assert set(of_val[suffix]) <= set(paths)
        assert len(set(files[suffix]) & set(paths)) == 2
    assert len(load("train", yolo)[1]) == 2


def test_a_start_counts_as_use(yolo):
    load("train", yolo)
    (stamp,) = hidden_files(yolo)[".stamp"]
    os.utime(stamp, (0, 0))
    load("train", yolo)
    assert stamp.stat().st_mtime > time.time() - 3600


def test_in_the_cache_folder_other_data_sets_keep_theirs(small, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    roots = [write_yolo(small, tmp_path / name) for name in ("one", "two")]
    for root in roots:
        (root / ".aligndetr").write_text("in the way, as a read-only folder would be")
        load("train", root)
    paths = [path for path in (tmp_path / "cache").rglob("*") if path.suffix in (".json", ".stamp")]
    assert len(paths) == 4
    for path in paths:
        os.utime(path, (0, 0))
    (roots[0] / "labels" / "train" / "a.txt").write_text("1 0.5 0.5 0.5 0.5\n")
    load("train", roots[0])
    remaining = [path for path in paths if path.exists()]
    assert sorted(path.suffix for path in remaining) == [".json", ".stamp"]
    assert load("train", roots[1])[0] == ["car", "boat", "tree"]
    assert all(path.exists() for path in remaining)


def test_nothing_is_converted_twice(yolo, monkeypatch):
    load("train", yolo)
    monkeypatch.setattr("aligndetr.data.yolo._image_size", None)
    load("train", yolo)


def test_sizes_are_those_after_exif_rotation(yolo):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(yolo / "images" / "train" / "a.png", exif=exif)
    _, (first, _) = load("train", yolo)
    assert (first["width"], first["height"]) == (20, 40)


@pytest.mark.parametrize(
    "settings",
    [
        {"path": "../elsewhere/yolo"},  # of another machine
        {"train": "../images/train"},  # as Roboflow writes it
        {"train": ["images/train"]},
        {"names": {0: "car", 1: "boat", 2: "tree"}, "nc": 3},
        {"path": "images", "train": "train", "val": "val"},
        {"train": "train.txt"},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_ways_to_say_the_same(settings, yolo):
    (yolo / "train.txt").write_text("./images/train/b.png\n./images/train/a.png\n")
    _, expected = load("train", yolo)
    change_yaml(yolo, **settings)
    names, records = load("train", yolo)
    assert names == ["car", "boat", "tree"]
    assert records == expected


def test_labels_are_found_through_a_link(yolo, tmp_path):
    (yolo / "images" / "train").rename(tmp_path / "photos")
    (yolo / "images" / "train").symlink_to(tmp_path / "photos")
    _, records = load("train", yolo)
    assert [len(record["annotations"]) for record in records] == [1, 1]


def test_a_folder_called_images_above_the_data_is_none_of_theirs(small, tmp_path):
    """Not even if there is a folder labels beside it, which holds something else."""
    root = write_yolo(small, tmp_path / "images" / "set")
    _, expected = load("train", root)
    assert [len(record["annotations"]) for record in expected] == [1, 1]
    for old, new in (("images/train", "photos"), ("images/val", "more")):  # labels lie beside
        (root / old).rename(root / new)
        for label in (root / old.replace("images", "labels")).glob("*.txt"):
            label.rename(root / new / label.name)
    change_yaml(root, train="photos", val="more")
    foreign = tmp_path / "labels" / "set" / "photos"
    foreign.mkdir(parents=True)
    (foreign / "a.txt").write_text("0 0.5 0.5 1 1\n")
    _, records = load("train", root)
    assert list(map(objects, records)) == list(map(objects, expected))


@pytest.mark.parametrize("target", ["photos", ".", "train/images"])
def test_a_linked_folder_among_the_images_is_named(target, yolo):
    """Its images would be missing; a link to a parent would have no end."""
    (yolo / "photos").mkdir()
    shutil.copy(yolo / "images" / "train" / "a.png", yolo / "photos" / "c.png")
    (yolo / "images" / "train" / "more").symlink_to(yolo / target)
    if target == "train/images":  # leads nowhere
        assert len(load("train", yolo)[1]) == 2
        return
    with pytest.raises(DatasetError, match=r"images/train/more' is a link to a folder.* name that"):
        register_dataset("train", root=str(yolo))
    (yolo / "images" / "train" / "more").unlink()
    change_yaml(yolo, train=["images/train", target])
    assert len(load("train", yolo)[1]) == {"photos": 3, ".": 5}[target]


def test_images_in_subfolders_and_in_capitals_are_found(yolo):
    for folder in ("images", "labels"):
        (yolo / folder / "train" / "x" / ".y").mkdir(parents=True)
    (yolo / "images" / "train" / "a.png").rename(yolo / "images" / "train" / "x" / ".y" / "A.PNG")
    (yolo / "labels" / "train" / "a.txt").rename(yolo / "labels" / "train" / "x" / ".y" / "A.txt")
    _, records = load("train", yolo)
    assert sorted(len(record["annotations"]) for record in records) == [1, 1]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' file names are text")
def test_names_that_are_not_utf8_are_read(small, tmp_path, request):
    # pytest-xdist cannot send a captured log with such names.
    request.addfinalizer(lambda: logging.disable(logging.NOTSET))
    logging.disable()
    root = write_yolo(small, tmp_path / os.fsdecode(b"caf\xe9"))
    for folder, suffix in (("images", ".png"), ("labels", ".txt")):
        path = root / folder / "train" / f"a{suffix}"
        path.rename(path.with_name(os.fsdecode(b"\xe4") + suffix))
    names, records = load("train", root)
    assert names == ["car", "boat", "tree"]
    assert [len(record["annotations"]) for record in records] == [1, 1]
    assert all(os.path.isfile(record["file_name"]) for record in records)


def test_perfect_results_score_100_through_the_evaluator(yolo, tmp_path):
    name = register_dataset("val", root=str(yolo))
    evaluator = COCOEvaluator(name, output_dir=str(tmp_path), distributed=False)
    evaluator.reset()
    for record in DatasetCatalog.get(name):
        labels, numbers = objects(record)
        x, y, w, h = torch.tensor(numbers).view(-1, 4).unbind(1)
        instances = Instances((record["height"], record["width"]))
        instances.pred_boxes = Boxes(torch.stack([x, y, x + w, y + h], 1))
        instances.scores, instances.pred_classes = torch.ones(len(x)), torch.tensor(labels)
        evaluator.process([record], [{"instances": instances}])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)
    assert MetadataCatalog.get(name).thing_classes == ["car", "boat", "tree"]


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("3 0.5 0.5 0.1 0.1", r"a.txt', line 1 .*: class 3 is not in 0 … 2"),
        ("\n0 0.5 0.5 0.1", r"line 2 .*4 numbers; expected"),
        ("0 10 5 8 6", "must be fractions of the image's width and height"),
        ("0 nan 0.5 0.1 0.1", "must be fractions"),
        ("cat 0.5 0.5 0.1 0.1", "could not convert string to float: 'cat'"),
        ("0 0.5 0.5 0.1 0.1 0.9", "6 numbers"),
    ],
)
def test_a_bad_label_is_named_with_file_and_line(label, message, yolo):
    (yolo / "labels" / "train" / "a.txt").write_text(label)
    with pytest.raises(DatasetError, match=message):
        register_dataset("train", root=str(yolo))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"names": None}, "has no `names`"),
        ({"names": {1: "car", 2: "boat"}}, r"numbers \[1, 2\]; number the classes from 0"),
        ({"nc": 5}, "says nc=5, but lists 3 names"),
        ({"kpt_shape": [17, 3]}, r"kpt_shape` \(=\[17, 3\]\): its labels are poses.* as boxes"),
        ({"train": None}, "does not say where the train images are; add `train`"),
        ({"train": "pictures"}, r"names 'pictures', but none of .*yolo/pictures'.* exists"),
        ({"train": "a\0b"}, r"names 'a\\x00b', but none of .* exists"),
        ({"train": "labels"}, "there is no image in 'labels', the `train` of"),
    ],
)
def test_a_bad_yaml_is_named_with_what_is_wrong(settings, message, yolo):
    change_yaml(yolo, **settings)
    with pytest.raises(DatasetError, match=message) as error:
        register_dataset("train", root=str(yolo))
    assert "data.yaml" in str(error.value)


@pytest.mark.parametrize("text", ["- a\n- b", "names: [a", "just text"])
def test_a_yaml_that_is_none_is_named(text, yolo):
    (yolo / "data.yaml").write_text(text)
    with pytest.raises(DatasetError, match="data.yaml' (is not YAML|must hold keys)"):
        register_dataset("train", root=str(yolo))


def test_an_image_that_cannot_be_read_is_named(yolo):
    (yolo / "images" / "train" / "a.png").write_text("no picture")
    with pytest.raises(DatasetError, match=r"images/train/a.png' cannot be read"):
        register_dataset("train", root=str(yolo))


def test_a_label_that_is_no_text_of_yolos_is_not_read(yolo):
    os.truncate(yolo / "labels" / "train" / "a.txt", MAX_TEXT + 1)
    with pytest.raises(DatasetError, match=r"a.txt' is larger than \d+ bytes; this is no text"):
        register_dataset("train", root=str(yolo))


def test_a_folder_of_no_known_layout_names_what_was_looked_for(tmp_path):
    with pytest.raises(DatasetError) as error:
        register_dataset("val", root=str(tmp_path))
    for part in ("instances_val2017.json", "valid/_annotations.coco.json", "data.yaml"):
        assert part in str(error.value)
