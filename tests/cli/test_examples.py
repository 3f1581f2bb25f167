"""What the help texts show works as printed, in a folder that is not the repository."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from aligndetr.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
TREES = ROOT / "datasets" / "trees"
# `train` leaves what the others read; the page waits for a browser.
ORDER = sorted(
    COMMANDS.keys() - {"app"}, key=lambda name: (name != "demo-data", name != "train", name)
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder of an installed wheel, its console command in bin/."""
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "aligndetr", "projects"):
        (source / name).symlink_to(ROOT / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-deps"]
    target = folder / "site"
    subprocess.run([*pip, "--no-build-isolation", "--target", str(target), str(source)], check=True)
    return target


def run(installed, words, cwd):
    command = [sys.executable, str(installed / "bin" / words[0]), *words[1:]]
    environment = {"PYTHONPATH": str(installed), "CUDA_VISIBLE_DEVICES": "-1"}
    return subprocess.run(
        command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True
    )


@pytest.mark.slow
@pytest.mark.skipif(not TREES.is_dir(), reason="tools/prepare_demo_data.py has not run")
def test_every_example_of_the_help_works_as_printed(installed, tmp_path):
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "trees").symlink_to(TREES)
    for command in ORDER:
        printed = run(installed, ["aligndetr", command, "--help"], tmp_path).stdout
        lines = [line.strip() for line in printed.replace("\\\n", " ").splitlines()]
        examples = [shlex.split(line) for line in lines if line.startswith(f"aligndetr {command}")]
        assert examples, command
        for words in examples:
            result = run(installed, words, tmp_path)
            assert result.returncode == 0, (words, result.stdout + result.stderr)
            assert "FutureWarning" not in result.stderr


@pytest.mark.slow
@pytest.mark.skipif(not TREES.is_dir(), reason="tools/prepare_demo_data.py has not run")
def test_several_processes_start_from_the_console_command(installed, tmp_path):
    words = [
        *("aligndetr", "train", "--num-gpus", "2", "--config-file", "aligndetr_demo"),
        *("train.max_iter=2", "train.eval_period=0", "dataset.train_short_edges=[96]"),
        *("dataset.test_short_edge=96", "dataloader.train.total_batch_size=2"),
        *(f"dataset.root={TREES}", f"train.output_dir={tmp_path}/run", "train.log_period=1"),
    ]
    result = run(installed, words, tmp_path)
    printed = result.stdout + result.stderr
    assert result.returncode == 0, printed
    assert "of 2 processes" in printed
    assert "FutureWarning" not in printed
    assert (tmp_path / "run" / "model_final.pth").is_file()
