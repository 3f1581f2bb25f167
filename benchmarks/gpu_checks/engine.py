"""`tools/train_net.py` from start to end: what is true of a run whatever the device."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data_files" / "coco_tiny"
ITERATIONS, PERIOD = 6, 3


def exact_resume(device: torch.device) -> str:
    """Resumed in its middle, a run ends with the weights of one that was never interrupted.

    With all that has a state: EMA, denoising, mixed precision (float16 and its scaler on a GPU),
    augmentation by two workers.
    """
    with tempfile.TemporaryDirectory() as folder:
        whole, resumed = Path(folder, "whole"), Path(folder, "resumed")
        train_net(device, whole)
        resumed.mkdir()
        checkpoint = f"model_{PERIOD - 1:07d}.pth"
        shutil.copy(whole / checkpoint, resumed)
        (resumed / "last_checkpoint").write_text(checkpoint)
        train_net(device, resumed, "--resume")
        ends = [
            torch.load(path / "model_final.pth", map_location="cpu", weights_only=True)
            for path in (whole, resumed)
        ]
    seen = []
    for part in ("model", "ema_state"):
        one, other = (end[part] for end in ends)
        different = [name for name in one if not torch.equal(one[name], other[name])]
        assert not different, f"{len(different)} of {len(one)} tensors of {part}: {different[:3]}"
        seen.append(f"{len(one)} tensors of {part}")
    return f"equal after {ITERATIONS - PERIOD} iterations: {', '.join(seen)}"


def train_net(device: torch.device, folder: Path, *flags: str) -> None:
    """Train the demo's model for `ITERATIONS` on three real images."""
    options = [
        f"train.device={device.type}",
        f"train.output_dir={folder}",
        f"train.max_iter={ITERATIONS}",
        f"train.eval_period={ITERATIONS}",
        f"train.checkpointer.period={PERIOD}",
        "train.log_period=1",
        "train.seed=3",
        "train.report=False",
        "train.deterministic=True",
        "train.ms_deform_attn=auto",
        "train.model_ema.enabled=True",
        "train.amp.enabled=True",
        f"train.amp.dtype={'float16' if device.type == 'cuda' else 'bfloat16'}",
        "dataset.root=null",
        *(
            f"dataset.{split}_{what}={DATA}/{place}"
            for split in ("train", "val")
            for what, place in (
                ("json", f"annotations/instances_{split}.json"),
                ("images", split),
            )
        ),
        "dataset.test_short_edge=96",
        "dataset.max_size=128",
        "dataloader.train.mapper.augmentation=[{_target_: detectron2.data.transforms.RandomFlip},"
        " {_target_: detectron2.data.transforms.Resize, shape: [96, 128]}]",
        "dataloader.train.total_batch_size=2",
        "dataloader.train.num_workers=2",
        "model.num_queries=20",
    ]
    config = "projects/aligndetr/configs/aligndetr_demo.py"
    result = subprocess.run(
        [sys.executable, "tools/train_net.py", *flags, "--config-file", config, *options],
        cwd=ROOT,
        env=os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]
