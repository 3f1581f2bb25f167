"""Surveying a data set: each mistake is found, all of them at once, and a sound one has none."""

import json

import numpy as np
import pytest
from PIL import Image

from aligndetr.data.image_prints import inspect_image, similar_pairs
from aligndetr.data.layouts import find_dataset
from aligndetr.data.survey import compare_splits, survey_split
from aligndetr.inference import data_report
from aligndetr.inference.data_report import summarise, write_data_report
from tests.data.coco_json import COCO_TINY, make_content, write_dataset, write_json


def survey(root, split="train", **options):
    return survey_split(split, *find_dataset(split, str(root), None, None), **options)


def texts(findings, level):
    return [finding.text for finding in findings if finding.level == level]


def after(change, folder, **options):
    """Findings of the small data set (train) after a change of its json."""
    content = make_content()
    write_dataset(folder, content)
    change(content)
    write_json(folder, content)
    return survey(folder, **options)


def test_numbers_of_real_coco():
    found, findings = survey(COCO_TINY)
    assert findings == []
    content = json.loads((COCO_TINY / "annotations" / "instances_train.json").read_text())
    objects = [a for a in content["annotations"] if not a["iscrowd"]]
    assert len(found.objects) == len(objects) == 37
    assert len(found.annotations) == 38
    assert found.objects_per_image().tolist() == [3, 34]
    assert sum(found.objects_per_class().values()) == 37
    assert found.objects_per_class()["boat"] == 12
    x, y, w, h = found.objects[0]["bbox"]
    assert found.box_edges()[0] == pytest.approx((w * h) ** 0.5)
    assert summarise(found).startswith("train: 2 images, 37 objects of 80 classes, 1 crowd regions")


def test_ignored_annotations_are_no_objects(tmp_path, monkeypatch):
    found, _ = after(lambda c: c["annotations"][0].update(ignore=1), tmp_path)
    assert [a["id"] for a in found.objects] == [12]
    assert "1 objects of 3 classes, 2 crowd regions" in summarise(found)
    drawn = []
    monkeypatch.setattr(data_report, "draw_boxes", lambda _, boxes, __: drawn.append(boxes) or _)
    data_report._pictures(found, 2)
    assert [boxes.crowd for boxes in drawn] == [[False, True], [True]]


def test_a_sound_data_set_has_no_findings(tmp_path):
    assert after(lambda content: None, tmp_path)[1] == []


@pytest.mark.parametrize(
    ("change", "level", "message"),
    [
        (lambda c: c["images"].append(c["images"][0]), "error", "1 ids of images stand twice: 5"),
        (lambda c: c["annotations"].append(c["annotations"][0]), "error",
         "1 ids of annotations stand twice: 11"),
        (lambda c: c["annotations"][0].update(category_id=4), "error",
         "1 category ids of annotations are not in categories: 4"),
        (lambda c: c["images"][0].pop("width"), "error", "1 of 2 images are broken: images[0]"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), "error",
         "1 of 3 annotations are broken: annotation 11 of image 2"),
        (lambda c: c["images"][0].update(width=50), "error",
         "1 images have another size than the json says: 'b.png' is 40 x 20, the json says 50"),
        (lambda c: c["images"][0].update(file_name="c.png"), "error",
         "1 of 2 image files are not in"),
        (lambda c: c.update(annotations=[]), "error", "there is no object in it"),
        (lambda c: c.pop("categories"), "error", "no list ['categories'] in it"),
        (lambda c: c["annotations"][0].update(bbox=[10, 4, 0, 6]), "warning",
         "boxes have a width or height that is not positive; they cannot be trained on: annotation "
         "11 of image 2"),
        (lambda c: c["annotations"][0].update(bbox=[50, 4, 5, 6]), "warning",
         "1 of 3 boxes lie outside their image"),
        (lambda c: c["annotations"][0].update(bbox=[35, 4, 9, 6]), "warning",
         "1 of 3 boxes stand out of their image; training clips them"),
        (lambda c: c["annotations"][0].update(image_id=77), "warning",
         "1 of 3 boxes belong to no image of the file"),
        (lambda c: c["images"][0].update(file_name="a.png"), "warning",
         "1 files stand for several images: a.png"),
        (lambda c: c["annotations"].pop(0), "warning", "1 of 2 images have no object"),
    ],
)  # fmt: skip
def test_a_mistake_is_found_and_named(change, level, message, tmp_path):
    _, findings = after(change, tmp_path)
    assert any(message in text for text in texts(findings, level)), findings


def test_all_mistakes_are_found_at_once(tmp_path):
    def spoil(content):
        content["images"].append(content["images"][0])
        content["annotations"][0]["category_id"] = 4
        content["images"][1]["height"] = 21

    _, findings = after(spoil, tmp_path)
    assert len(texts(findings, "error")) == 3


def test_many_examples_are_cut_short(tmp_path):
    def spoil(content):
        content["annotations"] = [
            {**content["annotations"][0], "id": i, "bbox": [1, 1, 0, 1]} for i in range(9)
        ]

    found = texts(after(spoil, tmp_path)[1], "warning")[0]
    assert found.startswith("9 of 9 boxes")
    assert found.endswith("annotation 4 of image 2; and 4 more")


