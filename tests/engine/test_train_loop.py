"""do_train and do_test from beginning to end, on a stand-in for the detector."""

import json
import logging
import re

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.engine import HookBase
from omegaconf import OmegaConf

from aligndetr.checkpoint import CheckpointError, read_checkpoint
from aligndetr.engine import build_optimizer, do_test, do_train, rehearse, setup, train_loop
from tests.engine.stand_in import StandIn, arguments, stand_in_config


def metrics(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def train(folder, resume=False, **changes):
    cfg = stand_in_config(folder, **changes)
    setup(cfg, arguments(resume=resume))
    return do_train(cfg, resume=resume)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole training: (folder, trained model)."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, train(folder)


def test_leaves_checkpoints_metrics_events_curves_and_config(finished):
    folder, _ = finished
    names = {path.name for path in folder.iterdir()}
    assert {"model_0000002.pth", "model_0000005.pth", "model_final.pth", "last_checkpoint"} <= names
    assert {"metrics.json", "config.yaml", "log.txt", "curves.png"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert (folder / "last_checkpoint").read_text() == "model_final.pth"


def test_logs_losses_learning_rate_and_ap(finished):
    lines = metrics(finished[0])
    logged = [line for line in lines if "total_loss" in line]
    assert [line["iteration"] for line in logged] == [1, 3, 5, 7]
    for key in ("loss_square", "loss_abs", "grad_norm", "lr", "data_time", "host_mem_mb"):
        assert key in logged[-1], key
    assert [line["iteration"] for line in lines if "bbox/AP" in line] == [3, 8]
    # The backbone's rate; the schedule drops it for the last two of eight iterations.
    assert [line["lr"] for line in logged] == pytest.approx([0.005, 0.005, 0.005, 0.0005])


def test_checkpoint_is_data_and_knows_its_config(finished):
    folder, model = finished
    checkpoint = read_checkpoint(str(folder / "model_final.pth"))
    assert checkpoint["iteration"] == 7
    assert "tests.engine.stand_in.StandIn" in checkpoint["config"]
    assert checkpoint["class_names"] == []
    for name, tensor in model.state_dict().items():
        assert torch.equal(checkpoint["model"][name], tensor)


def test_loss_falls(tmp_path):
    train(tmp_path, max_iter=60, eval_period=0, checkpointer={"period": 100, "max_to_keep": 1})
    losses = [line["total_loss"] for line in metrics(tmp_path) if "total_loss" in line]
    assert losses[-1] < 0.5 * losses[0]


def test_resumed_run_ends_where_an_uninterrupted_one_does(finished, tmp_path):
    folder, whole = finished
    # As if killed after iteration 5: that checkpoint is the last, and data begins anew.
    for name in ("model_0000002.pth", "model_0000005.pth"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "last_checkpoint").write_text("model_0000005.pth")
    resumed = train(tmp_path, resume=True)

    logged = [line for line in metrics(tmp_path) if "total_loss" in line]
    assert [line["iteration"] for line in logged] == [7]
    assert logged[0]["lr"] == pytest.approx(0.0005)
    state = read_checkpoint(str(tmp_path / "model_final.pth"))["trainer"]["optimizer"]["state"]
    assert {entry["step"].item() for entry in state.values()} == {8}
    # Not equal: it saw other images. Close: two small steps.
    torch.testing.assert_close(resumed.head.weight, whole.head.weight, atol=0.01, rtol=0)


def test_resumed_run_follows_the_hyperparameters_of_its_config(tmp_path, caplog):
    train(tmp_path, max_iter=6)
    caplog.clear()
    cfg = stand_in_config(tmp_path)
    cfg.optimizer.update(lr=0.5, weight_decay=0.25, betas=[0.8, 0.999])
    setup(cfg, arguments(resume=True))
    do_train(cfg, resume=True)
    logged = [line for line in metrics(tmp_path) if "total_loss" in line]
    # The backbone's half of it, after the schedule's drop to a tenth.
    assert (logged[-1]["iteration"], logged[-1]["lr"]) == (7, pytest.approx(0.025))
    groups = read_checkpoint(str(tmp_path / "model_final.pth"))["trainer"]["optimizer"][
        "param_groups"
    ]
    assert {g["initial_lr"] for g in groups} == {0.25, 0.5}
    assert {(g["weight_decay"], tuple(g["betas"])) for g in groups} == {(0.25, (0.8, 0.999))}
    for change in ("lr 0.01 -> 0.5", "lr 0.005 -> 0.25", "weight_decay 0.01 -> 0.25", "betas (0.9"):
        assert change in caplog.text
    caplog.clear()
    train(tmp_path, resume=True, max_iter=9)
    assert "lr 0.5 -> 0.01" in caplog.text


def test_resuming_a_finished_run_trains_nothing(tmp_path):
    model = train(tmp_path)
    again = train(tmp_path, resume=True)
    assert torch.equal(model.head.weight, again.head.weight)


def test_resuming_without_checkpoint_starts_from_the_beginning(tmp_path):
    train(tmp_path, resume=True)
    assert metrics(tmp_path)[0]["iteration"] == 1


def test_resume_counts_earlier_checkpoints_for_max_to_keep(tmp_path):
    keep_two = {"period": 2, "max_to_keep": 2}
    train(tmp_path, max_iter=4, checkpointer=keep_two)
    train(tmp_path, resume=True, checkpointer=keep_two)
    numbered = sorted(path.name for path in tmp_path.glob("model_0*.pth"))
    assert numbered == ["model_0000005.pth", "model_0000007.pth"]


def test_periods_of_zero_save_and_evaluate_at_the_end_only(tmp_path):
    train(tmp_path, max_iter=3, eval_period=0, checkpointer={"period": 0, "max_to_keep": 1})
    names = {path.name for path in tmp_path.glob("*.pth")}
    assert names == {"model_final.pth", "model_best.pth"}
    assert [m["iteration"] for m in metrics(tmp_path) if "bbox/AP" in m] == [3]


def test_a_training_ends_with_a_file_to_share(finished):
    folder, _ = finished
    shared = read_checkpoint(str(folder / "model_final.safetensors"))
    final = read_checkpoint(str(folder / "model_final.pth"))
    assert shared.keys() <= {"model", "config", "class_names", "preprocessing"}
    assert shared["config"] == final["config"]
    assert shared.get("class_names", []) == final["class_names"]
    assert shared["model"].keys() == final["model"].keys()
    assert all(torch.equal(shared["model"][name], t) for name, t in final["model"].items())


def test_a_file_to_share_that_cannot_be_written_does_not_end_the_run(tmp_path, monkeypatch, caplog):
    def full(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr("aligndetr.checkpoint.checkpointer.write_safetensors", full)
    train(tmp_path, max_iter=3)
    assert (tmp_path / "model_final.pth").exists()
    assert not (tmp_path / "model_final.safetensors").exists()
    assert "No space left on device" in caplog.text


def test_evaluating_the_final_checkpoint_gives_the_same_to_every_digit(finished):
    folder, _ = finished
    trained = [line["bbox/AP"] for line in metrics(folder) if "bbox/AP" in line][-1]
    cfg = stand_in_config(folder, init_checkpoint=str(folder / "model_final.pth"))
    before = sorted(path.name for path in folder.iterdir())
    setup(cfg, arguments(eval_only=True))
    assert do_test(cfg)["bbox"]["AP"] == trained
    assert do_test(cfg, finished[1])["bbox"]["AP"] == trained
    assert sorted(path.name for path in folder.iterdir()) == before


def test_evaluation_needs_every_tensor(finished, tmp_path):
    checkpoint = read_checkpoint(str(finished[0] / "model_final.pth"))
    del checkpoint["model"]["head.bias"]
    torch.save(checkpoint, tmp_path / "partial.pth")
    cfg = stand_in_config(tmp_path, init_checkpoint=str(tmp_path / "partial.pth"))
    with pytest.raises(CheckpointError, match=r"(?s)Every tensor must fit.*head"):
        do_test(cfg)


def test_new_run_keeps_the_metrics_of_one_that_left_no_checkpoint(tmp_path):
    (tmp_path / "metrics.json").write_text('{"iteration": 1, "total_loss": 99.0}\n')
    train(tmp_path)
    assert all(line["total_loss"] != 99.0 for line in metrics(tmp_path) if "total_loss" in line)
    assert [p.read_text() for p in tmp_path.glob("metrics.2*.json")] == [
        '{"iteration": 1, "total_loss": 99.0}\n'
    ]


def test_last_checkpoint_that_is_gone_is_named(finished, tmp_path):
    (tmp_path / "last_checkpoint").write_text("model_0000009.pth")
    with pytest.raises(FileNotFoundError, match="model_0000009.pth"):
        train(tmp_path, resume=True)


def test_a_rehearsal_passes_and_leaves_nothing(finished, tmp_path, caplog):
    folder, _ = finished
    rehearse(stand_in_config(tmp_path / "new"), arguments())
    assert list(tmp_path.iterdir()) == []
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    rehearse(stand_in_config(folder, max_iter=9), arguments(resume=True))
    final = str(folder / "model_final.pth")
    rehearse(stand_in_config(folder, init_checkpoint=final), arguments(eval_only=True))
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert caplog.text == ""


def test_a_rehearsal_finds_what_the_run_would_fail_for(finished, tmp_path):
    (tmp_path / "cut.pth").write_bytes((finished[0] / "model_final.pth").read_bytes()[:999])
    cut = stand_in_config(tmp_path / "new", init_checkpoint=str(tmp_path / "cut.pth"))
    for args in (arguments(), arguments(eval_only=True)):
        with pytest.raises(CheckpointError, match=r"cut\.pth"):
            rehearse(cut, args)
    (tmp_path / "model_0000001.pth").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"model_0000001\.pth"):
        rehearse(stand_in_config(tmp_path), arguments(resume=True))
    cfg = stand_in_config(tmp_path / "new")
    cfg.optimizer.lr = -1.0
    with pytest.raises(ValueError, match="learning rate"):
        rehearse(cfg, arguments())
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optimizer.betas", [0.9], r"`optimizer` .*ConfigIndexError: list index out of range"),
        ("train.hooks", None, "`train.hooks` .*TypeError: 'NoneType' object is not iterable"),
        ("model", {"_target_": "torch.nn.Linear", "in_features": "a", "out_features": 2},
         r"`model` .*TypeError: .*\.py, line \d+"),
        ("train.model_ema", {"enabled": True, "decay": "x", "device": ""},
         r"`train\.model_ema` .*TypeError"),
        ("lr_multiplier.values", 3, "`lr_multiplier` .*TypeError"),
        ("dataloader.train", {"_target_": "aligndetr.data.build_detection_train_loader",
                              "mapper": {"_target_": "torch.nn.Linear"}, "total_batch_size": 4},
         r"`dataloader\.train\.mapper` .*TypeError: .*in_features"),
    ],
)  # fmt: skip
def test_a_rehearsal_names_the_part_with_a_value_that_does_not_fit(tmp_path, key, value, message):
    cfg = stand_in_config(tmp_path, hooks=[])
    OmegaConf.update(cfg, key, value, merge=False)
    with pytest.raises(ValueError, match="does not fit: ") as error:
        rehearse(cfg, arguments())
    assert re.search(message, str(error.value))
    assert "\n" not in str(error.value)
    assert isinstance(error.value.__cause__, Exception)
    assert logging.root.manager.disable == logging.NOTSET


