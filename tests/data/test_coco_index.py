"""Indexes of jsons: what they hold, when they are built anew, and what they cost."""

import json
import logging
import multiprocessing
import os
import pickle
import random
import threading
import time
from collections import defaultdict
from pathlib import Path

import pyarrow as pa
import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetCatalog, DatasetFromList, get_detection_dataset_dicts
from detectron2.structures import BoxMode
from torch.utils.data import DataLoader

from aligndetr.data import (
    CocoDataset,
    DatasetError,
    coco_reading,
    get_detection_dataset,
    index_build,
    index_files,
    register_dataset,
)
from aligndetr.data.coco_index import BadIndexError, CocoIndex
from aligndetr.data.index_build import build_index
from aligndetr.data.index_files import open_index
from tests.data.coco_json import COCO_TINY, make_content, write_dataset, write_json


def random_content(num_images=60, num_annotations=500, seed=0):
    """Everything a json may hold: ids without order, bad boxes, crowd, masks of all kinds."""
    draw = random.Random(seed)
    image_ids = draw.sample(range(10_000), num_images)
    masks = [
        [[1, 2, 3, 4, 5, 6.5]],
        [[1, 2, 3, 4]],
        [],
        {"size": [2, 3], "counts": [1, 2, 3]},
        {"size": [2, 3], "counts": mask_util.frPyObjects([[0, 0, 2, 0, 2, 2]], 2, 3)[0]["counts"]},
    ]
    masks[-1]["counts"] = masks[-1]["counts"].decode()
    annotations = []
    for i in draw.sample(range(-5, 3 * num_annotations), num_annotations):
        numbers = [draw.choice([-3, 0, 1.5, 7, 1e-3, 11.25, 30]) for _ in range(4)]
        annotation = {
            "id": i,
            "image_id": draw.choice([*image_ids[:-9], 77_777]),  # some images have none
            "category_id": draw.choice([3, 7, 90]),
            "bbox": numbers,
        }
        if draw.random() < 0.5:
            annotation["iscrowd"] = draw.choice([0, 1, True])
        if draw.random() < 0.2:
            annotation["ignore"] = 1
        if draw.random() < 0.5:
            annotation["segmentation"] = draw.choice(masks)
        annotations.append(annotation)
    images = [
        {"id": i, "file_name": f"ü/{i}.png", "width": draw.choice([20, 33.0]), "height": 25}
        for i in image_ids
    ]
    categories = make_content()["categories"]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def records_of(content, image_root):
    """What the data set must give, from the whole json in memory."""
    label_of = {number: label for label, number in enumerate([3, 7, 90])}
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    annotations_of = defaultdict(list)
    for annotation in content["annotations"]:
        x, y, w, h = annotation["bbox"]
        if annotation["image_id"] not in sizes or w <= 0 or h <= 0:
            continue
        width, height = sizes[annotation["image_id"]]
        if x >= width or y >= height or x + w <= 0 or y + h <= 0:
            continue
        record = {
            "bbox": annotation["bbox"],
            "bbox_mode": BoxMode.XYWH_ABS,
            "iscrowd": int(bool(annotation.get("iscrowd") or annotation.get("ignore"))),
            "category_id": label_of[annotation["category_id"]],
        }
        mask = annotation.get("segmentation")
        if isinstance(mask, dict) and isinstance(mask["counts"], list):
            mask = mask_util.frPyObjects(mask, *mask["size"])
        elif isinstance(mask, list):
            mask = [polygon for polygon in mask if len(polygon) >= 6]
        if mask:
            record["segmentation"] = mask
        annotations_of[annotation["image_id"]].append(record)
    return [
        {
            "file_name": os.path.join(image_root, image["file_name"]),
            "height": image["height"],
            "width": image["width"],
            "image_id": image["id"],
            "annotations": annotations_of[image["id"]],
        }
        for image in sorted(content["images"], key=lambda image: image["id"])
    ]


@pytest.fixture
def build(tmp_path):
    """Builds and opens the index of some content, the json's lists in its order."""

    def build_and_open(content, **arguments):
        json_file = write_json(tmp_path, content)
        build_index(json_file, tmp_path / "index.arrow", **arguments)
        return CocoIndex(tmp_path / "index.arrow")

    return build_and_open


# ---------------------------------------------------------------------------------------------
# what it holds