def test_a_file_that_cannot_be_decoded_is_found_unless_images_are_left_alone(tmp_path):
    def spoil(content):
        (tmp_path / "train" / "a.png").write_bytes(b"no picture")

    _, findings = after(spoil, tmp_path)
    assert "1 image files cannot be decoded: 'a.png' (UnidentifiedImageError" in findings[0].text
    assert after(spoil, tmp_path, decode=False)[1] == []


def test_an_image_of_more_than_8_bits_is_found(tmp_path):
    def spoil(content):
        deep = np.full((20, 40), 3000, np.uint16)
        Image.fromarray(deep).save(tmp_path / "train" / "a.png")

    found, findings = after(spoil, tmp_path)
    (text,) = texts(findings, "error")
    assert text.startswith("1 image files cannot be decoded: 'a.png' (it has more than 8 bits per")
    write_data_report([found], findings, tmp_path / "report.html")  # without its picture


def test_a_file_that_is_no_json_is_named(tmp_path):
    write_dataset(tmp_path, make_content()).write_text("{")
    assert "cannot be read" in texts(survey(tmp_path)[1], "error")[0]
    write_json(tmp_path, [])
    assert "it holds a list, not a COCO json's object" in texts(survey(tmp_path)[1], "error")[0]


def test_an_image_in_both_splits_is_found_in_another_size_and_compression(tmp_path):
    write_dataset(tmp_path, make_content())
    write_dataset(tmp_path, make_content(), "val")
    photos = [Image.open(COCO_TINY / "train" / name) for name in ("000000000086.jpg",)]
    photos[0].convert("RGB").resize((40, 20)).save(tmp_path / "train" / "a.png")
    for name in ("a.png", "b.png"):
        noise = np.random.default_rng(len(name)).integers(0, 255, (20, 40, 3)).astype(np.uint8)
        Image.fromarray(noise).save(tmp_path / "val" / name)
    train, val = survey(tmp_path)[0], survey(tmp_path, "val")[0]
    assert not any("look the same" in f.text for f in compare_splits(train, val))
    photos[0].convert("RGB").resize((40, 20)).save(tmp_path / "val" / "b.png")
    (finding,) = [
        f for f in compare_splits(train, survey(tmp_path, "val")[0]) if "look the same" in f.text
    ]
    assert "1 pairs" in finding.text
    assert "'a.png' and 'b.png'" in finding.text


def test_prints_know_a_photograph_again_and_no_other(tmp_path):
    paths = [*COCO_TINY.glob("*/*.jpg")]
    prints = [inspect_image(path) for path in paths]
    smaller = []
    for path in paths:
        image = Image.open(path).convert("RGB")
        image.resize((image.width // 2, image.height // 2)).save(tmp_path / "x.jpg", quality=60)
        smaller.append(inspect_image(tmp_path / "x.jpg"))
    assert similar_pairs(prints, smaller) == [(0, 0), (1, 1), (2, 2)]
    assert similar_pairs(prints, [None, prints[2]]) == [(2, 1)]
    assert similar_pairs([None, prints[2]], prints) == [(1, 2)]
    assert similar_pairs(prints, [None]) == []
    flat = [Image.new("RGB", (9, 9), color) for color in ("black", "white")]
    for i, image in enumerate(flat):
        image.save(tmp_path / f"{i}.png")
    black, white = (inspect_image(tmp_path / f"{i}.png") for i in range(2))
    assert similar_pairs([black], [white]) == []


def test_other_classes_and_classes_never_learnt_are_found(tmp_path):
    content = make_content()
    content["annotations"] = content["annotations"][:1]
    write_dataset(tmp_path, content)
    content["categories"][0]["name"] = "oak"
    write_dataset(tmp_path, content, "val")
    findings = compare_splits(survey(tmp_path)[0], survey(tmp_path, "val")[0])
    assert "car, boat, oak" in texts(findings, "error")[0]
    assert "2 of 3 classes have no train object: car; boat" in texts(findings, "warning")


def test_the_report_holds_findings_charts_and_pictures(tmp_path):
    found, findings = after(lambda c: c["annotations"].pop(0), tmp_path)
    write_data_report([found], findings, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3  # a chart and two images
    assert findings[0].text in page
    content = make_content() | {"annotations": []}
    write_json(tmp_path, content)
    write_data_report([survey(tmp_path)[0]], [], tmp_path / "report.html")


def test_the_tool_tells_by_its_exit_status(run_tool, tmp_path, capsys):
    words = ["check_dataset.py", "--root", tmp_path]
    write_dataset(tmp_path, make_content())
    assert run_tool(*words, "--output", tmp_path / "report.html") == 1  # there is no val
    assert "error (val): dataset.root=" in capsys.readouterr().out
    assert (tmp_path / "report.html").is_file()
    write_dataset(tmp_path, make_content(), "val")
    assert run_tool(*words) == 0
    assert run_tool(*words, "--strict") == 1  # the same black images in train and val
    assert "look the same" in capsys.readouterr().out


def test_of_many_classes_the_chart_shows_the_most_frequent_and_the_rarest(tmp_path):
    def more_classes(content):
        content["categories"] += [{"id": 100 + i, "name": f"class {i}"} for i in range(60)]

    found, _ = after(more_classes, tmp_path)
    assert data_report._charts(found).height == 100 * 0.2 * 41  # 40 and the gap between them


def test_the_tool_needs_a_root_or_both_jsons(run_tool, capsys):
    assert run_tool("check_dataset.py", "--train-json", "a.json") == 2
    assert "give --root, or --train-json, --train-images, --val-json" in capsys.readouterr().err
