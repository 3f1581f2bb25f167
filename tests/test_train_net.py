"""The user's commands, run as a user runs them, on three real images and a small model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from aligndetr.cli import train
from aligndetr.engine import lock_output_dir
from tests.engine.stand_in import arguments

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "tests" / "data_files" / "coco_tiny"
SMALL = [
    "train.device=cpu",
    f"dataset.train_json={DATA}/annotations/instances_train.json",
    f"dataset.train_images={DATA}/train",
    f"dataset.val_json={DATA}/annotations/instances_val.json",
    f"dataset.val_images={DATA}/val",
    "dataset.root=null",
    "dataset.test_short_edge=96",
    "dataset.max_size=128",
    "dataloader.train.mapper.augmentation=[{_target_: detectron2.data.transforms.Resize,"
    " shape: [96, 128]}]",
    "dataloader.train.total_batch_size=2",
    "model.num_queries=20",
    "train.eval_period=4",
    "train.checkpointer.period=2",
    "train.log_period=1",
    "train.seed=3",
    "train.report=False",
]
CONFIG = "projects/aligndetr/configs/aligndetr_demo.py"


def train_net(*args, config=CONFIG, fails=False):
    """Run tools/train_net.py from the repository's root; what it printed."""
    command = [sys.executable, "tools/train_net.py", "--config-file", str(config), *args]
    result = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "-1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    printed = result.stdout + result.stderr
    assert (result.returncode != 0) == fails, printed
    return printed


def error_of(monkeypatch, *args):
    """The error of a run that cannot start, in this process: another would import for seconds."""
    command = ["aligndetr", "--config-file", str(ROOT / CONFIG), *args]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as end:
        train.main()
    return str(end.value)


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def losses(folder):
    return {m["iteration"]: m["total_loss"] for m in metrics(folder) if "total_loss" in m}


def average_precision(printed):
    line = [line for line in printed.splitlines() if "to every digit" in line][-1]
    return json.loads(line.split("to every digit: ")[1])["bbox"]["AP"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of four iterations: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("train_net") / "run"
    printed = train_net(
        *SMALL, "train.max_iter=4", "train.report=True", f"train.output_dir={folder}"
    )
    return folder, printed


def test_a_run_leaves_what_the_readme_says(trained):
    folder, _ = trained
    names = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "metrics.json", "log.txt", "curves.png", "model_final.pth"} <= names
    assert {"report.html", "report.json"} <= names
    assert json.loads((folder / "report.json").read_text())["images"] == 1
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert sorted(losses(folder)) == [0, 1, 2, 3]
    checkpoint = torch.load(folder / "model_final.pth", weights_only=True)
    assert len(checkpoint["class_names"]) == 80
    assert yaml.safe_load(checkpoint["config"]) == yaml.safe_load(
        (folder / "config.yaml").read_text()
    )


def test_eval_only_prints_the_same_ap_to_every_digit(trained):
    folder, printed = trained
    again = train_net(
        "--eval-only", *SMALL, f"train.init_checkpoint={folder}/model_final.pth",
        f"train.output_dir={folder.parent}/eval",
    )  # fmt: skip
    assert average_precision(again) == average_precision(printed)


def test_the_saved_config_trains_the_same_model(trained, tmp_path):
    folder, _ = trained
    train_net(
        f"train.output_dir={tmp_path}", config=folder / "config.yaml",
    )  # fmt: skip
    assert losses(tmp_path) == losses(folder)
    first, second = (
        torch.load(path / "model_final.pth", weights_only=True)["model"]
        for path in (folder, tmp_path)
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_second_run_does_not_overwrite_but_resume_goes_on(trained, monkeypatch):
    folder, _ = trained
    arguments = (*SMALL, "train.max_iter=6", f"train.output_dir={folder}")
    assert "--resume" in error_of(monkeypatch, *arguments)
    train_net("--resume", *arguments)
    assert sorted(losses(folder)) == [0, 1, 2, 3, 4, 5]


def test_a_second_run_at_the_same_time_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("aligndetr.engine.output_lock.WAIT", 0.1)
    with lock_output_dir(str(tmp_path), arguments()):
        error = error_of(monkeypatch, *SMALL, f"train.output_dir={tmp_path}")
    assert error.startswith("error: another training")
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_two_processes_on_the_cpu(tmp_path):
    printed = train_net("--num-gpus", "2", *SMALL, "train.max_iter=2", "train.eval_period=0",
                        f"train.output_dir={tmp_path}")  # fmt: skip
    assert "of 2 processes" in printed
    assert sorted(losses(tmp_path)) == [0, 1]


def test_a_mistake_ends_all_processes_with_one_line_and_leaves_nothing_behind(tmp_path):
    folder = tmp_path / "run"
    options = [*SMALL, "train.device=cuda", f"train.output_dir={folder}"]
    printed = train_net("--num-gpus", "2", *options, fails=True)
    error = printed[printed.rindex("error: ") :]
    assert "train.device=cpu" in error
    assert len(error.splitlines()) == 1
    assert "Traceback" not in printed
    assert not folder.exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.init_checkpoint=no/such.pth", "no/such.pth"),
        ("dataset.train_json=no/such.json", "no/such.json"),
        ("model.num_classes=7", "num_classes"),
        ("train.max_itre=3", "train.max_iter"),
        ("model.criterion.match_num=[2,1]", "expected 4"),
        ("dataloader.train.mapper.img_format=HSV", "choose one of"),
        (f"train.init_checkpoint={ROOT}/setup.py", "not readable as data"),
        ("--num-machines=2", "--dist-url"),
    ],
)
def test_mistakes_are_named_before_a_process_starts(override, message, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    options = [override, *SMALL] if override.startswith("--") else [*SMALL, override]
    error = error_of(monkeypatch, "--num-gpus", "2", *options, f"train.output_dir={folder}")
    assert error.startswith("error: ")
    assert message in error
    assert len(error.splitlines()) == 1
    assert not folder.exists()