@pytest.mark.parametrize("chunk_bytes", [1, 5000, 32 << 20])
@pytest.mark.parametrize("keys", ["categories annotations images", "images categories annotations"])
def test_records_are_those_of_the_whole_json(chunk_bytes, keys, build):
    """Types too (repr), whatever the order of the lists and the size of the blocks."""
    content = random_content()
    index = build({key: content[key] for key in keys.split()}, chunk_bytes=chunk_bytes)
    expected = records_of(content, "/root")
    assert repr(list(CocoDataset(index, "/root"))) == repr(expected)
    usable = [r for r in expected if any(not a["iscrowd"] for a in r["annotations"])]
    assert 0 < len(usable) < len(expected)
    assert repr(list(CocoDataset(index, "/root", filter_empty=True))) == repr(usable)


def test_blocks_are_bounded(build, monkeypatch):
    held, write, join = [], coco_reading._Spill._write, index_build._join_annotations
    monkeypatch.setattr(
        coco_reading._Spill, "_write", lambda self: held.append(len(self._rows)) or write(self)
    )
    joined = []
    monkeypatch.setattr(
        index_build, "_join_annotations", lambda *part: joined.append(join(*part)) or joined[-1]
    )
    build(random_content(num_annotations=2000), chunk_bytes=20_000)
    assert sum(held) == 60 + 2000
    assert max(held) <= 20_000 / index_build.ENTRY_OVERHEAD
    assert sum(map(len, joined)) == 60
    assert max(len(b"".join(texts)) for texts in joined) < 20_000


def test_numbers_go_to_arrays_in_blocks_and_are_the_same(build, monkeypatch):
    content = random_content(num_images=20, num_annotations=60)
    whole = build(content)
    expected = list(CocoDataset(whole, "/root")), whole.info
    monkeypatch.setattr(coco_reading, "_BLOCK", 7)
    blocks = build(content)
    assert (list(CocoDataset(blocks, "/root")), blocks.info) == expected
    content["annotations"].append(content["annotations"][3])
    with pytest.raises(DatasetError, match="stands twice|twice in annotations"):
        build(content)


def test_ids_may_be_texts(build):
    content = make_content()
    for image in content["images"]:
        image["id"] = f"n{image['id']}"
    for annotation in content["annotations"]:
        annotation["id"] = str(annotation["id"])
        annotation["image_id"] = f"n{annotation['image_id']}"
    dataset = CocoDataset(build(content), "")
    assert [(r["image_id"], len(r["annotations"])) for r in dataset] == [("n2", 1), ("n5", 2)]


def test_objects_are_counted_by_class(build):
    content = random_content()
    index = build(content)
    counts = [0, 0, 0]
    for record in records_of(content, ""):
        for annotation in record["annotations"]:
            counts[annotation["category_id"]] += not annotation["iscrowd"]
    assert index.info.objects_per_class == counts
    assert sum(index.info.box_problems[:3]) == 500 - sum(
        len(record["annotations"]) for record in records_of(content, "")
    )


@pytest.mark.parametrize("chunk_bytes", [1, 32 << 20])
def test_orientations_are_those_of_the_sizes(chunk_bytes, build):
    content = random_content()
    for image in content["images"][::7]:
        image["width"] = image["height"]  # a square does not lie
    index = build(content, chunk_bytes=chunk_bytes)
    for filter_empty in (False, True):
        dataset = CocoDataset(index, "", filter_empty)
        expected = [record["width"] > record["height"] for record in dataset]
        assert dataset.orientations().tolist() == expected
        assert set(expected) == {False, True}


def test_a_data_set_is_a_sequence(build):
    dataset = CocoDataset(build(make_content()), "")
    assert len(dataset) == 2
    assert dataset[-1] == dataset[1] != dataset[0]
    with pytest.raises(IndexError):
        dataset[2]
    dataset[0]["annotations"].clear()
    assert len(dataset[0]["annotations"]) == 1


# ---------------------------------------------------------------------------------------------
# when it is built


@pytest.fixture
def builds(monkeypatch):
    """The jsons that an index has been built of since."""
    built = []

    def count(json_file, index_file):
        built.append(json_file)
        build_index(json_file, index_file)

    monkeypatch.setattr(index_files, "build_index", count)
    return built


