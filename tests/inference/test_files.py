"""Whole folders: which files are taken, what is written, and that a broken one stops nothing."""

import csv
import io
import json
import re
import shutil

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image

from aligndetr.data import DetrDatasetMapper
from aligndetr.inference import Predictor, find_inputs, predict_files
from aligndetr.inference.outputs import Origin, open_output


class Corner(torch.nn.Module):
    """Finds in each image one box, a quarter of it, of class 1."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, batch):
        results = []
        for x in batch:
            instances = Instances((x["height"], x["width"]))
            instances.pred_boxes = Boxes(torch.tensor([[0, 0, x["width"] / 2, x["height"] / 2]]))
            instances.scores, instances.pred_classes = torch.tensor([0.5]), torch.tensor([1])
            results.append({"instances": instances})
        return results


@pytest.fixture
def predictor():
    return Predictor(Corner(), DetrDatasetMapper([], None, is_train=False), ["cat", "bus"])


@pytest.fixture
def photos(tmp_path):
    """b.png and a.jpg, a broken one between them, a text, and a folder with another a.jpg."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for name, width in (("b.png", 20), ("a.jpg", 30), ("more/a.jpg", 40)):
        Image.fromarray(np.full((10, width, 3), 90, np.uint8)).save(folder / name)
    (folder / "am.jpg").write_text("no picture")
    (folder / "notes.txt").touch()
    return folder


def names(paths, folder):
    return [str(path).removeprefix(f"{folder}/") for path in paths]


def test_folders_patterns_and_names_are_found_once(photos):
    assert names(find_inputs([str(photos)]), photos) == ["a.jpg", "am.jpg", "b.png"]
    assert names(find_inputs([f"{photos}/**/a.jpg"]), photos) == ["a.jpg", "more/a.jpg"]
    found = find_inputs([f"{photos}/b.png", str(photos), f"{photos}/*.png"])
    assert names(found, photos) == ["b.png", "a.jpg", "am.jpg"]


@pytest.mark.parametrize("given", ["no/such.jpg", "no/*.jpg"])
def test_what_stands_for_no_file_is_named(given):
    with pytest.raises(FileNotFoundError, match=re.escape(repr(given))):
        find_inputs([given])


def run(predictor, photos, output, **options):
    said = []
    files = find_inputs([str(photos), f"{photos}/more"])
    broken = predict_files(predictor, files, output, report=said.append, **options)
    assert names(broken, photos) == ["am.jpg"]
    assert len(said) == 1
    assert "am.jpg' is not an image" in said[0]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_coco_results(predictor, photos, tmp_path, batch_size):
    run(predictor, photos, tmp_path / "out.json", batch_size=batch_size)
    results = json.loads((tmp_path / "out.json").read_text())
    assert names([r["image_id"] for r in results], photos) == ["a.jpg", "b.png", "more/a.jpg"]
    assert results[0]["bbox"] == [0, 0, 15, 5]
    assert {r["category_id"] for r in results} == {1}


def test_a_table(predictor, photos, tmp_path):
    run(predictor, photos, tmp_path / "out.csv")
    with open(tmp_path / "out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert names([row["file_name"] for row in rows], photos) == ["a.jpg", "b.png", "more/a.jpg"]
    assert [row["xmax"] for row in rows] == ["15.0", "10.0", "20.0"]
    assert {row["name"] for row in rows} == {"bus"}


def test_detections_are_written_as_they_come_and_as_one_list(predictor, photos, tmp_path):
    found = predictor(str(photos / "a.jpg"))
    expected = []
    with open_output(tmp_path / "out.json", ["film.mp4"]) as write:
        for frame in range(300):
            write(found, Origin("film.mp4", frame, 25.0))
            expected += [
                result | {"file_name": "film.mp4", "frame": frame}
                for result in found.to_coco(f"film.mp4#{frame}")
            ]
        (growing,) = tmp_path.glob(".out.*/out.json")
        # All but what Python keeps for the next write is on the disk.
        assert growing.stat().st_size > len(json.dumps(expected)) - 2 * io.DEFAULT_BUFFER_SIZE > 0
    assert (tmp_path / "out.json").read_text() == json.dumps(expected)


@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_a_file_name_that_is_not_utf8_is_written(predictor, photos, tmp_path, suffix):
    found = predictor(str(photos / "a.jpg"))
    name = b"gr\xfcn.png".decode(errors="surrogateescape")  # as Python reads it from a folder
    with open_output(tmp_path / f"out.{suffix}", [name]) as write:
        write(found, Origin(name))
    if suffix == "json":
        assert json.loads((tmp_path / "out.json").read_text())[0]["image_id"] == name
    else:
        assert b"\ngr\xfcn.png," in (tmp_path / "out.csv").read_bytes()


def test_pictures_of_one_name_do_not_overwrite_each_other(predictor, photos, tmp_path):
    run(predictor, photos, tmp_path / "out")
    sizes = {path.name: Image.open(path).size for path in (tmp_path / "out").iterdir()}
    assert sizes == {"a.jpg": (30, 10), "b.png": (20, 10), "a_2.jpg": (40, 10)}


def test_a_picture_of_a_kind_that_cannot_be_written_becomes_a_png(predictor, photos, tmp_path):
    shutil.copy(photos / "b.png", photos / "b.scan")
    predict_files(predictor, [str(photos / "b.scan")], tmp_path / "out")
    (written,) = (tmp_path / "out").iterdir()
    assert written.name == "b.png"
    assert Image.open(written).format == "PNG"


def test_the_threshold_holds(predictor, photos, tmp_path):
    run(predictor, photos, tmp_path / "out.json", score_threshold=0.6)
    assert json.loads((tmp_path / "out.json").read_text()) == []


@pytest.mark.parametrize(
    ("output", "error", "message"),
    [
        ("out.xyz", ValueError, r"must end in .json, .csv, or .* in .mp4 or .avi; or be a folder"),
        ("out.mp4", ValueError, "can hold one annotated video; give one video"),
        ("photos", ValueError, "would overwrite those in"),
        ("file/out.json", OSError, "out.json' cannot be written"),
        ("file/out.csv", OSError, "out.csv' cannot be written"),
        ("file/out", OSError, "file/out'"),
        ("file", OSError, "file'"),
    ],
)
def test_where_nothing_can_be_written_is_named_before_the_work(
    output, error, message, predictor, photos, tmp_path
):
    (tmp_path / "file").touch()
    predictor.model.forward = None
    with pytest.raises(error, match=message):
        predict_files(predictor, find_inputs([str(photos)]), tmp_path / output)


def test_an_error_leaves_the_earlier_results(predictor, photos, tmp_path):
    for name in ("out.json", "out.csv"):
        (tmp_path / name).write_text("earlier")
        predictor.model.forward = None
        with pytest.raises(TypeError):
            predict_files(predictor, [str(photos / "a.jpg")], tmp_path / name)
        assert (tmp_path / name).read_text() == "earlier"
