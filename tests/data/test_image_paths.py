"""A data set's images lie in its folder, whatever a json, a data.yaml or a link in it says."""

import json
import os

import pytest

from aligndetr.data import DatasetError, register_dataset
from aligndetr.data.image_paths import ImageFolder
from aligndetr.data.survey import survey_split
from tests.data.coco_json import make_content, write_dataset, write_json
from tests.data.layouts_on_disk import write_yolo
from tests.data.test_layouts import change_yaml, load

OUTSIDE = "leads out of the image folder"


@pytest.fixture
def coco(tmp_path):
    for split in ("train", "val"):
        write_dataset(tmp_path / "coco", make_content(), split)
    return tmp_path / "coco"


def rename_image(root, file_name):
    content = make_content()
    content["images"][0]["file_name"] = str(file_name)
    return write_json(root, content)


def steal(coco, tmp_path):
    """An image outside, and ways for a json to name it."""
    secret = tmp_path / "secret.png"
    (coco / "train" / "b.png").rename(secret)
    (coco / "train" / "link.png").symlink_to(secret)
    (coco / "train" / "sub").symlink_to(tmp_path)
    (coco / "train" / "loop.png").symlink_to("loop.png")
    return ["../../secret.png", secret, "link.png", "sub/secret.png", "sub/../../secret.png"]


@pytest.mark.parametrize("way", range(5))
def test_an_image_outside_is_refused_and_named(way, coco, tmp_path):
    json_file = rename_image(coco, steal(coco, tmp_path)[way])
    with pytest.raises(DatasetError, match=f"{OUTSIDE}.*secret.png.*dataset.train_images"):
        register_dataset("train", root=str(coco))
    _, findings = survey_split("train", json_file, coco / "train")
    assert any(OUTSIDE in finding.text for finding in findings)


@pytest.mark.parametrize("name", ["\0.png", "a\0.png", "\ud800.png", "sub/", ""])
def test_what_no_file_is_called_is_named(name, coco):
    rename_image(coco, name)
    with pytest.raises(DatasetError, match="is no name of a file; correct `file_name`"):
        register_dataset("train", root=str(coco))


def test_links_that_stay_in_the_folder_are_followed(coco):
    (coco / "train" / "more").mkdir()
    (coco / "train" / "b.png").rename(coco / "train" / "more" / "b.png")
    (coco / "train" / "linked").symlink_to("more")
    (coco / "train" / "link.png").symlink_to(coco / "train" / "linked" / "b.png")
    for name in ("linked/b.png", "link.png", "more/../link.png", coco / "train/more/b.png"):
        rename_image(coco, name)
        assert register_dataset("train", root=str(coco))


@pytest.mark.parametrize("place", ["coco", "coco/train", "."])
def test_a_folder_that_the_user_names_may_be_a_link(place, coco, tmp_path):
    """As data/coco, a COCO or an LVIS elsewhere; as coco/train2017; and any folder above."""
    real = (tmp_path / place).rename(tmp_path.parent / f"{tmp_path.name}_real")
    (tmp_path / place).symlink_to(real)
    assert load("train", coco)[0] == ["car", "boat", "tree"]


def test_lvis_names_its_images_from_the_folder_of_both_splits(coco, tmp_path):
    content = make_content()
    for image in content["images"]:
        image["file_name"] = f"train/{image['file_name']}"
    write_json(coco, content)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "coco").symlink_to(coco)
    data = tmp_path / "data" / "coco"
    json_file = str(data / "annotations" / "instances_train.json")
    assert register_dataset("train", json_file=json_file, image_root=str(data))


def test_a_loop_of_links_is_a_missing_file(coco, tmp_path):
    steal(coco, tmp_path)
    folder = ImageFolder(coco / "train")
    assert folder.has("a.png")
    assert not folder.has("absent/a.png")
    assert folder.has("loop.png")  # there is such an entry; to open it is an error of its own


# ---------------------------------------------------------------------------------------------
# YOLO


@pytest.fixture
def yolo(coco, tmp_path):
    return write_yolo(coco, tmp_path / "yolo")


@pytest.mark.parametrize(
    "place", ["../coco/train", "/coco/train", "../../etc", "images/../../coco"]
)
def test_a_data_yaml_cannot_name_a_place_outside(place, yolo, tmp_path):
    place = place.replace("/coco", f"{tmp_path}/coco") if place.startswith("/") else place
    change_yaml(yolo, train=place)
    with pytest.raises(DatasetError, match="all that data.yaml names must lie beside it"):
        register_dataset("train", root=str(yolo))
    change_yaml(yolo, train="train", path=str(tmp_path / "coco"))
    with pytest.raises(DatasetError, match="all that data.yaml names must lie beside it"):
        register_dataset("train", root=str(yolo))


def test_a_list_cannot_name_an_image_outside(yolo, tmp_path):
    (yolo / "train.txt").write_text(f"images/train/a.png\n{tmp_path}/coco/train/a.png\n")
    change_yaml(yolo, train="train.txt")
    with pytest.raises(DatasetError, match="train.txt' lists .* outside of"):
        register_dataset("train", root=str(yolo))


@pytest.mark.parametrize("name", ["images/train/a.png", "labels/train/a.txt", "train.txt"])
def test_a_link_out_is_not_read_nor_shown(name, yolo, tmp_path):
    (tmp_path / "private").write_text("password\n")
    (yolo / name).unlink(missing_ok=True)
    (yolo / name).symlink_to(tmp_path / "private")
    if name == "train.txt":
        change_yaml(yolo, train=name)
    with pytest.raises(DatasetError, match="leads out of") as error:
        register_dataset("train", root=str(yolo))
    assert "password" not in str(error.value)


# ---------------------------------------------------------------------------------------------
# what is written beside a json


@pytest.mark.parametrize("name", [".gitignore", "lock", ""])
def test_nothing_is_written_through_a_link_of_an_archive(name, coco, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "profile").write_text("mine")
    hidden = coco / "annotations" / ".aligndetr"
    if name:
        hidden.mkdir()
        (hidden / name).symlink_to(tmp_path / "home" / "profile")
    else:
        hidden.symlink_to(tmp_path / "home")
    register_dataset("train", root=str(coco))
    assert os.listdir(tmp_path / "home") == ["profile"]
    assert (tmp_path / "home" / "profile").read_text() == "mine"


def test_the_index_of_an_archive_is_checked_like_its_json(coco, tmp_path):
    """Its stamp would have to know a time of change that nobody can set."""
    steal(coco, tmp_path)
    rename_image(coco, "a.png")
    register_dataset("train", root=str(coco))
    folder = coco / "annotations" / ".aligndetr"
    (own,) = folder.glob("*.arrow")
    rename_image(coco, "link.png")
    with pytest.raises(DatasetError, match=OUTSIDE):
        register_dataset("train", root=str(coco))
    (theirs,) = set(folder.glob("*.arrow")) - {own}
    theirs.replace(own)  # an index of other content under the name of an honest one
    for stamp in folder.glob("*.stamp"):
        assert json.loads(stamp.read_text())["index"] == own.name
        stamp.unlink()
    rename_image(coco, "a.png")
    with pytest.raises(DatasetError, match=OUTSIDE):
        register_dataset("train", root=str(coco))