def test_failed_run_is_not_evaluated(tmp_path):
    cfg = stand_in_config(tmp_path, max_iter=2)
    cfg.dataloader.train.poisoned_id = 5  # in the second, the last batch
    setup(cfg, arguments())
    with pytest.raises(FloatingPointError):
        do_train(cfg)
    assert not (tmp_path / "model_final.pth").exists()
    assert all("bbox/AP" not in line for line in metrics(tmp_path))


def test_max_to_keep_counts_files_with_a_number_only(tmp_path):
    keep_one = {"period": 2, "max_to_keep": 1}
    train(tmp_path, max_iter=2, checkpointer=keep_one)
    for name in ("model_old.pth", "model_1_copy.pth"):
        (tmp_path / name).touch()
    train(tmp_path, resume=True, max_iter=4, checkpointer=keep_one)
    left = {path.name for path in tmp_path.glob("*.pth")}
    assert left == {"model_old.pth", "model_1_copy.pth", "model_0000003.pth", "model_final.pth",
                    "model_best.pth"}  # fmt: skip


def test_an_old_checkpoint_that_cannot_be_deleted_does_not_end_the_run(tmp_path, caplog):
    keep_one = {"period": 2, "max_to_keep": 1}
    train(tmp_path, max_iter=2, checkpointer=keep_one)
    (tmp_path / "model_0000000.pth").mkdir()  # no file, so it cannot be unlinked
    with caplog.at_level(logging.WARNING):
        train(tmp_path, resume=True, max_iter=4, checkpointer=keep_one)
    assert "model_0000000.pth could not be deleted (`max_to_keep`)" in caplog.text
    assert (tmp_path / "model_final.pth").is_file()


