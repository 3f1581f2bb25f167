"""Data sets given by path: names, classes, records, and detectron2's COCO layout."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.data.datasets import load_coco_json
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances

from aligndetr.data import DatasetError, class_names, register_dataset
from tests.data.coco_json import COCO_TINY, make_content, write_dataset, write_json

REPOSITORY = Path(__file__).parents[2]


def load_after(change, folder, split="train"):
    content = make_content()
    change(content)
    write_dataset(folder, content, split)
    return DatasetCatalog.get(register_dataset(split, root=str(folder)))


def test_records_of_real_coco_are_detectron2s():
    for split in ("train", "val"):
        name = register_dataset(split, root=str(COCO_TINY))
        theirs = load_coco_json(
            str(COCO_TINY / "annotations" / f"instances_{split}.json"),
            str(COCO_TINY / split),
            f"theirs_{split}",
        )
        ours = DatasetCatalog.get(name)
        assert ours == theirs
        assert len(ours) == {"train": 2, "val": 1}[split]
        assert class_names(name) == MetadataCatalog.get(f"theirs_{split}").thing_classes


def test_category_ids_with_gaps_become_contiguous_in_order_of_id(tmp_path):
    write_dataset(tmp_path, make_content())
    name = register_dataset("train", root=str(tmp_path))
    assert class_names(name) == ["car", "boat", "tree"]
    metadata = MetadataCatalog.get(name)
    assert metadata.thing_dataset_id_to_contiguous_id == {3: 0, 7: 1, 90: 2}
    first, second = DatasetCatalog.get(name)
    assert (first["image_id"], second["image_id"]) == (2, 5)
    assert [a["category_id"] for a in first["annotations"]] == [2]
    assert [a["category_id"] for a in second["annotations"]] == [0, 1]
    assert [a["iscrowd"] for a in second["annotations"]] == [0, 1]


def test_perfect_predictions_score_100_through_the_evaluator(tmp_path):
    name = register_dataset("val", root=str(COCO_TINY))
    evaluator = COCOEvaluator(name, output_dir=str(tmp_path), distributed=False)
    evaluator.reset()
    for record in DatasetCatalog.get(name):
        boxes = [
            BoxMode.convert(a["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
            for a in record["annotations"]
        ]
        found = Instances(
            (record["height"], record["width"]),
            pred_boxes=Boxes(torch.tensor(boxes)),
            scores=torch.ones(len(boxes)),
            pred_classes=torch.tensor([a["category_id"] for a in record["annotations"]]),
        )
        evaluator.process([record], [{"instances": found}])
    results = evaluator.evaluate()["bbox"]
    assert results["AP"] == pytest.approx(100)
    assert results["AP-dog"] == pytest.approx(100)


def test_a_name_is_readable_and_belongs_to_one_pair_of_paths(tmp_path):
    folders = [tmp_path / "one" / "trees", tmp_path / "two" / "trees"]
    for folder in folders:
        write_dataset(folder, make_content())
    names = {register_dataset("train", root=str(folder)) for folder in folders}
    assert len(names) == 2
    assert all(name.startswith("trees_train_") for name in names)
    by_files = register_dataset(
        "train",
        json_file=str(folders[0] / "annotations" / "instances_train.json"),
        image_root=str(folders[0] / "train"),
    )
    assert by_files == register_dataset("train", root=str(folders[0]))


def test_registering_again_changes_nothing(tmp_path):
    write_dataset(tmp_path, make_content())
    name = register_dataset("train", root=str(tmp_path))
    metadata, count = MetadataCatalog.get(name), len(DatasetCatalog)
    assert register_dataset("train", root=str(tmp_path)) == name
    assert MetadataCatalog.get(name) is metadata
    assert len(DatasetCatalog) == count


def test_a_changed_json_is_read_anew(tmp_path):
    content = make_content()
    write_dataset(tmp_path, content)
    name = register_dataset("train", root=str(tmp_path))
    content["categories"][0]["name"] = "shrub"
    json_file = write_json(tmp_path, content)
    os.utime(json_file, (0, 0))
    with pytest.raises(DatasetError, match="not the 3 that"):
        DatasetCatalog.get(name)
    assert register_dataset("train", root=str(tmp_path)) == name
    assert class_names(name) == ["car", "boat", "shrub"]
    assert len(DatasetCatalog.get(name)) == 2


def test_paths_relative_to_home_and_to_the_working_directory(tmp_path, monkeypatch):
    write_dataset(tmp_path / "trees", make_content())
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    absolute = register_dataset("train", root=str(tmp_path / "trees"))
    assert register_dataset("train", root="trees") == absolute
    assert register_dataset("train", root="~/trees") == absolute


def test_root_with_years_in_the_names(tmp_path):
    write_dataset(tmp_path, make_content(), split="train2017")
    name = register_dataset("train", root=str(tmp_path))
    assert MetadataCatalog.get(name).image_root == str(tmp_path / "train2017")


def test_boxes_without_size_are_left_out_and_logged(tmp_path, caplog):
    def spoil(content):
        content["annotations"][0]["bbox"] = [10, 4, -8, 6]

    first, second = load_after(spoil, tmp_path)
    assert first["annotations"] == []
    assert len(second["annotations"]) == 2
    assert "1 of 3 boxes" in caplog.text
    assert "annotation 11 of image 2" in caplog.text


def test_ignored_annotations_are_treated_as_crowd(tmp_path):
    first, _ = load_after(lambda c: c["annotations"][0].update(ignore=1), tmp_path)
    assert first["annotations"][0]["iscrowd"] == 1


@pytest.mark.parametrize(
    "segmentation", [[[1, 2, 3, 4]], [1, 2, 3, 4, 5, 6], {"foo": 1}, "abc", 7], ids=str
)
def test_an_invalid_segmentation_does_not_cost_the_box(segmentation, tmp_path):
    def spoil(content):
        content["annotations"][0]["segmentation"] = segmentation

    first, _ = load_after(spoil, tmp_path)
    assert len(first["annotations"]) == 1
    assert "segmentation" not in first["annotations"][0]


@pytest.mark.parametrize(
    "annotations", [[], [make_content()["annotations"][2]]], ids=["none", "only crowd"]
)
def test_train_split_without_objects_is_refused_and_val_is_not(annotations, tmp_path):
    def spoil(content):
        content["annotations"] = annotations

    message = f"has {len(annotations)} annotations, none of which .*dataset.train_json"
    with pytest.raises(DatasetError, match=message):
        load_after(spoil, tmp_path)
    with pytest.raises(DatasetError, match=message):  # before a model is built
        register_dataset("train", root=str(tmp_path))
    assert len(load_after(spoil, tmp_path, split="val")) == 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"image_id": "2"}, "1 of 3 boxes in .* belong to no image .*: annotation 11 of image '2'"),
        ({"bbox": [90, 4, 8, 6]}, "1 of 3 boxes in .* lie outside their image, .*bbox .90, 4"),
    ],
    ids=["ids of two types", "outside"],
)
def test_the_error_says_why_no_object_can_be_trained_on(change, reason, tmp_path):
    def spoil(content):
        content["annotations"][0].update(change)
        content["annotations"][1].update(iscrowd=1)

    write_dataset(tmp_path, content := make_content())
    spoil(content)
    write_json(tmp_path, content)
    with pytest.raises(DatasetError, match=f"none of which can be trained on .*{reason}"):
        register_dataset("train", root=str(tmp_path))


def test_classes_of_one_name_are_warned_of(tmp_path, caplog):
    load_after(lambda content: content["categories"][2].update(name="car"), tmp_path)
    assert "several categories of the name 'car'" in caplog.text


MISSING_IMAGE = r"1 of 2 image files .*'b.png' \(image id 5\)"


def test_a_missing_image_is_found_before_anything_is_built(tmp_path):
    write_dataset(tmp_path, make_content())
    (tmp_path / "train" / "b.png").unlink()
    with pytest.raises(DatasetError, match=MISSING_IMAGE):
        register_dataset("train", root=str(tmp_path))


def test_an_image_that_vanishes_later_is_found_before_training(tmp_path):
    write_dataset(tmp_path, make_content())
    name = register_dataset("train", root=str(tmp_path))
    (tmp_path / "train" / "b.png").unlink()
    with pytest.raises(DatasetError, match=MISSING_IMAGE):
        DatasetCatalog.get(name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"json_file": "x.json"}, "dataset.val_json is given but dataset.val_images is not"),
        ({"image_root": "x"}, "dataset.val_images is given but dataset.val_json is not"),
        ({"json_file": "absent.json", "image_root": "."}, "absent.json.*Correct dataset.val_json"),
        ({"root": "absent"}, r"dataset.root='absent' is no folder \(looked in '.*absent'\)"),
        ({"root": "."}, "instances_val2017.json' and '.*instances_val.json"),
        ({"root": ".", "json_file": "x.json"}, r"looked for 'val2017' and 'val'"),
    ],
)
def test_wrong_paths_are_named(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetError, match=message):
        register_dataset("val", **arguments)


def test_missing_image_folder_is_named(tmp_path):
    json_file = write_json(tmp_path, make_content())
    with pytest.raises(DatasetError, match=r"nowhere' does not exist.*dataset\.train_images"):
        register_dataset("train", json_file=str(json_file), image_root=str(tmp_path / "nowhere"))


def test_bad_json_is_refused_when_registered(tmp_path):
    json_file = write_json(tmp_path, {"pictures": []})
    with pytest.raises(DatasetError, match=r"no list \['images', 'annotations', 'categories'\]"):
        register_dataset("train", json_file=str(json_file), image_root=str(tmp_path))


def test_unknown_split_and_unknown_name():
    with pytest.raises(ValueError, match="unknown split 'test'.*'train', 'val'"):
        register_dataset("test")
    with pytest.raises(DatasetError, match="unknown data set 'never_heard_of'"):
        class_names("never_heard_of")
    assert "never_heard_of" not in MetadataCatalog


@pytest.fixture
def coco_2017_at(tmp_path, monkeypatch):
    """Point detectron2's coco_2017_train at a folder, as DETECTRON2_DATASETS does at import."""
    known = MetadataCatalog.get("coco_2017_train").as_dict()
    known["json_file"] = str(tmp_path / "coco/annotations/instances_train2017.json")
    known["image_root"] = str(tmp_path / "coco/train2017")
    monkeypatch.setitem(MetadataCatalog.data, "coco_2017_train", Metadata(**known))
    monkeypatch.setitem(DatasetCatalog.data, "coco_2017_train", DatasetCatalog["coco_2017_train"])
    return tmp_path / "coco"


