"""The demo's data set, cut from a small wheel made here: no network, no real images."""

import hashlib
import io
import json
import subprocess
import zipfile

import numpy as np
import pytest
from PIL import Image

from aligndetr.data import demo

SIZES = {"train": (400, 530), "val": (123, 82)}
"""(width, height) of the two fake sources: (400-256)//128+1 = 2 by 3 tiles, and 5 by 4."""
BOXES = {
    "train": [(10, 20, 40, 60), (120, 130, 140, 160), (250, 10, 270, 30), (390, 520, 400, 530)],
    "val": [(1, 1, 20, 20), (20, 5, 30, 15), (100, 60, 123, 82)],
}


def source_image(split):
    width, height = SIZES[split]
    y, x = np.mgrid[:height, :width]
    return np.stack([x % 256, y % 256, (x + y) % 256], axis=-1).astype(np.uint8)


def fake_wheel(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(demo.LICENCE, "MIT, for a test")
        for split, stem in demo.SOURCES.items():
            png = io.BytesIO()
            Image.fromarray(source_image(split)).save(png, "png")
            archive.writestr(f"{stem}.png", png.getvalue())
            corners = ("xmin", "ymin", "xmax", "ymax")
            objects = "".join(
                "<object><name>Tree</name><bndbox>"
                + "".join(f"<{c}>{v}</{c}>" for c, v in zip(corners, box, strict=True))
                + "</bndbox></object>"
                for box in BOXES[split]
            )
            archive.writestr(f"{stem}.xml", f"<annotation>{objects}</annotation>")
    return path


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    path = fake_wheel(tmp_path / "deepforest-2.1.0-py3-none-any.whl")
    monkeypatch.setattr(demo, "WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


@pytest.fixture
def root(wheel, tmp_path):
    root = tmp_path / "data" / "trees"
    assert demo.prepare_trees(root, wheel) is True
    return root


def load(root, split):
    return json.loads((root / "annotations" / f"instances_{split}.json").read_text())


def boxes_of(dataset, file_name, crowd):
    (image,) = (i for i in dataset["images"] if i["file_name"] == file_name)
    return [
        a["bbox"]
        for a in dataset["annotations"]
        if a["image_id"] == image["id"] and a["iscrowd"] == crowd
    ]


def test_windows_are_the_ones_the_design_counts():
    # The sizes of the real sources: 288 overlapping tiles to train on, 20 separate ones for val.
    train = list(demo.overlapping_windows(2299, 2472, demo.TRAIN_TILE, demo.TRAIN_STRIDE))
    val = list(demo.grid_windows(1249, 1035, demo.VAL_COLUMNS, demo.VAL_ROWS))
    assert len(train) == 288
    assert {(x1 - x0, y1 - y0) for x0, y0, x1, y1 in train} == {(256, 256)}
    assert len(val) == 20
    covered = np.zeros((1035, 1249), dtype=int)
    for x0, y0, x1, y1 in val:
        covered[y0:y1, x0:x1] += 1
    assert (covered == 1).all()


def test_a_cut_box_is_kept_from_forty_percent_on():
    boxes = np.array(
        [
            [90.0, 10, 110, 20],  # half inside: its left half stays
            [92, 10, 112, 20],  # 8 of 20 columns, exactly 40 %: stays
            [93, 10, 113, 20],  # 7 of 20, 35 %: crowd
            [100, 10, 110, 20],  # touches the edge only: gone
            [-5, -5, 200, 200],  # larger than the window: crowd, the whole window
        ]
    )
    kept, crowd = demo.clip_boxes(boxes, (0, 0, 100, 50))
    assert kept.tolist() == [
        [90, 10, 100, 20],
        [92, 10, 100, 20],
        [93, 10, 100, 20],
        [0, 0, 100, 50],
    ]
    assert crowd.tolist() == [False, False, True, True]


def test_clipped_boxes_are_in_the_windows_coordinates():
    kept, _ = demo.clip_boxes(np.array([[60.0, 35, 70, 45]]), (50, 30, 90, 55))
    assert kept.tolist() == [[10, 5, 20, 15]]


def test_tiles_hold_the_source_pixels(root):
    image = source_image("train")
    tile = np.asarray(Image.open(root / "train" / "x0128_y0256.png"))
    assert (tile == image[256:512, 128:384]).all()
    assert len(list((root / "train").glob("*.png"))) == 6
    assert len(list((root / "val").glob("*.png"))) == 20


def test_annotations_are_coco(root):
    dataset = load(root, "train")
    assert dataset["categories"] == [{"id": 1, "name": "tree", "supercategory": "plant"}]
    assert len({a["id"] for a in dataset["annotations"]}) == len(dataset["annotations"])
    for annotation in dataset["annotations"]:
        _, _, width, height = annotation["bbox"]
        assert annotation["area"] == width * height > 0
    # Box 2 lies where four tiles overlap; box 3 is cut at x = 256, with 30 % left of it.
    assert boxes_of(dataset, "x0000_y0000.png", crowd=0) == [[10, 20, 30, 40], [120, 130, 20, 30]]
    assert boxes_of(dataset, "x0000_y0000.png", crowd=1) == [[250, 10, 6, 20]]
    assert boxes_of(dataset, "x0128_y0000.png", crowd=0) == [[0, 130, 12, 30], [122, 10, 20, 20]]
    # Nothing is in these tiles, and they are listed all the same.
    assert boxes_of(dataset, "x0128_y0256.png", crowd=0) == []


def test_summary_counts_boxes_and_crowd_apart(root):
    found = demo.summarise_trees(root)["train"]
    assert found == demo.SplitSummary(images=6, images_with_trees=4, boxes=6, crowd_regions=1)


def test_detectron2_reads_it(root):
    from detectron2.data.datasets.coco import load_coco_json

    records = load_coco_json(
        str(root / "annotations" / "instances_val.json"), str(root / "val"), "demo_trees_test"
    )
    assert len(records) == 20
    assert all(len(record["annotations"]) <= 3 for record in records)
    assert records[0]["annotations"][0]["bbox"] == [1, 1, 19, 19]


def test_second_call_changes_nothing(root, wheel):
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    assert demo.prepare_trees(root, wheel) is False
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*")} == before


def test_a_complete_data_set_needs_no_wheel(root, monkeypatch):
    monkeypatch.setattr(demo, "download_wheel", lambda folder: pytest.fail("downloaded again"))
    assert demo.prepare_trees(root) is False


def test_of_two_processes_the_second_takes_what_the_first_has_written(wheel, tmp_path, monkeypatch):
    write = demo.write_trees

    def both_write(wheel, folder):
        write(wheel, tmp_path / "trees")
        write(wheel, folder)

    monkeypatch.setattr(demo, "write_trees", both_write)
    assert demo.prepare_trees(tmp_path / "trees", wheel) is False
    assert [path.name for path in tmp_path.glob("*trees*")] == ["trees"]


def test_a_missing_tile_is_an_error_that_names_it(root):
    (root / "val" / "x0000_y0000.png").unlink()
    with pytest.raises(FileExistsError, match=r"x0000_y0000\.png cannot be read"):
        demo.prepare_trees(root)


def test_a_tile_of_another_size_is_an_error_that_names_it(root):
    path = root / "val" / "x0000_y0000.png"
    Image.open(path).resize((9, 7)).save(path)
    with pytest.raises(FileExistsError, match=r"x0000_y0000\.png is 9 x 7 pixels, its json says"):
        demo.prepare_trees(root)


def test_a_set_cut_by_other_rules_is_an_error(root, monkeypatch):
    monkeypatch.setattr(demo, "TRAIN_STRIDE", 64)
    with pytest.raises(FileExistsError, match="by other rules"):
        demo.prepare_trees(root)


def test_a_folder_with_other_things_is_left_alone(wheel, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    with pytest.raises(FileExistsError, match="--root"):
        demo.prepare_trees(tmp_path / "mine", wheel)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_another_wheel_is_refused_and_leaves_nothing(wheel, tmp_path):
    wheel.write_bytes(wheel.read_bytes() + b"x")
    with pytest.raises(ValueError, match="sha256"):
        demo.prepare_trees(tmp_path / "data" / "trees", wheel)
    assert list((tmp_path / "data").iterdir()) == []


def test_a_crash_half_way_leaves_nothing(wheel, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "_info", lambda split: 1 / 0 if split == "val" else {})
    with pytest.raises(ZeroDivisionError):
        demo.prepare_trees(tmp_path / "data" / "trees", wheel)
    assert list((tmp_path / "data").iterdir()) == []


def test_failed_download_says_what_pip_said(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "REQUIREMENT", "deepforest==not a version")
    with pytest.raises(RuntimeError, match=r"(?s)--wheel"):
        demo.download_wheel(tmp_path)


def test_pip_asks_for_no_password(tmp_path, monkeypatch):
    def run(command, **options):
        calls.append((command, options.get("stdin")))
        return subprocess.CompletedProcess(command, 1, "", "401")

    calls = []
    monkeypatch.setattr(demo.subprocess, "run", run)
    with pytest.raises(RuntimeError, match="401"):
        demo.download_wheel(tmp_path)
    ((command, stdin),) = calls
    assert "--no-input" in command
    assert stdin == subprocess.DEVNULL


def test_a_wheel_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no wheel at .*gone\.whl; .*deepforest==2\.1\.0"):
        demo.prepare_trees(tmp_path / "trees", tmp_path / "gone.whl")


def test_pip_hands_over_the_wheel(wheel, tmp_path, monkeypatch):
    with zipfile.ZipFile(wheel, "a") as archive:  # as much as pip looks at
        info = "deepforest-2.1.0.dist-info"
        text = "Metadata-Version: 2.1\nName: deepforest\nVersion: 2.1.0\n"
        archive.writestr(f"{info}/METADATA", text)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    (tmp_path / "new").mkdir()
    assert demo.download_wheel(tmp_path / "new").read_bytes() == wheel.read_bytes()


def test_the_command_says_what_there_is(wheel, tmp_path, run_tool, capsys):
    words = ["prepare_demo_data.py", "--root", tmp_path / "trees", "--wheel", wheel]
    for said in ("written", "already there and complete"):
        assert run_tool(*words) == 0
        first, train, _ = capsys.readouterr().out.splitlines()
        assert first == f"{tmp_path / 'trees'}: {said}"
        assert "6 tiles, 4 with trees; 6 boxes, 1 crowd regions" in train
    assert run_tool(*words[:2], tmp_path, *words[3:]).startswith("error: ")
