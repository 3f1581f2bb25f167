"""Every command that README and docs show is run, on small data and for a few steps.

As printed, in a folder that looks like the root of a clone in which the demo has been made, but:
trainings and evaluations get the options of `SMALL`, eight processes become two on the CPU, and
paths that stand for a user's files (`/path/to/model.pth`) lead to some that are made here. What is
not run is listed in `tests/docs_commands.py` with the reason.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from aligndetr.cli.train import parse_run
from aligndetr.config import apply_overrides, load_config
from tests.checkpoint import sources
from tests.data.coco_json import COCO_TINY
from tests.docs_commands import ROOT, commands
from tests.test_extend_page import files_of_the_page

TREES = ROOT / "datasets" / "trees"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not TREES.is_dir(), reason="tools/prepare_demo_data.py has not run"),
]

SMALL = [
    *("train.device=cpu", "train.seed=0", "train.ms_deform_attn=auto", "train.log_period=1"),
    *("train.max_iter=2", "train.eval_period=0", "dataset.train_short_edges=[64]"),
    *("dataset.test_short_edge=64", "dataset.max_size=96", "dataloader.train.num_workers=0"),
    *("dataloader.test.num_workers=0", "dataloader.train.total_batch_size=2"),
    "dataloader.train.mapper.augmentation_with_crop=null",
]
# What a user has elsewhere -> what is made here, both from the working folder.
STAND_INS = {
    "/path/to/data": "coco_tiny",
    "/path/train.json": "coco_tiny/annotations/instances_train.json",
    "/path/val.json": "coco_tiny/annotations/instances_val.json",
    "/path/train": "coco_tiny/train",
    "/path/val": "coco_tiny/val",
    "/path/to/model.pth": "r50.pth",
    "/path/to/coco_model.pth": "r50.pth",
    "/path/to/dino_r50_4scale_12ep.pth": "r50.pth",
    "/path/to/model.safetensors": "resnext50.safetensors",
    "/path/to/align_detr-4scale_r50_8xb2-12e_coco.pth": ("align_detr-4scale_r50_8xb2-12e_coco.pth"),
    "/path/to/dino-4scale_r50_8xb2-12e_coco.pth": "mmdet_dino.pth",
}
TRAINING = ("tools/train_net.py", "train", "eval")
SWEEPS = ("tools/sweep.py", "sweep")


def to_run():
    return [command for command in commands() if command.why_not_run is None]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with two short runs of the demo's config, and files under the names of STAND_INS."""
    folder = tmp_path_factory.mktemp("made")
    for name in ("tools", "projects", "examples", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "datasets").mkdir()
    (folder / "datasets/trees").symlink_to(TREES)
    shutil.copytree(COCO_TINY, folder / "coco_tiny")
    lay_out_as_coco(folder / "datasets/coco")
    for run in ("demo", "other"):
        options = [*SMALL, f"train.output_dir=output/{run}", f"train.seed={len(run)}"]
        run_words(["aligndetr", "train", "--config-file", "aligndetr_demo", *options], folder)
    save_weights(folder)
    words = "aligndetr predict --checkpoint output/demo/model_final.pth --score-threshold 0"
    run_words([*words.split(), "--input", "datasets/trees/val", "--output", "found.json"], folder)
    shutil.copy(folder / "output/demo/coco_instances_results.json", folder / "results.json")
    (folder / "instances_val.json").symlink_to(TREES / "annotations/instances_val.json")
    (folder / "val").symlink_to(TREES / "val")
    write_video(folder / "flight.mp4")
    return folder


def lay_out_as_coco(folder):
    """COCO 2017's names, with the images of coco_tiny."""
    (folder / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        json_file = COCO_TINY / f"annotations/instances_{split}.json"
        shutil.copy(json_file, folder / f"annotations/instances_{split}2017.json")
        shutil.copytree(COCO_TINY / split, folder / f"{split}2017")


def save_weights(folder):
    """Of the published model's shape here and in mmdetection, of its DINO, and of a ResNeXt."""
    align_detr, dino = shapes(sources.mmdet_align_detr()), shapes(sources.mmdet_dino())
    files = {
        "r50.pth": ("model", sources.align_detr_shapes()),
        "align_detr-4scale_r50_8xb2-12e_coco.pth": ("state_dict", align_detr),
        "mmdet_dino.pth": ("state_dict", dino),
    }
    for name, (key, wanted) in files.items():
        torch.save({key: sources.made_up(wanted, rows_alike=False)}, folder / name)
    timm = pytest.importorskip("timm")
    from safetensors.torch import save_file

    save_file(timm.create_model("resnext50_32x4d").state_dict(), folder / "resnext50.safetensors")


def shapes(state):
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def write_video(path):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 5, (96, 64))
    for shade in (40, 90):
        writer.write(np.full((64, 96, 3), shade, np.uint8))
    writer.release()


