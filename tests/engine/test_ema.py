"""Averaged weights: the arithmetic, and their way through training, checkpoint and evaluation."""

import pytest
import torch
from torch import nn

from aligndetr.checkpoint import CheckpointError, read_checkpoint
from aligndetr.engine import ModelEMA, do_test, do_train, setup
from tests.engine.stand_in import arguments, stand_in_config
from tests.engine.test_train_loop import metrics

EMA = {"enabled": True, "decay": 0.5, "device": "", "use_ema_weights_for_eval_only": False}


def train(folder, resume=False, **changes):
    cfg = stand_in_config(folder, **{"model_ema": EMA, **changes})
    setup(cfg, arguments(resume=resume))
    return do_train(cfg, resume=resume)


def set_to(model, value):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)


def test_average_by_hand():
    model = nn.Linear(2, 1)
    ema = ModelEMA(model, decay=0.75)
    expected = 1.0  # the first update takes the weights as they are
    for value in (1.0, 5.0, -3.0):
        set_to(model, value)
        ema.update(model)
        expected = 0.75 * expected + 0.25 * value
    for parameter in ema.model.parameters():
        torch.testing.assert_close(parameter, torch.full_like(parameter, expected))
    assert not ema.model.training
    assert not any(p.requires_grad for p in ema.model.parameters())


def test_what_a_model_shares_stays_shared_and_buffers_are_copied():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model.again = model[0]
    ema = ModelEMA(model, decay=0.9)
    assert ema.model.again is ema.model[0]
    for _ in range(2):
        model(torch.randn(4, 2))
        ema.update(model)
    assert torch.equal(ema.model[1].running_mean, model[1].running_mean)
    assert ema.model[1].num_batches_tracked == 2


def test_goes_on_from_its_state():
    model = nn.Linear(2, 1)
    ema, resumed = ModelEMA(model, decay=0.75), ModelEMA(model, decay=0.75)
    set_to(model, 1.0)
    ema.update(model)
    resumed.load_state_dict(ema.state_dict())
    assert ema.state_dict().keys() == model.state_dict().keys()
    set_to(model, 5.0)
    resumed.update(model)
    assert resumed.model.bias.item() == 2.0
    with pytest.raises(ValueError, match="size mismatch"):
        ModelEMA(nn.Linear(3, 1)).load_state_dict(ema.state_dict())


def test_a_run_that_was_resumed_before_its_first_step_averages_the_same():
    """Steps that overflow in float16 are left out: there may be none before a checkpoint."""
    model = nn.Linear(2, 1)
    whole, resumed = ModelEMA(model, decay=0.75), ModelEMA(model, decay=0.75)
    set_to(model, 1.0)  # weights are loaded after the average was made
    whole.start(model)
    resumed.load_state_dict(whole.state_dict())
    resumed.start(model)
    set_to(model, 5.0)
    for ema in (whole, resumed):
        ema.update(model)
        assert ema.model.bias.item() == 0.75 * 1.0 + 0.25 * 5.0


def test_the_average_starts_with_the_weights_that_training_starts_with(tmp_path):
    train(tmp_path, max_iter=2)
    start = str(tmp_path / "model_final.pth")
    train(tmp_path / "next", max_iter=1, init_checkpoint=start)
    final = read_checkpoint(str(tmp_path / "next" / "model_final.pth"))
    before, after = (x["model"]["head.bias"] for x in (read_checkpoint(start), final))
    assert not torch.equal(before, after)
    torch.testing.assert_close(final["ema_state"]["head.bias"], (before + after) / 2)


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_impossible_decay_is_named(decay):
    with pytest.raises(ValueError, match=r"train\.model_ema\.decay"):
        ModelEMA(nn.Linear(1, 1), decay)


def test_both_weights_are_evaluated_saved_and_evaluated_again(tmp_path):
    train(tmp_path)
    evaluated = [line for line in metrics(tmp_path) if "bbox/AP" in line]
    assert [line["iteration"] for line in evaluated] == [3, 8]
    assert all(line["bbox/AP"] != line["ema/bbox/AP"] for line in evaluated)

    path = tmp_path / "model_final.pth"
    checkpoint = read_checkpoint(str(path))
    assert checkpoint["ema_state"].keys() == checkpoint["model"].keys()
    cfg = stand_in_config(tmp_path, init_checkpoint=str(path), model_ema=EMA)
    results = do_test(cfg)
    assert results["bbox"]["AP"] == evaluated[-1]["bbox/AP"]
    assert results["ema/bbox"]["AP"] == evaluated[-1]["ema/bbox/AP"]
    cfg.train.model_ema.use_ema_weights_for_eval_only = True
    assert do_test(cfg) == {"ema/bbox": results["ema/bbox"]}
    cfg.train.model_ema.enabled = False
    assert do_test(cfg) == {"bbox": results["bbox"]}


def test_is_updated_after_each_step_and_resumed(tmp_path):
    """The average of a resumed run is that of the weights it has seen, the earlier ones too."""
    train(tmp_path, max_iter=6)
    state = read_checkpoint(str(tmp_path / "model_0000005.pth"))
    average = state["ema_state"]["head.bias"].clone()
    steps = []
    original = ModelEMA.update

    def recording(ema, model):
        steps.append(model.head.bias.detach().clone())
        original(ema, model)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelEMA, "update", recording)
        train(tmp_path, resume=True)
    assert len(steps) == 2
    for bias in steps:
        average = 0.5 * average + 0.5 * bias
    final = read_checkpoint(str(tmp_path / "model_final.pth"))["ema_state"]["head.bias"]
    torch.testing.assert_close(final, average)


def test_averaging_may_begin_with_a_resumed_run(tmp_path, caplog):
    off = {**EMA, "enabled": False}
    train(tmp_path, max_iter=6, model_ema=off)
    train(tmp_path, resume=True)
    assert "has no state of 'ema_state', which starts anew" in caplog.text
    assert any("ema/bbox/AP" in line for line in metrics(tmp_path))


def test_evaluating_averages_that_are_not_there_is_an_error(tmp_path):
    train(tmp_path, model_ema={**EMA, "enabled": False})
    path = str(tmp_path / "model_final.pth")
    with pytest.raises(CheckpointError, match=r"no averaged weights.*model_ema\.enabled=False"):
        do_test(stand_in_config(tmp_path, init_checkpoint=path, model_ema=EMA))


def test_the_average_may_be_on_another_device():
    model = nn.Linear(2, 1)
    ema = ModelEMA(model, decay=0.75, device="meta")
    assert {p.device.type for p in ema.model.parameters()} == {"meta"}
    assert {p.device.type for p in model.parameters()} == {"cpu"}