@pytest.fixture
def tiny(tmp_path):
    """(json, image folder) of a data set of two images."""
    return write_dataset(tmp_path / "trees", make_content()), tmp_path / "trees" / "train"


def hidden(json_file, pattern):
    return sorted((json_file.parent / ".aligndetr").glob(pattern))


def test_the_second_start_reads_no_json(tiny, builds, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    first = open_index(*tiny)
    assert str(first.path) in caplog.text
    monkeypatch.setattr(index_files, "_sha256", None)  # not even its bytes
    assert open_index(*tiny).path == first.path
    assert builds == [tiny[0]]
    assert first.path.parent == tiny[0].parent / ".aligndetr"


def edit(json_file, name):
    content = json.loads(json_file.read_text())
    content["categories"][0]["name"] = name
    json_file.write_text(json.dumps(content))


def test_a_changed_json_is_indexed_anew(tiny, builds):
    json_file, images = tiny
    open_index(*tiny)
    status = json_file.stat()
    edit(json_file, "bush")  # as many characters
    os.utime(json_file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert json_file.stat().st_size == status.st_size
    assert open_index(json_file, images).info.categories[-1] == [90, "bush"]
    assert len(builds) == 2


def test_a_training_opens_the_index_it_was_started_with_when_the_json_has_changed(tiny):
    """As workers do that are spawned for its first evaluation."""
    dataset = pickle.dumps(CocoDataset(open_index(*tiny), tiny[1]))
    edit(tiny[0], "bush")
    open_index(*tiny)
    assert pickle.loads(dataset)[0]["annotations"]


def test_an_old_index_goes_when_it_has_not_been_opened_for_long(tiny):
    indexes = [open_index(*tiny)]
    for name in ("bush", "herb"):
        edit(tiny[0], name)
        indexes.append(open_index(*tiny))
    for index in indexes:
        os.utime(index.path, (0, 0))
    CocoIndex(indexes[1].path)
    edit(tiny[0], "fern")
    assert set(hidden(tiny[0], "*.arrow")) == {index.path for index in indexes}
    last = open_index(*tiny)
    assert set(hidden(tiny[0], "*.arrow")) == {indexes[1].path, last.path}
    assert indexes[0].annotations(0)  # whoever has it open keeps it


def test_an_index_of_an_older_version_is_replaced_without_a_warning(tiny, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        patch.setattr(index_files, "FORMAT", "v0")
        old = open_index(*tiny).path
    os.utime(old, (0, 0))
    assert open_index(*tiny).path != old
    assert not old.exists()
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_a_touched_or_copied_json_is_not(tiny, builds):
    json_file, images = tiny
    path = open_index(*tiny).path
    os.utime(json_file, (0, 0))
    copy = json_file.with_name("copy.json")
    copy.write_bytes(json_file.read_bytes())
    assert open_index(json_file, images).path == path
    assert open_index(copy, images).path == path
    assert builds == [json_file]


def test_another_image_folder_is_looked_through_at_its_first_start(tiny, builds, tmp_path):
    json_file, images = tiny
    open_index(*tiny)
    (tmp_path / "other").mkdir()
    with pytest.raises(DatasetError, match="2 of 2 image files are not in .*other"):
        open_index(json_file, tmp_path / "other")
    assert builds == [json_file]


def test_of_many_images_a_few_are_looked_for_at_later_starts(tmp_path, monkeypatch):
    content = make_content()
    arguments = (write_dataset(tmp_path, content), tmp_path / "train")
    content["images"] = [{**content["images"][0], "id": i} for i in range(1000)]
    write_json(tmp_path, content)
    open_index(*arguments)
    asked = []
    monkeypatch.setattr(index_files.os.path, "exists", lambda path: asked.append(path) or True)
    open_index(*arguments)
    assert len(asked) == index_files.IMAGE_SAMPLE


DAMAGE = {
    "cut off": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "other content": lambda data: b"x" * len(data),
    "end lost": lambda data: data[:-20] + bytes(20),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_index_is_built_anew(damage, tiny, builds, caplog):
    path = open_index(*tiny).path
    path.write_bytes(damage(path.read_bytes()))
    assert open_index(*tiny).annotations(0) == [[[10, 4, 8, 6], 0, 90]]
    assert len(builds) == 2
    assert "built anew" in caplog.text


def test_damage_in_the_middle_is_named_when_it_is_read(tiny):
    path = open_index(*tiny).path
    data = path.read_bytes()
    path.write_bytes(data.replace(b"[[[10,", b"\0\0\0\0\0\0").replace(b"[[[10, ", bytes(7)))
    with pytest.raises(DatasetError, match=r"damaged at row 0; delete it"):
        open_index(*tiny).annotations(0)


def test_an_index_that_has_lost_a_row_is_none(build, tmp_path):
    table = pa.ipc.open_file(build(make_content()).path.read_bytes()).read_all()
    with pa.ipc.new_file(tmp_path / "less.arrow", table.schema) as writer:
        writer.write_table(table.slice(1))
    with pytest.raises(BadIndexError, match=r"less\.arrow' is not an index of 2 images"):
        CocoIndex(tmp_path / "less.arrow")


def test_a_damaged_stamp_costs_nothing_but_a_reading(tiny, builds):
    open_index(*tiny)
    (stamp,) = hidden(tiny[0], "*.stamp")
    for content in (b"", b"[]", b'{"json": 1', b'{"json": null}'):
        stamp.write_bytes(content)
        open_index(*tiny)
    assert len(builds) == 1


def test_where_nothing_can_be_written_the_cache_folder_serves(tiny, builds, tmp_path, monkeypatch):
    json_file, images = tiny
    (json_file.parent / ".aligndetr").write_text("in the way, as a read-only folder would be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert open_index(*tiny).path.parent == tmp_path / "cache" / "aligndetr"
    open_index(*tiny)
    assert len(builds) == 1
    monkeypatch.setenv("XDG_CACHE_HOME", str(json_file))
    with pytest.raises(DatasetError, match="make one of the folders writable or set XDG_CACHE"):
        open_index(*tiny)


def test_an_index_in_a_folder_one_cannot_write_to_is_used(tiny, builds, monkeypatch):
    path = open_index(*tiny).path
    monkeypatch.setattr(index_files, "first_writable", None)
    assert open_index(*tiny).path == path


def test_git_does_not_see_an_index(tiny):
    open_index(*tiny)
    assert (tiny[0].parent / ".aligndetr" / ".gitignore").read_text() == "*\n"


def test_a_failed_build_leaves_nothing(tiny, builds):
    tiny[0].write_text('{"images": [')
    with pytest.raises(DatasetError, match="is not JSON"):
        open_index(*tiny)
    assert [path.name for path in hidden(tiny[0], "*")] == [".gitignore", "lock"]


def test_a_json_that_changes_meanwhile_is_refused(tiny, monkeypatch):
    def build_and_touch(json_file, index_file):
        build_index(json_file, index_file)
        os.utime(json_file, (0, 0))

    monkeypatch.setattr(index_files, "build_index", build_and_touch)
    with pytest.raises(DatasetError, match="changed while it was read"):
        open_index(*tiny)
    assert hidden(tiny[0], "*.stamp") == []


def open_in_process(arguments, builds, answers):
    index = open_index(*arguments)
    answers.put((len(builds), index.info.num_images, index.annotations(0)))


def test_of_several_processes_one_builds(tiny, builds):
    context = multiprocessing.get_context("fork")  # spawned, each would import torch
    answers = context.Queue()
    processes = [
        context.Process(target=open_in_process, args=(tiny, builds, answers)) for _ in range(4)
    ]
    for process in processes:
        process.start()
    received = sorted(answers.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    assert [built for built, *_ in received] == [0, 0, 0, 1]
    assert {str(content) for _, *content in received} == {"[2, [[[10, 4, 8, 6], 0, 90]]]"}


def test_those_that_wait_say_so(tiny, builds, caplog):
    caplog.set_level(logging.INFO)
    folder = tiny[0].parent / ".aligndetr"
    folder.mkdir()
    with index_files._locked(folder, tiny[0]):
        waiting = threading.Thread(target=open_index, args=tiny)
        waiting.start()
        while "Another process is indexing" not in caplog.text:
            assert waiting.is_alive()
            time.sleep(0.05)
        assert builds == []
    waiting.join(120)
    assert len(builds) == 1


def test_where_there_are_no_locks_each_builds_its_own_and_says_so(tiny, monkeypatch, caplog):
    def no_locks(file, waiting):
        raise OSError("no locks available")

    monkeypatch.setattr(index_files, "lock", no_locks)
    assert open_index(*tiny).info.num_images == 2
    assert "cannot be locked: no locks available" in caplog.text


def test_a_large_json_is_announced_aloud(tiny, monkeypatch, caplog):
    monkeypatch.setattr(index_files, "LARGE", tiny[0].stat().st_size)
    open_index(*tiny)
    said = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert said[0].startswith(f"Indexing {str(tiny[0])!r}")


def test_a_json_that_is_not_there_is_named(tiny):
    tiny[0].unlink()
    with pytest.raises(DatasetError, match=r"instances_train\.json' does not exist"):
        open_index(*tiny)


# ---------------------------------------------------------------------------------------------
# in loaders


def test_a_data_set_pickles_as_its_paths(build):
    dataset = CocoDataset(build(random_content(num_annotations=5000)), "/root", filter_empty=True)
    text = pickle.dumps(dataset)
    assert len(text) < 500
    assert list(pickle.loads(text)) == list(dataset)


def identity(batch):
    return batch


def test_spawned_workers_read_the_same_index(build):
    dataset = CocoDataset(build(random_content()), "/root")
    loader = DataLoader(
        dataset, num_workers=1, multiprocessing_context="spawn", collate_fn=identity, batch_size=30
    )
    assert [record for batch in loader for record in batch] == list(dataset)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells")
def test_reading_all_of_a_large_index_does_not_grow_the_process(tmp_path):
    """60 MB of masks: mapped pages are given back on the way."""
    content = make_content()
    image, mask = content["images"][0], {"size": [40, 20], "counts": "x" * 20_000}
    ids = range(3000)
    content["images"] = [{**image, "id": i} for i in ids]
    annotation = content["annotations"][0]
    content["annotations"] = [
        {**annotation, "id": i, "image_id": i, "segmentation": mask} for i in ids
    ]
    build_index(write_json(tmp_path, content), tmp_path / "index.arrow")
    index = CocoIndex(tmp_path / "index.arrow")
    assert index.path.stat().st_size > 50 << 20
    before, largest = resident_kib(), 0
    for row in ids:
        index.annotations(row)
        largest = max(largest, resident_kib() - before) if row % 50 == 0 else largest
    assert largest < 25 << 10


def resident_kib():
    text = Path("/proc/self/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0])


@pytest.mark.parametrize("filter_empty", [True, False])
def test_loaders_get_what_detectron2s_function_gives(filter_empty, tmp_path):
    write_dataset(tmp_path, make_content())
    names = [register_dataset("train", root=str(root)) for root in (tmp_path, tmp_path)]
    ours = get_detection_dataset(names, filter_empty=filter_empty)
    theirs = get_detection_dataset_dicts(names, filter_empty=filter_empty)
    assert list(ours) == theirs
    assert list(get_detection_dataset(names[0], filter_empty=filter_empty)) * 2 == theirs


def test_data_sets_of_others_come_as_lists(monkeypatch):
    record = DatasetCatalog.get(register_dataset("val", root=str(COCO_TINY)))[0]
    monkeypatch.setitem(DatasetCatalog.data, "others", lambda: [record, record])
    dataset = get_detection_dataset("others")
    assert isinstance(dataset, DatasetFromList)
    assert list(dataset) == [record, record]


def test_names_that_do_not_fit_are_refused(tmp_path):
    write_dataset(tmp_path, make_content())
    names = [register_dataset("train", root=str(root)) for root in (tmp_path, COCO_TINY)]
    with pytest.raises(ValueError, match="thing_classes"):
        get_detection_dataset(names)
    with pytest.raises(DatasetError, match="unknown data set 'never_heard_of'"):
        get_detection_dataset("never_heard_of")
    with pytest.raises(DatasetError, match="no data set is named"):
        get_detection_dataset([])


def test_a_data_set_without_an_object_is_refused_when_filtered(tmp_path):
    content = make_content()
    content["annotations"] = []
    write_dataset(tmp_path, content, "val")
    name = register_dataset("val", root=str(tmp_path))
    assert len(get_detection_dataset(name, filter_empty=False)) == 2
    with pytest.raises(DatasetError, match="holds no image that can be used"):
        get_detection_dataset(name)