@pytest.fixture
def folder(made, request):
    """`made`, or for docs/extend.md a folder outside a clone with the files that the page shows."""
    if not request.node.callspec.params["command"].page.endswith("extend.md"):
        return made
    other = made.parent / "extend"
    if not other.exists():
        (other / "datasets").mkdir(parents=True)
        (other / "datasets/trees").symlink_to(TREES)
        for name, content in files_of_the_page().items():
            (other / name).parent.mkdir(parents=True, exist_ok=True)
            (other / name).write_text(content, encoding="utf-8")
    return other


def run_words(words, folder):
    """Start a command line in `folder`; what it printed, if it ended well."""
    if words[0] == "torchrun":
        words = ["python", "-m", "torch.distributed.run", *words[1:]]
    if words[0] == "aligndetr":
        words = ["python", "-m", *words]
    assert words[0] == "python", words
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "-1",
        "OMP_NUM_THREADS": "1",
    }
    result = subprocess.run(
        [sys.executable, *words[1:]],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    printed = result.stdout + result.stderr
    assert result.returncode == 0, (words, printed[-5000:])
    assert "Traceback" not in printed, (words, printed[-5000:])
    return printed


def shortened(command, folder, monkeypatch):
    """The words to run: with stand-ins, few processes, small images and few steps."""
    words = [with_stand_in(word) for word in command.words]
    for option in ("--num-gpus", "--nproc-per-node"):
        if option in words:
            at = words.index(option) + 1
            words[at] = str(min(2, int(words[at])))
    program = program_of(words)
    if program in TRAINING:
        return shortened_training(words, program, folder, monkeypatch)
    if program in SWEEPS:
        words = [word for word in words if not word.startswith(("train.max_iter=", "train.seed="))]
        return [*words, *SMALL, *starting_weights(words)]
    if program in ("benchmark", "tools/visualize_data.py"):  # 50 repeats, 50 images
        return ["2" if word == "50" else word for word in words]
    return words


def program_of(words):
    """The tool, or the command of `aligndetr`."""
    if words[0] == "torchrun":
        return "tools/train_net.py"
    if words[1:3] == ["-m", "aligndetr"]:
        return words[3]
    return words[2] if words[1] == "-m" else words[1]


def shortened_training(words, program, folder, monkeypatch):
    words = [re.sub("^(train.grad_accum_steps)=.*", r"\1=2", word) for word in words]
    words = [*words, *SMALL, *starting_weights(words)]
    if "--resume" not in words and "--eval-only" not in words and program != "eval":
        # The documented folder, free of what an earlier command has left.
        start = words.index(program)
        monkeypatch.setattr("sys.argv", words[start:])
        monkeypatch.chdir(folder)
        args = parse_run("")
        if Path(args.config_file).is_file() and not args.config_file.startswith("/"):
            monkeypatch.syspath_prepend(folder)
        cfg = apply_overrides(load_config(args.config_file), args.opts)
        shutil.rmtree(folder / cfg.train.output_dir, ignore_errors=True)
    return words


def starting_weights(words):
    """Random ones, unless the command names some: the ImageNet weights are on a server."""
    if any(word.startswith("train.init_checkpoint=") for word in words):
        return []
    return ["train.init_checkpoint=''"]


def with_stand_in(word):
    key, equals, value = word.partition("=")
    if word in STAND_INS:
        return STAND_INS[word]
    return f"{key}={STAND_INS[value]}" if equals and value in STAND_INS else word


@pytest.mark.parametrize("command", to_run(), ids=str)
def test_command_runs(command, folder, monkeypatch):
    words = shortened(command, folder, monkeypatch)
    printed = run_words(words, folder)
    assert "FutureWarning" not in printed


def test_the_snippet_of_export_md(made, monkeypatch):
    monkeypatch.chdir(made)
    words = ["aligndetr", "export", "--checkpoint", "output/demo/model_final.pth"]
    larger = ["dataset.test_short_edge=96", "dataset.max_size=128"]  # it takes more than 64 pixels
    run_words([*words, "--output", "output/demo/model.pt2", *larger], made)
    page = (ROOT / "docs/export.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", page, re.S)
    names = {}
    exec(snippet, names)
    assert names["boxes"].shape == (1, names["scores"].shape[1], 4)
    assert names["class_ids"].dtype == torch.int64
