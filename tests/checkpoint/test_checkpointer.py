"""Checkpoints are whole or absent, plain, finite, and found again."""

import logging

import pytest
import torch
from torch import nn

from aligndetr.checkpoint import (
    Checkpointer,
    CheckpointError,
    CheckpointWriteError,
    read_checkpoint,
)


class Counter:
    """The smallest checkpointable."""

    def __init__(self, count=0):
        self.count = count

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def test_saves_and_loads_weights_state_and_extra(tmp_path):
    model = nn.Linear(2, 3)
    extra = {"config": "model: {}", "class_names": ["tree"]}
    Checkpointer(model, str(tmp_path), extra=extra, counter=Counter(7)).save("a", iteration=4)

    other, counter = nn.Linear(2, 3), Counter()
    checkpointer = Checkpointer(other, str(tmp_path), counter=counter)
    rest = checkpointer.load(checkpointer.get_checkpoint_file())
    assert torch.equal(other.weight, model.weight)
    assert counter.count == 7
    assert rest == {**extra, "iteration": 4}


def test_weights_alone_leave_other_state(tmp_path):
    Checkpointer(nn.Linear(2, 3), str(tmp_path), counter=Counter(7)).save("a")
    counter = Counter(1)
    checkpointer = Checkpointer(nn.Linear(2, 3), counter=counter)
    checkpointer.load(str(tmp_path / "a.pth"), checkpointables=[])
    assert counter.count == 1


@pytest.mark.parametrize("failing", ["torch.save", "os.replace"])
def test_failure_while_saving_leaves_the_old_file_whole(tmp_path, monkeypatch, failing):
    model = nn.Linear(2, 3)
    checkpointer = Checkpointer(model, str(tmp_path))
    checkpointer.save("model_final")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def disk_full(*args, **kwargs):
        if failing == "torch.save":
            args[1].write(b"half a checkpoi")
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(failing, disk_full)
        nn.init.zeros_(model.weight)
        with pytest.raises(OSError, match="no space left"):
            checkpointer.save("model_final")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_saved(tmp_path, value):
    model = nn.Linear(2, 3)
    nn.init.constant_(model.bias, value)
    with pytest.raises(FloatingPointError, match="'bias'"):
        Checkpointer(model, str(tmp_path)).save("a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [{1, 2}, nn.Linear(1, 1), print])
def test_what_is_not_plain_is_not_saved(tmp_path, value):
    checkpointer = Checkpointer(nn.Linear(2, 3), str(tmp_path), extra={"x": [{"y": value}]})
    with pytest.raises(TypeError, match=r"checkpoint\['x'\]\[0\]\['y'\]"):
        checkpointer.save("a")
    assert list(tmp_path.iterdir()) == []


def test_state_that_does_not_fit_is_explained(tmp_path):
    def with_optimizer(*shapes):
        model = nn.Linear(2, 3)
        return Checkpointer(model, str(tmp_path), optimizer=torch.optim.SGD(shapes, lr=1))

    with_optimizer(nn.Parameter(torch.ones(1))).save("a")
    other = with_optimizer(nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1)))
    with pytest.raises(CheckpointError, match=r"'optimizer'.*a\.pth.*train\.init_checkpoint"):
        other.load(str(tmp_path / "a.pth"))


def test_other_classes_are_mentioned(tmp_path, caplog):
    model = nn.Linear(2, 3)
    Checkpointer(model, str(tmp_path), extra={"class_names": ["tree", "car"]}).save("a")
    checkpointer = Checkpointer(model, extra={"class_names": ["car", "tree"]})
    with caplog.at_level(logging.WARNING):
        checkpointer.load(str(tmp_path / "a.pth"))
    assert "tree, car" in caplog.text


def test_file_is_readable_by_torch_load_of_weights_only(tmp_path):
    model = nn.Linear(2, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    Checkpointer(model, str(tmp_path), optimizer=optimizer).save("a")
    torch.load(tmp_path / "a.pth", weights_only=True)
    assert read_checkpoint(str(tmp_path / "a.pth"))["optimizer"]["state"]


def test_no_path_loads_nothing():
    assert Checkpointer(nn.Linear(2, 3)).load("") == {}


def test_without_last_checkpoint_the_highest_number_is_taken(tmp_path, caplog):
    checkpointer = Checkpointer(nn.Linear(2, 3), str(tmp_path))
    with pytest.raises(FileNotFoundError, match="name of the checkpoint .* `last_checkpoint`"):
        checkpointer.get_checkpoint_file()
    for name in ("model_0000999.pth", "model_12345678.pth", "model_best.pth", "model_final.pth"):
        (tmp_path / name).touch()
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_12345678.pth")
    assert "no `last_checkpoint`; taking model_12345678.pth" in caplog.text


@pytest.mark.parametrize("name", ["../elsewhere/a.pth", "../../x", "", ".", "gone.pth"])
def test_last_checkpoint_must_name_a_file_beside_it(tmp_path, name):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.pth").touch()
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "last_checkpoint").write_text(name)
    with pytest.raises(FileNotFoundError, match=f"last_checkpoint' names '{name}'.*Write the name"):
        Checkpointer(nn.Linear(2, 3), str(folder)).get_checkpoint_file()


def test_the_best_checkpoint_is_the_last_resort(tmp_path, caplog):
    checkpointer = Checkpointer(nn.Linear(2, 3), str(tmp_path))
    checkpointer.save("model_best", iteration=4)
    for name in ("model_0000006", "model_0000009"):
        (tmp_path / f"{name}.pth").write_bytes(b"cut short")
    (tmp_path / "last_checkpoint").write_text("model_0000009.pth")
    assert checkpointer.load_newest()["iteration"] == 4
    assert "Going on from" in caplog.text
    assert "model_best.pth instead" in caplog.text


def test_a_file_in_the_way_of_the_folder_is_named_and_not_its_free_space(tmp_path):
    (tmp_path / "output").touch()
    checkpointer = Checkpointer(nn.Linear(2, 3), str(tmp_path / "output" / "run"))
    with pytest.raises(
        CheckpointWriteError, match=r"a\.pth' could not be written .*; .*Not a directory"
    ):
        checkpointer.save("a")