def test_coco_2017_that_is_not_there_names_the_variable(coco_2017_at):
    with pytest.raises(DatasetError) as error:
        register_dataset("train")
    for part in (
        str(coco_2017_at),
        "DETECTRON2_DATASETS",
        "None of dataset.root",
        "dataset.train_json",
    ):
        assert part in str(error.value)


def test_own_classes_in_cocos_place_are_refused(coco_2017_at):
    write_dataset(coco_2017_at, make_content(), split="train2017")
    name = register_dataset("train")
    with pytest.raises(DatasetError, match="3 categories, which are not the 80 .*dataset.root"):
        DatasetCatalog.get(name)


def test_class_names_of_coco_2017_need_no_file():
    assert len(class_names("coco_2017_val")) == 80


def test_class_names_of_a_data_set_that_learns_them_by_loading(monkeypatch):
    def load():
        MetadataCatalog.get("learns late").thing_classes = ["tree", "car"]
        return []

    monkeypatch.setitem(DatasetCatalog.data, "learns late", load)
    assert class_names("learns late") == ["tree", "car"]


LOAD_DEFAULT = """
import json
from detectron2.data import DatasetCatalog
from aligndetr.data import class_names, register_dataset
names = [register_dataset(split) for split in ("train", "val")]
records = [DatasetCatalog.get(name) for name in names]
print(json.dumps([names, len(class_names(names[0])), [r["file_name"] for r in records[1]]]))
"""


def test_coco_2017_under_detectron2_datasets_with_lvis_images_linked_as_coco(tmp_path):
    lvis = tmp_path / "lvis_v1"
    (lvis / "annotations").mkdir(parents=True)
    (lvis / "annotations" / "lvis_v1_val.json").write_text("{}")
    for split in ("train", "val"):
        (lvis / f"{split}2017").symlink_to(COCO_TINY / split)
        annotations = COCO_TINY / "annotations" / f"instances_{split}.json"
        (lvis / "annotations" / f"instances_{split}2017.json").symlink_to(annotations)
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "coco").symlink_to(lvis)
    environment = {**os.environ, "DETECTRON2_DATASETS": str(tmp_path / "datasets")}
    out = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOAD_DEFAULT],
        env=environment,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    names, num_classes, files = json.loads(out.splitlines()[-1])
    assert names == ["coco_2017_train", "coco_2017_val"]
    assert num_classes == 80
    assert files == [str(tmp_path / "datasets/coco/val2017/000000404484.jpg")]
