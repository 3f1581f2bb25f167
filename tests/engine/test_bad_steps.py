"""Steps with NaN are left out and reported; too many in a row end the run, on all ranks."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from aligndetr.engine import (
    NonFiniteGradientError,
    NonFiniteLossError,
    Trainer,
    create_ddp_model,
)
from aligndetr.engine.ema import ModelEMA
from aligndetr.engine.hooks import EMAUpdater
from aligndetr.utils.errors import NonFinitePredictionError
from tests.engine.stand_in import Images, StandIn


class Troubled(StandIn):
    """Calls a function with its losses and the id of the first image; its result are the losses."""

    def __init__(self, trouble):
        super().__init__()
        self.trouble = trouble

    def forward(self, batch):
        return self.trouble(self, super().forward(batch), batch[0]["image_id"])


def loss_is_nan(model, losses, image_id):
    return {**losses, "loss_abs": losses["loss_abs"] * float("nan")}


def loss_is_infinite(model, losses, image_id):
    return {**losses, "loss_abs": losses["loss_abs"] + float("inf")}


def gradient_is_nan(model, losses, image_id):
    return {**losses, "loss_abs": losses["loss_abs"] + (0 * model.head.weight).sum().sqrt()}


def prediction_is_nan(model, losses, image_id):
    raise NonFinitePredictionError("encoder proposals", 0)


def only_for(trouble, *image_ids):
    def maybe(model, losses, image_id):
        return trouble(model, losses, image_id) if image_id in image_ids else losses

    return maybe


def make_trainer(trouble, folder, total_batch_size=2, **options):
    torch.manual_seed(0)
    model = create_ddp_model(Troubled(trouble))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    trainer = Trainer(
        model,
        Images(total_batch_size),
        optimizer,
        log_period=2,
        clip_grad={"max_norm": 1.0},
        report_dir=str(folder),
        **options,
    )
    trainer.seen = []
    model.register_forward_pre_hook(
        lambda module, _: trainer.seen.append(nn.utils.parameters_to_vector(module.parameters()))
    )
    return trainer


def reports(folder):
    return [json.loads(line) for line in Path(folder, "bad_steps.json").read_text().splitlines()]


TROUBLES = [loss_is_nan, loss_is_infinite, gradient_is_nan, prediction_is_nan]


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda f: f.__name__)
def test_one_bad_step_is_left_out_and_the_run_goes_on(trouble, tmp_path):
    trainer = make_trainer(only_for(trouble, 4), tmp_path)
    trainer.train(0, 6)
    weights = trainer.seen
    assert len(weights) == 6
    # The third batch begins with image 4: what it gave does not reach the fourth.
    assert [torch.equal(a, b) for a, b in zip(weights, weights[1:])] == [
        False, False, True, False, False,
    ]  # fmt: skip
    logged = trainer.storage.history("total_loss").values()
    assert [iteration for _, iteration in logged] == [0, 1, 3, 4, 5]
    assert trainer.storage.latest()["bad_steps"][0] == 1
    [report] = reports(tmp_path)
    assert (report["iteration"], report["in_a_row"]) == (2, 1)
    [part] = report["ranks"][0]["micro_batches"]
    assert part["images"] == [{"image_id": i, "file_name": f"{i}.png"} for i in (4, 5)]


def test_the_report_says_what_was_wrong(tmp_path):
    for trouble in TROUBLES:
        make_trainer(only_for(trouble, 0), tmp_path).train(0, 1)
    nan, infinite, gradient, prediction = reports(tmp_path)
    assert [r["cause"] for r in (nan, infinite, gradient, prediction)] == [
        "loss", "loss", "gradient", "loss",
    ]  # fmt: skip
    assert nan["ranks"][0]["micro_batches"][0]["losses"]["loss_abs"] == "nan"
    assert infinite["ranks"][0]["micro_batches"][0]["losses"]["loss_abs"] == "inf"
    assert gradient["parameters"] == ["head.weight"]
    assert gradient["ranks"][0]["micro_batches"][0]["losses"]["loss_square"] > 0
    assert "encoder proposals" in prediction["ranks"][0]["micro_batches"][0]["error"]


@pytest.mark.parametrize(
    ("trouble", "error"),
    [
        (loss_is_nan, NonFiniteLossError),
        (gradient_is_nan, NonFiniteGradientError),
        (prediction_is_nan, NonFinitePredictionError),
    ],
    ids=lambda x: x.__name__,
)
def test_too_many_in_a_row_end_the_run(trouble, error, tmp_path):
    trainer = make_trainer(only_for(trouble, 4, 6, 8), tmp_path, max_bad_steps=3)
    with pytest.raises(error, match=r"(?s)iteration 4.*8 \(8\.png\)"):
        trainer.train(0, 9)
    assert torch.equal(trainer.seen[2], nn.utils.parameters_to_vector(trainer.model.parameters()))
    assert [report["in_a_row"] for report in reports(tmp_path)] == [1, 2, 3]


def test_a_good_step_between_starts_the_count_anew(tmp_path):
    trainer = make_trainer(only_for(loss_is_nan, 2, 4, 8, 10), tmp_path, max_bad_steps=3)
    trainer.train(0, 7)
    assert [report["in_a_row"] for report in reports(tmp_path)] == [1, 2, 1, 2]
    assert trainer.bad_steps.total == 4


def test_the_count_goes_on_after_a_resumption(tmp_path):
    trainer = make_trainer(only_for(loss_is_nan, 0, 2), tmp_path, max_bad_steps=3)
    trainer.train(0, 2)
    resumed = make_trainer(only_for(loss_is_nan, 0), tmp_path, max_bad_steps=3)
    resumed.load_state_dict(trainer.state_dict())
    with pytest.raises(NonFiniteLossError, match="3 bad steps in a row"):
        resumed.train(2, 4)


@pytest.mark.parametrize("at_fault", [4, 6], ids=["first", "last"])
def test_only_the_micro_batch_at_fault_is_reported(tmp_path, at_fault):
    trainer = make_trainer(only_for(loss_is_nan, at_fault), tmp_path, grad_accum_steps=2)
    trainer.train(0, 3)
    [report] = reports(tmp_path)
    assert (report["iteration"], report["cause"]) == (1, "loss")
    [part] = report["ranks"][0]["micro_batches"]
    assert [image["image_id"] for image in part["images"]] == [at_fault, at_fault + 1]


def test_average_weights_do_not_follow_a_step_that_was_not_taken(tmp_path):
    trainer = make_trainer(only_for(loss_is_nan, 2), tmp_path)
    ema = ModelEMA(trainer.model, decay=0.5)
    averages = []
    trainer.register_hooks([EMAUpdater(ema, trainer.model)])
    trainer.model.register_forward_pre_hook(
        lambda *_: averages.append(nn.utils.parameters_to_vector(ema.model.parameters()))
    )
    trainer.train(0, 3)
    assert torch.equal(averages[1], averages[2])


def test_a_report_that_cannot_be_written_does_not_end_the_run(tmp_path, caplog):
    (tmp_path / "file").touch()
    make_trainer(only_for(loss_is_nan, 2), tmp_path / "file").train(0, 3)
    assert "could not write" in caplog.text
