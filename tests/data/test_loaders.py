"""The loaders of common/data/coco.py, from the config file to a batch."""

from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from omegaconf import OmegaConf

from aligndetr.config import check_targets
from aligndetr.data import DatasetError, build_detection_test_loader
from tests.data.coco_json import COCO_TINY, make_content, write_dataset

CONFIG = Path(__file__).parents[2] / "aligndetr" / "config" / "common" / "data" / "coco.py"


@pytest.fixture
def config(tmp_path):
    """The file as `base.py` includes it, on the tiny data set, in small and in this process."""
    config = LazyConfig.load(str(CONFIG))
    config.train = {"output_dir": str(tmp_path), "device": "cpu", "seed": 3}
    config.dataset.root = str(COCO_TINY)
    config.dataset.train_short_edges = [96, 128]
    config.dataset.test_short_edge = 128
    config.dataset.max_size = 200
    config.dataloader.train.total_batch_size = 2
    config.dataloader.train.num_workers = 0
    config.dataloader.test.num_workers = 0
    return config


def reload(config, tmp_path):
    path = tmp_path / "config.yaml"
    LazyConfig.save(config, str(path))
    return LazyConfig.load(str(path))


def test_values_are_the_references():
    config = LazyConfig.load(str(CONFIG))
    train, test = config.dataloader.train, config.dataloader.test
    assert (train.total_batch_size, train.num_workers, test.num_workers) == (16, 16, 4)
    flip, resize = train.mapper.augmentation
    _, first, crop, last = train.mapper.augmentation_with_crop
    for aug in (resize, last):
        assert aug.short_edge_length == [480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800]
        assert aug.max_size == 1333
        assert aug.sample_style == "choice"
    assert first.short_edge_length == [400, 500, 600]
    assert (crop.crop_type, crop.crop_size) == ("absolute_range", [384, 600])
    (test_resize,) = test.mapper.augmentation
    assert (test_resize.short_edge_length, test_resize.max_size) == (800, 1333)
    assert (train.dataset.filter_empty, test.dataset.filter_empty) == (True, False)
    assert train.mapper.img_format == test.mapper.img_format == "RGB"


def test_config_is_plain_yaml(config, tmp_path):
    loaded = reload(config, tmp_path)
    text = (tmp_path / "config.yaml").read_text()
    assert "!!" not in text
    assert "${dataset.train_short_edges}" in text
    LazyConfig.save(loaded, str(tmp_path / "again.yaml"))
    assert (tmp_path / "again.yaml").read_text() == text
    assert OmegaConf.to_container(loaded, resolve=True)["dataset"]["max_size"] == 200


def test_train_loader_gives_batches_within_the_sizes_asked_for(config, tmp_path):
    loader = iter(instantiate(reload(config, tmp_path).dataloader.train))
    for _ in range(6):
        batch = next(loader)
        assert sorted(sample["image_id"] for sample in batch) == [86, 159269]
        for sample in batch:
            assert sample["image"].dtype == torch.uint8
            assert min(sample["image"].shape[1:]) <= 128
            assert max(sample["image"].shape[1:]) <= 200


def test_test_loader_and_evaluator_speak_of_the_same_data_set(config, tmp_path):
    dataloader = reload(config, tmp_path).dataloader
    (batch,) = list(instantiate(dataloader.test))
    assert [sample["image_id"] for sample in batch] == [404484]
    assert batch[0]["image"].shape == (3, 128, 171)
    evaluator = instantiate(dataloader.evaluator)
    assert evaluator._metadata.json_file.endswith("coco_tiny/annotations/instances_val.json")
    assert evaluator._output_dir == str(tmp_path)


def test_a_json_of_ones_own_needs_overrides_only(config, tmp_path):
    json_file = write_dataset(tmp_path / "trees", make_content())
    config.dataset.root = None
    overrides = [
        f"dataset.train_json={json_file}",
        f"dataset.train_images={tmp_path / 'trees' / 'train'}",
    ]
    config = LazyConfig.apply_overrides(config, overrides)
    batch = next(iter(instantiate(config.dataloader.train)))
    classes = {s["image_id"]: s["instances"].gt_classes.tolist() for s in batch}
    assert classes == {2: [2], 5: [0]}


def test_errors_in_a_worker_keep_their_type_and_message(config, tmp_path):
    content = make_content()
    write_dataset(tmp_path / "trees", content)
    (tmp_path / "trees" / "train" / "a.png").write_bytes(b"broken")
    (tmp_path / "trees" / "train" / "b.png").write_bytes(b"broken")
    config.dataset.root = str(tmp_path / "trees")
    config.dataloader.train.num_workers = 1
    with pytest.raises(DatasetError, match="cannot be read"):
        next(iter(instantiate(config.dataloader.train)))


def test_workers_of_the_test_loader_are_kept_between_evaluations(config):
    config.dataloader.test.num_workers = 1
    loader = instantiate(config.dataloader.test)
    (first,) = list(loader)
    workers = [worker.pid for worker in loader._iterator._workers]
    (second,) = list(loader)
    assert [worker.pid for worker in loader._iterator._workers] == workers
    assert torch.equal(first[0]["image"], second[0]["image"])


@pytest.mark.parametrize("split", ["train", "test"])
def test_there_are_no_more_workers_than_cores(split, config, monkeypatch):
    monkeypatch.setattr("aligndetr.data.loaders.available_cores", lambda: 1)
    for asked, started in ((16, 1), (1, 1), (0, 0)):
        config.dataloader[split].num_workers = asked
        assert instantiate(config.dataloader[split]).num_workers == started


@pytest.mark.parametrize("split", ["train", "test"])
def test_images_are_pinned_for_a_gpu_only(split, config):
    for device, pinned in (("cpu", False), ("cuda", True), ("cuda:1", True)):
        config.train.device = device
        loader = instantiate(config.dataloader[split])
        assert loader.pin_memory is pinned


def test_prefetching_is_ignored_without_workers(config):
    for split in ("train", "test"):
        config.dataloader[split].prefetch_factor = 3
        next(iter(instantiate(config.dataloader[split])))


def test_loaders_of_detectron2_can_still_be_named(config, tmp_path):
    config = reload(config, tmp_path)
    for split in ("train", "test"):
        node = config.dataloader[split]
        node._target_ = f"detectron2.data.build_detection_{split}_loader"
        del node.device
        check_targets(OmegaConf.to_container(node, resolve=True))
        next(iter(instantiate(node)))


def test_old_argument_that_opens_another_door_is_refused(config):
    # detectron2's builders take `cfg`, and with it all arguments from there.
    with pytest.raises(TypeError, match="cfg"):
        instantiate({**config.dataloader.train, "cfg": 1})


def test_images_of_the_test_loader_may_be_a_list(config):
    images = [{"image_id": i} for i in (7, 5, 6)]
    loader = build_detection_test_loader(images, mapper=dict, batch_size=2)
    assert list(loader) == [images[:2], images[2:]]
