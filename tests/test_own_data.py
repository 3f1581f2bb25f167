"""Training on one's own data: the layout changes nothing, the length follows, heads start anew."""

import json
from pathlib import Path

import pytest
import torch
from detectron2.utils.env import seed_all_rng

from aligndetr.checkpoint import Checkpointer
from aligndetr.config import apply_overrides, load_config
from aligndetr.engine import build_model, check_run, do_train
from aligndetr.engine.length import finetune_iterations
from tests.data.coco_json import COCO_TINY, make_content, write_dataset
from tests.data.layouts_on_disk import write_roboflow, write_yolo
from tests.engine.stand_in import arguments

CONFIGS = Path(__file__).parents[1] / "projects/aligndetr/configs"
SMALL = [
    "train.device=cpu",
    "train.ms_deform_attn=reference",
    "train.seed=3",
    "train.max_iter=3",
    "train.eval_period=0",
    "train.log_period=1",
    "dataset.test_short_edge=96",
    "dataset.max_size=128",
    "dataloader.train.mapper.augmentation=[{_target_: detectron2.data.transforms.Resize,"
    " shape: [96, 128]}]",
    "dataloader.train.total_batch_size=2",
]


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    monkeypatch.setattr("aligndetr.engine.curves.plot_curves", lambda metrics, picture: None)


def demo_config(root, out, *options):
    options = [*SMALL, f"dataset.root={root}", f"train.output_dir={out}", *options]
    cfg = apply_overrides(load_config(CONFIGS / "aligndetr_demo.py"), options)
    check_run(cfg, arguments())
    return cfg


def losses(root, out):
    cfg = demo_config(root, out)
    out.mkdir()
    seed_all_rng(3)
    do_train(cfg)
    lines = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
    return [line["total_loss"] for line in lines if "total_loss" in line]


def test_every_layout_trains_to_the_same_losses(tmp_path):
    expected = losses(COCO_TINY, tmp_path / "out_coco")
    assert len(expected) == 3
    roboflow = losses(write_roboflow(COCO_TINY, tmp_path / "roboflow"), tmp_path / "out_roboflow")
    assert roboflow == expected
    # The same boxes to 1e-12: as fractions of the image they cannot be written exactly.
    yolo = losses(write_yolo(COCO_TINY, tmp_path / "yolo"), tmp_path / "out_yolo")
    assert yolo == pytest.approx(expected, rel=1e-4)


def test_weights_of_other_classes_keep_what_fits_and_say_what_does_not(tmp_path, caplog):
    write_dataset(tmp_path / "three", make_content())
    write_dataset(tmp_path / "three", make_content(), "val")
    cfg = demo_config(tmp_path / "three", tmp_path / "out")
    assert cfg.model.num_classes == 3
    other = cfg.copy()
    other.model.num_classes = 5
    trained = build_model(other)
    Checkpointer(trained, str(tmp_path), extra={"class_names": list("abcde")}).save("five")

    model = build_model(cfg)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    checkpointer = Checkpointer(model, extra={"class_names": ["car", "boat", "tree"]})
    checkpointer.load(str(tmp_path / "five.pth"), checkpointables=[], strict=False)
    assert "was trained on the classes 5 (a, b, c, d, e), the data has 3 (car, boat, tree)" in (
        caplog.text
    )
    theirs = trained.state_dict()
    kept = 0
    for name, tensor in model.state_dict().items():
        if theirs[name].shape == tensor.shape:
            assert torch.equal(tensor, theirs[name]), name
            kept += 1
        else:
            assert torch.equal(tensor, before[name]), name
            assert f"{name}: {tuple(theirs[name].shape)} in the file" in caplog.text
    assert kept > 100


@pytest.mark.parametrize(
    ("num_images", "iterations", "why"),
    [
        (20, 500, "the least"),
        (200, 1250, "100 epochs"),
        (800, 5000, "100 epochs are 5000"),
        (3000, 5000, "neither few nor many"),
        (118_287, 88_716, "12 epochs"),
    ],
)
def test_the_length_follows_the_number_of_images(num_images, iterations, why):
    assert finetune_iterations(num_images, images_per_step=16) == iterations, why


def finetune_config(out, *options):
    cfg = load_config(CONFIGS / "finetune.py")
    common = ["train.device=cpu", "train.init_checkpoint=''", f"train.output_dir={out}"]
    return apply_overrides(cfg, [*common, f"dataset.root={COCO_TINY}", *options])


def test_finetune_takes_its_length_from_the_data_unless_told(tmp_path):
    cfg = finetune_config(tmp_path, "dataloader.train.total_batch_size=2")
    check_run(cfg, arguments())
    train = cfg.train
    assert (train.max_iter, train.eval_period, train.checkpointer.period) == (500, 50, 50)

    cfg = finetune_config(tmp_path, "train.max_iter=70", "train.eval_period=0")
    check_run(cfg, arguments())
    train = cfg.train
    assert (train.max_iter, train.eval_period, train.checkpointer.period) == (70, 0, 7)


def test_finetune_can_be_tried_and_evaluated(tmp_path):
    cfg = finetune_config(tmp_path, "train.fast_dev_run.enabled=True")
    check_run(cfg, arguments())
    assert (cfg.train.max_iter, cfg.train.eval_period) == (20, 10)
    weights = tmp_path / "weights.pth"
    torch.save({"model": {}}, weights)
    cfg = finetune_config(tmp_path / "eval", f"train.init_checkpoint={weights}")
    check_run(cfg, arguments(eval_only=True))
