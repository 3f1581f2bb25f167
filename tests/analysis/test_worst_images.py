"""Which image is the worst, by hand, and results that know files instead of ids."""

import dataclasses
import json
import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

from aligndetr.analysis import read_evaluation
from aligndetr.analysis.evaluations import of_data_set
from aligndetr.analysis.judged_images import judge_images
from aligndetr.analysis.numbers import analyse
from aligndetr.analysis.worst_images import write_worst_images
from aligndetr.evaluation.matching import match_boxes

from .reports import CAT, DOG, write_data

TOOL = str(Path(__file__).resolve().parents[2] / "tools/visualize_json_results.py")


@pytest.fixture
def evaluation(tmp_path):
    truth, results, images = write_data(tmp_path)
    return read_evaluation("three", results, truth, images)


def judged(evaluation, score):
    found = judge_images(match_boxes(evaluation.truth, evaluation.results), score)
    return [(i.number, i.true, i.false, i.missed, i.quality) for i in found]


def test_the_worst_image_comes_first(evaluation):
    # Image 1: one of one cat is found, of three detections: 1 / (1 + 2 / 2) = 1/2. Image 2: both
    # objects are missed by two detections. Image 3: one of one is missed by one.
    assert judged(evaluation, score=0.0) == [
        (1, 0, 2, 2, 0.0),  # of two with quality 0 the one with more mistakes
        (2, 0, 1, 1, 0.0),
        (0, 1, 2, 0, 0.5),
    ]


def test_only_detections_of_the_score_count(evaluation):
    # At 0.8 there are two in image 1, one of them right, and none in the others.
    assert judged(evaluation, score=0.8) == [
        (1, 0, 0, 2, 0.0),
        (2, 0, 0, 1, 0.0),
        (0, 1, 1, 0, pytest.approx(1 / 1.5)),
    ]


def test_a_poorly_placed_box_is_worse_than_a_perfect_one(evaluation):
    # Moved by 5 of 20 pixels: IoU 15 / 25.
    moved = [{"image_id": 1, "category_id": CAT, "bbox": [15, 10, 20, 20], "score": 0.9}]
    (image,) = (i for i in judged(dataclasses.replace(evaluation, results=moved), 0.5) if i[1])
    assert image == (0, 1, 0, 0, pytest.approx(0.6))


def test_an_image_without_anything_is_left_out(evaluation):
    evaluation.truth.content["annotations"] = []
    only = dataclasses.replace(evaluation, results=evaluation.results[:1])
    assert [number for number, *_ in judged(only, 0.0)] == [0]


def test_pictures_are_numbered_from_the_worst(evaluation, tmp_path):
    score, written = write_worst_images(evaluation, tmp_path / "worst", count=2, edge=200)
    assert score == 0.9  # that of the highest F1: one right, none wrong
    assert [path.name for path, _ in written] == ["0001_b & <b>.png", "0002_c.png"]
    assert sorted(path.name for path in (tmp_path / "worst").iterdir()) == [
        path.name for path, _ in written
    ]
    with Image.open(written[0][0]) as picture:
        assert picture.width > 400
        assert picture.height > 200


def test_results_of_predict_are_those_of_the_data_set(evaluation):
    """Its json has paths for images and numbers from 0 for classes."""
    number_of = {CAT: 0, DOG: 1}
    predicted = [
        {
            **result,
            "image_id": f"some/folder/{evaluation.file_names[result['image_id'] - 1]}",
            "category_id": number_of[result["category_id"]],
        }
        for result in evaluation.results
    ]
    found = of_data_set(dataclasses.replace(evaluation, results=predicted))
    assert found.results == evaluation.results
    assert of_data_set(evaluation) is evaluation


def test_the_report_judges_images_as_the_pictures_do(evaluation, tmp_path):
    content, _, _ = analyse(evaluation)
    _, written = write_worst_images(evaluation, tmp_path / "worst", edge=50)
    assert content["image_quality"] == [
        {
            "file_name": evaluation.file_names[judged.number],
            "quality": judged.quality,
            "right": judged.true,
            "wrong": judged.false,
            "missed": judged.missed,
        }
        for _, judged in written
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"image_id": "x/other.png"}, "'x/other.png'"), ({"category_id": 2}, "class 2")],
)
def test_results_of_other_data_are_refused(evaluation, change, message):
    result = {"image_id": "x/a.png", "category_id": 0, "bbox": [1, 1, 2, 2], "score": 0.5}
    with pytest.raises(ValueError, match=message):
        of_data_set(dataclasses.replace(evaluation, results=[{**result, **change}]))


def test_the_tool_prints_what_it_draws(tmp_path, monkeypatch, capsys):
    truth, results, images = write_data(tmp_path)
    command = ["visualize_json_results.py", str(results)]
    command += ["--ground-truth", str(truth), "--output", str(tmp_path / "worst")]
    command += ["--score-threshold", "0", "--edge", "100"]
    monkeypatch.setattr("sys.path", [*sys.path])  # the tool adds to it
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit, match="^error: the folder of the images is not known"):
        runpy.run_path(TOOL, run_name="__main__")
    monkeypatch.setattr("sys.argv", [*command, "--images", str(images)])
    runpy.run_path(TOOL, run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "detections with score >= 0.000"
    assert [line.split("  ")[:2] for line in lines[1:]] == [
        ["0.000", "0 right, 2 wrong, 2 missed"],
        ["0.000", "0 right, 1 wrong, 1 missed"],
        ["0.500", "1 right, 2 wrong, 0 missed"],
    ]


def test_as_many_detections_are_judged_as_the_run_counts(evaluation, tmp_path):
    only = dataclasses.replace(evaluation, max_detections=1)
    _, written = write_worst_images(only, tmp_path / "worst", score=0.0, edge=50)
    assert judged_of(written, 0) == (1, 0, 0)  # of the cats in image 1 the first alone


def judged_of(written, number):
    (image,) = (judged for _, judged in written if judged.number == number)
    return image.true, image.false, image.missed


def test_nothing_found_is_worst_everywhere(evaluation, tmp_path):
    wrong = [{"image_id": 3, "category_id": DOG, "bbox": [1, 1, 2, 2], "score": 0.5}]
    only = dataclasses.replace(evaluation, results=wrong)
    score, written = write_worst_images(only, tmp_path / "worst", edge=50)
    assert score == 0.0
    assert {judged.quality for _, judged in written} == {0.0}
    assert json.dumps([judged.missed for _, judged in written]) == "[2, 1, 1]"


@pytest.mark.parametrize(("count", "score"), [(0, 0.5), (1, 1.5), (1, -0.1)])
def test_impossible_limits_are_refused(evaluation, tmp_path, count, score):
    with pytest.raises(ValueError, match=rf"count \(={count}\) .* score \(={score}\) in \[0, 1\]"):
        write_worst_images(evaluation, tmp_path / "worst", score=score, count=count)
    assert not (tmp_path / "worst").exists()