def test_a_checkpoint_beyond_the_end_of_the_run_is_refused(tmp_path):
    train(tmp_path, max_iter=6, checkpointer={"period": 4, "max_to_keep": None})
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.pth")}
    with pytest.raises(ValueError, match=r"has taken 6 steps, but `train.max_iter` is 4; raise it"):
        train(tmp_path, resume=True, max_iter=4)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.pth")} == before


@pytest.mark.parametrize("resume", [False, True], ids=["new", "restarted job"])
def test_a_training_takes_the_folder_of_its_fast_dev_run_and_none_of_its_weights(
    tmp_path, caplog, resume
):
    train(tmp_path, max_iter=4)
    (tmp_path / "config.yaml").write_text("train: {fast_dev_run: {enabled: true}}")
    number = len(list(tmp_path.glob("model_*"))) + 1  # last_checkpoint is one of them
    train(tmp_path, max_iter=2, eval_period=0, resume=resume)
    assert f"Deleting the {number} checkpoints of the fast_dev_run" in caplog.text
    assert {path.name for path in tmp_path.glob("model_*")} == {
        "model_final.pth", "model_final.safetensors", "model_best.pth"
    }  # fmt: skip
    for name in ("final", "best"):
        assert read_checkpoint(str(tmp_path / f"model_{name}.pth"))["iteration"] == 1


