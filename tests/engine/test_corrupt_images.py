"""A training goes on past images that cannot be read, lists them, and ends if they are many."""

import json

import numpy as np
import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.data import transforms as T
from PIL import Image

from aligndetr.data import DatasetError, DetrDatasetMapper, build_detection_train_loader
from aligndetr.data.corrupt_images import MAX_TRIES, NOTE, CorruptImages, ReplaceCorruptImages
from aligndetr.engine import Trainer, do_train, setup
from tests.engine.stand_in import StandIn, arguments, stand_in_config


class FromPixels(StandIn):
    def forward(self, batch):
        return super().forward([{**x, "image": x["image"].float()} for x in batch])


def write_images(folder, count, corrupt):
    """`count` files; those in `corrupt` are cut off, or, with a negative number, not there."""
    folder.mkdir(exist_ok=True)
    for i in range(count):
        path = folder / f"{i}.png"
        pixels = np.random.default_rng(i).integers(256, size=(8, 10, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        if i in corrupt:
            path.write_bytes(path.read_bytes()[:60])
        elif -i in corrupt:
            path.unlink()
    return records(str(folder), count)


def records(folder, count):
    return [
        {
            "file_name": f"{folder}/{i}.png",
            "image_id": i,
            "height": 8,
            "width": 10,
            "annotations": [],
        }
        for i in range(count)
    ]


def make_loader(dataset, num_workers=0):
    mapper = DetrDatasetMapper([T.RandomFlip()], None)
    return build_detection_train_loader(
        dataset, mapper=mapper, total_batch_size=4, num_workers=num_workers, seed=1
    )


def train(tmp_path, count, corrupt, num_workers=0, **options):
    write_images(tmp_path / "images", count, corrupt)
    rarely = {"eval_period": 0, "checkpointer": {"period": 0, "max_to_keep": 1}}
    cfg = stand_in_config(tmp_path / "run", **rarely, **options)
    cfg.model = L(FromPixels)()
    cfg.dataloader.train = L(build_detection_train_loader)(
        dataset=L(records)(folder=str(tmp_path / "images"), count=count),
        mapper=L(DetrDatasetMapper)(augmentation=[], augmentation_with_crop=None),
        total_batch_size=4,
        num_workers=num_workers,
        seed=3,
    )
    setup(cfg, arguments())
    do_train(cfg)
    return json.loads((tmp_path / "run" / "corrupt_images.json").read_text())


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_run_with_one_percent_corrupt_images_ends_normally_with_the_list(tmp_path, num_workers):
    found = train(tmp_path, 200, {17, -130}, num_workers, max_iter=50)
    assert sorted(note["image_id"] for note in found) == [17, 130]
    by_id = {note["image_id"]: note for note in found}
    assert by_id[17]["file_name"].endswith("17.png")
    assert "cannot be read" in by_id[17]["error"]
    assert "does not exist" in by_id[130]["error"]
    assert (tmp_path / "run" / "model_final.pth").exists()
    assert "2 corrupt images so far" in (tmp_path / "run" / "log.txt").read_text()


def test_more_than_the_share_end_the_run(tmp_path):
    with pytest.raises(DatasetError, match=r"of 40 training images.*max_corrupt_share` \(=0\.05\)"):
        train(tmp_path, 40, {1, 2, 3}, max_iter=40)
    assert len(json.loads((tmp_path / "run" / "corrupt_images.json").read_text())) == 3


def test_an_image_counts_once_however_often_it_is_drawn(tmp_path):
    assert len(train(tmp_path, 20, {3}, max_iter=40)) == 1


def test_the_replacement_depends_on_the_draw_alone(tmp_path):
    dataset = write_images(tmp_path, 30, {2, 3, 5, 7, 11})

    def ids(num_workers):
        batches = iter(make_loader(dataset, num_workers))
        return [[(x["image_id"], len(x.get(NOTE, ()))) for x in next(batches)] for _ in range(12)]

    assert ids(0) == ids(2)
    drawn = [pair for batch in ids(0) for pair in batch]
    assert {2, 3, 5, 7, 11}.isdisjoint(image_id for image_id, _ in drawn)
    assert sum(notes for _, notes in drawn) >= 5


def test_a_missing_folder_is_found_at_once(tmp_path):
    with pytest.raises(DatasetError, match=rf"{MAX_TRIES} images.*image folder.*does not exist"):
        next(iter(make_loader(records(str(tmp_path / "nowhere"), 1000))))


def test_errors_of_another_kind_are_not_hidden():
    def broken(_):
        raise TypeError("a mistake in the mapper")

    with pytest.raises(TypeError, match="a mistake in the mapper"):
        ReplaceCorruptImages(broken, [{}])({})


def test_notes_do_not_reach_the_model_and_survive_a_resumption(tmp_path):
    counter = CorruptImages(0.5, str(tmp_path))
    note = {"image_id": 1, "file_name": "1.png", "error": "image '1.png' is broken", "images": 4}
    batch = [{"image": "pixels", NOTE: [note]}, {"image": "pixels"}]
    counter.take_notes(batch)
    assert batch == [{"image": "pixels"}, {"image": "pixels"}]
    counter.share()
    resumed = CorruptImages(0.5, str(tmp_path))
    resumed.load_state_dict(counter.state_dict())
    resumed.take_notes([{NOTE: [note, {**note, "file_name": "2.png"}]}])
    resumed.share()
    assert list(resumed.found) == ["1.png", "2.png"]
    resumed.take_notes([{NOTE: [{**note, "file_name": "3.png"}]}])
    with pytest.raises(DatasetError, match="3 of 4 training images"):
        resumed.share()


def test_a_trainer_goes_on_counting():
    model = StandIn()
    first, second = (Trainer(model, None, torch.optim.SGD(model.parameters())) for _ in range(2))
    note = {"image_id": 1, "file_name": "1.png", "error": "image '1.png' is broken", "images": 40}
    first.corrupt_images.take_notes([{NOTE: [note]}])
    first.corrupt_images.share()
    second.load_state_dict(first.state_dict())
    assert second.corrupt_images.found == {"1.png": note}


@pytest.mark.parametrize("place", [None, "file/in/the/way"])
def test_a_list_that_cannot_be_written_does_not_end_the_run(tmp_path, monkeypatch, caplog, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    counter = CorruptImages(0.5, place)
    note = {"image_id": 1, "file_name": "1.png", "error": "image '1.png' is broken", "images": 4}
    counter.take_notes([{NOTE: [note]}])
    counter.share()
    assert list(counter.found) == ["1.png"]
    assert ("could not write" in caplog.text) == (place is not None)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
