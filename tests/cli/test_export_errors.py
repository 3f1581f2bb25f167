"""`aligndetr export`: what the user can mend is one clear error, before anything takes long."""

import sys
from pathlib import Path

import pytest
import torch

from aligndetr.cli import export
from aligndetr.export.export import check_output

CONFIG = str(Path(__file__).parents[2] / "projects/aligndetr/configs/aligndetr_demo.py")
RANDOM = ["--config-file", CONFIG, "--output", "model.pt2"]  # needs no optional library


@pytest.fixture
def refused(monkeypatch, tmp_path):
    """Runs the command in a folder with a checkpoint of something else; what it ends with."""
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {"head.weight": torch.zeros(2)}}, "other.pth")
    Path("file").touch()

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["aligndetr export", *words])
        with pytest.raises(SystemExit) as end:
            export.main()
        assert {path.name for path in tmp_path.iterdir()} == {"other.pth", "file"}
        return end.value.code

    return run


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--checkpoint", "other.pth", "--output", "file/model.pt2"],
         "error: 'file/model.pt2' cannot be written: Not a directory"),
        (["--checkpoint", "other.pth", "--output", "model.engine"],
         "error: output 'model.engine' must end in .onnx or .pt2"),
        (["--checkpoint", "none.pth", "--output", "model.pt2"],
         "error: checkpoint 'none.pth' does not exist"),
        (["--checkpoint", "other.pth", "--output", "model.pt2"],
         "error: checkpoint 'other.pth' holds no config"),
        (["--checkpoint", "other.pth", *RANDOM], "error: checkpoint 'other.pth' does not fit"),
        (["--config-file", "none.py", "--output", "model.pt2"], "error: "),
        ([*RANDOM, "--images", "none.jpg"], "error: "),
        ([*RANDOM, "dataset.root=nowhere"], "error: there is no val set to compare on"),
        ([*RANDOM, "model.no_such_key=1"], "error: "),
    ],
)  # fmt: skip
def test_a_mistake_is_named_and_leaves_nothing(words, message, refused):
    assert refused(*words).startswith(message)


def test_the_missing_library_is_named_with_its_extra(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    said = refused("--checkpoint", "other.pth", "--output", "model.onnx")
    needed = "error: ONNX needs onnxruntime, which is not installed; "
    assert said == needed + "pip install 'aligndetr[export]'"


def test_neither_checkpoint_nor_config_is_a_mistake_in_the_words(refused, capsys):
    assert refused("--output", "model.pt2") == 2
    assert "give --checkpoint, or --config-file alone" in capsys.readouterr().err


def test_a_folder_that_is_not_there_yet_is_no_mistake(tmp_path):
    check_output(tmp_path / "new" / "folder" / "model.pt2")
    assert list(tmp_path.iterdir()) == []