def test_a_run_killed_before_its_first_save_goes_on_from_its_best(tmp_path, caplog):
    train(tmp_path, max_iter=4, checkpointer={"period": 0, "max_to_keep": None})
    for name in ("model_final.pth", "last_checkpoint"):
        (tmp_path / name).unlink()
    best = read_checkpoint(str(tmp_path / "model_best.pth"))["iteration"]
    train(tmp_path, max_iter=6, resume=True)
    assert "taking model_best.pth" in caplog.text
    assert best + 2 in [m["iteration"] for m in metrics(tmp_path)]


def test_a_damaged_final_checkpoint_is_written_again(tmp_path):
    train(tmp_path, max_iter=4, checkpointer={"period": 2, "max_to_keep": None})
    final = tmp_path / "model_final.pth"
    whole = read_checkpoint(str(final))["model"]
    final.write_bytes(final.read_bytes()[:-1000])
    train(tmp_path, max_iter=4, resume=True)
    again = read_checkpoint(str(final))["model"]
    assert all(torch.equal(again[name], whole[name]) for name in whole)


def test_machines_with_different_checkpoints_do_not_start(tmp_path, monkeypatch):
    train(tmp_path, max_iter=4)
    # As if another machine had found an older one.
    monkeypatch.setattr(train_loop.comm, "all_gather", lambda x: [x, 1] if x == 4 else [x])
    with pytest.raises(ValueError, match=r"different iterations \[4, 1\]; every machine needs"):
        train(tmp_path, resume=True)


def test_after_going_back_the_files_of_the_course_that_was_left_go_first(tmp_path):
    train(tmp_path, max_iter=8, checkpointer={"period": 2, "max_to_keep": None})
    (tmp_path / "last_checkpoint").write_text("model_0000003.pth")
    train(tmp_path, resume=True, max_iter=6, checkpointer={"period": 1, "max_to_keep": 1})
    assert [path.name for path in tmp_path.glob("model_0*.pth")] == ["model_0000005.pth"]


class NumberSteps(HookBase):
    """Writes the number of the last step into a weight."""

    def after_step(self):
        with torch.no_grad():
            self.trainer.model.head.bias.fill_(self.trainer.iter)


def test_a_checkpoint_holds_what_a_hook_of_the_user_changes_after_its_step(tmp_path):
    train(tmp_path, max_iter=5, hooks=[L(NumberSteps)()])
    for name, iteration in (("0000002", 2), ("final", 4)):
        weights = read_checkpoint(str(tmp_path / f"model_{name}.pth"))["model"]
        assert weights["head.bias"].item() == iteration


def test_lists_of_the_config_are_plain_in_the_optimizer():
    """Older versions of torch keep `betas` as they are given, and a checkpoint must hold them."""

    class KeepsBetas(torch.optim.Optimizer):
        def __init__(self, params, lr, betas):
            super().__init__(params, {"lr": lr, "betas": betas})

    cfg = stand_in_config("unused")
    cfg.optimizer._target_ = KeepsBetas
    optimizer = build_optimizer(cfg, StandIn())
    assert {type(group["betas"]) for group in optimizer.param_groups} == {tuple}
