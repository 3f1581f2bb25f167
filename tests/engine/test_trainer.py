"""One training step: what it changes, what it logs, and what stops it."""

import copy
import math

import pytest
import torch
from detectron2.engine import HookBase
from detectron2.utils.events import EventStorage
from torch import nn

from aligndetr.engine import (
    NonFiniteGradientError,
    NonFiniteLossError,
    NonFiniteStepError,
    Trainer,
)
from aligndetr.engine.metrics import LossLog
from aligndetr.utils.errors import NonFinitePredictionError
from tests.engine.stand_in import Images, StandIn


class Recorder(HookBase):
    """Keeps a copy of the model after every step, and the log."""

    def before_train(self):
        self.models = [copy.deepcopy(self.trainer.model)]
        self.logged = {}

    def after_step(self):
        self.models.append(copy.deepcopy(self.trainer.model))
        self.logged = {k: h.values() for k, h in self.trainer.storage.histories().items()}


def train(model=None, steps=4, poisoned_id=-1, lr=0.1, max_bad_steps=1, hooks=(), **options):
    torch.manual_seed(0)
    model = model or StandIn()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    trainer = Trainer(
        model, Images(2, poisoned_id), optimizer, max_bad_steps=max_bad_steps, **options
    )
    recorder = Recorder()
    trainer.register_hooks([recorder, *hooks])
    recorder.trainer_itself = trainer
    trainer.train(0, steps)
    return recorder


def step_length(recorder) -> float:
    before, after = (nn.utils.parameters_to_vector(m.parameters()) for m in recorder.models[:2])
    return (after - before).norm().item()


def test_clipping_bounds_the_step_and_logs_the_norm_before_it():
    free, clipped = train(steps=1, log_period=1), train(steps=1, clip_grad={"max_norm": 0.01})
    assert step_length(free) > 0.002
    assert step_length(clipped) == pytest.approx(0.1 * 0.01, rel=1e-3)
    norm = clipped.logged["grad_norm"][0][0]
    assert norm == pytest.approx(step_length(free) / 0.1, rel=1e-4)
    assert free.logged["grad_norm"][0][0] == norm


class Calls(HookBase):
    """Notes which of its methods was called, and the norm of the gradients there."""

    def __init__(self):
        self.noted = []

    def _note(self, name):
        grads = [p.grad for p in self.trainer.model.parameters() if p.grad is not None]
        norm = torch.stack([g.norm() for g in grads]).norm().item() if grads else None
        self.noted.append((name, norm))

    def before_step(self):
        self._note("before_step")

    def after_backward(self):
        self._note("after_backward")

    def after_step(self):
        self._note("after_step")


def test_hooks_see_the_gradients_of_a_step_before_they_are_clipped():
    calls = Calls()
    recorder = train(steps=1, clip_grad={"max_norm": 0.01}, log_period=1, hooks=[calls])
    norm = recorder.logged["grad_norm"][0][0]
    assert norm > 0.02
    assert calls.noted == [
        ("before_step", None),
        ("after_backward", pytest.approx(norm)),
        ("after_step", pytest.approx(0.01, rel=1e-3)),
    ]


def test_gradients_do_not_add_up_over_steps():
    recorder = train(steps=3, lr=0.0)
    images = Images(2)
    batches = iter(images)
    for _ in range(2):
        next(batches)
    model = recorder.models[0]
    sum(model(next(batches)).values()).backward()
    trained = recorder.trainer_itself.model
    torch.testing.assert_close(trained.head.weight.grad, model.head.weight.grad)


@pytest.mark.parametrize("log_period", [1, 3, 10])
def test_every_loss_of_every_iteration_is_logged_whatever_the_period(log_period):
    recorder = train(steps=4, log_period=log_period)
    expected = train(steps=4, log_period=1)
    assert [i for _, i in recorder.logged["total_loss"]] == [0, 1, 2, 3]
    for name in ("total_loss", "loss_square", "loss_abs"):
        assert recorder.logged[name] == expected.logged[name]
    total, square, absolute = (
        recorder.logged[n][0][0] for n in ("total_loss", "loss_square", "loss_abs")
    )
    assert total == pytest.approx(square + absolute)


def test_non_finite_loss_stops_before_the_step_and_says_where():
    model = StandIn()
    steps = []

    class Watch(StandIn):
        def forward(self, batch):
            steps.append(nn.utils.parameters_to_vector(self.parameters()).clone())
            return super().forward(batch)

    model = Watch()
    with pytest.raises(NonFiniteLossError) as caught:
        train(model, poisoned_id=5, clip_grad={"max_norm": 0.1})  # in the third batch
    message = str(caught.value)
    for part in ("iteration 2", "loss_square", "nan", "4 (4.png)", "5 (5.png)"):
        assert part in message, message
    # The weights that gave the NaN are the weights that are left.
    assert torch.equal(nn.utils.parameters_to_vector(model.parameters()), steps[2])
    assert not torch.equal(steps[1], steps[2])


def test_infinite_loss_stops_too():
    class Infinite(StandIn):
        def forward(self, batch):
            return {"loss": super().forward(batch)["loss_abs"] + math.inf}

    with pytest.raises(NonFiniteLossError, match="iteration 0"):
        train(Infinite())


class NaNGradient(StandIn):
    """Its losses are fine; from the third batch on, the derivative of sqrt at 0 is infinite."""

    def forward(self, batch):
        losses = super().forward(batch)
        if batch[0]["image_id"] >= 4:
            losses["loss_abs"] = losses["loss_abs"] + (0 * self.head.weight).sum().sqrt()
        return losses


@pytest.mark.parametrize("clip_grad", [None, {"max_norm": 0.1}], ids=["free", "clipped"])
def test_nan_gradient_of_a_finite_loss_stops_before_the_step(clip_grad):
    model, seen = NaNGradient(), []
    model.register_forward_pre_hook(
        lambda *_: seen.append(nn.utils.parameters_to_vector(model.parameters()).clone())
    )
    with pytest.raises(NonFiniteGradientError) as caught:
        train(model, clip_grad=clip_grad)
    message = str(caught.value)
    for part in ("iteration 2", "losses are finite", "gradients of head.weight are", "4 (4.png)"):
        assert part in message, message
    assert len(seen) == 3
    assert torch.equal(nn.utils.parameters_to_vector(model.parameters()), seen[2])
    assert not torch.equal(seen[1], seen[2])


def test_non_finite_prediction_gets_iteration_and_images():
    class Bad(StandIn):
        def forward(self, batch):
            if batch[0]["image_id"] == 2:
                raise NonFinitePredictionError("decoder layer 3 of 6", 1)
            return super().forward(batch)

    with pytest.raises(NonFinitePredictionError) as caught:
        train(Bad())
    assert isinstance(caught.value, NonFiniteStepError)
    assert caught.value.layer == "decoder layer 3 of 6"
    assert caught.value.iteration == 1
    for part in ("decoder layer 3 of 6", "iteration 1 with image 3 (3.png)", "2 (2.png)"):
        assert part in str(caught.value)


def test_amp_on_the_cpu_runs_the_model_in_bfloat16_without_scaling():
    seen = []

    class Watch(StandIn):
        def forward(self, batch):
            seen.append((self.backbone(batch[0]["image"][None]).dtype, torch.is_autocast_enabled()))
            return super().forward(batch)

    recorder = train(Watch(), steps=1, amp=True)
    assert seen[0][0] == torch.bfloat16
    trainer = recorder.trainer_itself
    assert not trainer.grad_scaler.is_enabled()
    assert trainer.model.head.weight.grad.dtype == torch.float32
    train(Watch(), steps=1, amp=False)
    assert seen[1][0] == torch.float32


@pytest.mark.gpu
def test_amp_on_a_gpu_scales_float16_gradients_and_saves_the_scale():
    torch.manual_seed(0)
    model = StandIn().cuda()

    class OnGpu:
        def __iter__(self):
            for batch in Images(2):
                yield [{**x, "image": x["image"].cuda()} for x in batch]

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(
        model, OnGpu(), optimizer, amp=True, amp_dtype="float16", clip_grad={"max_norm": 0.1}
    )
    small = {"scale": 2.0**8, "growth_interval": 2}  # as no gradient of this model overflows
    trainer.grad_scaler.load_state_dict(trainer.grad_scaler.state_dict() | small)
    trainer.train(0, 4)
    state = trainer.state_dict()
    assert state["grad_scaler"]["scale"] == 4 * 2.0**8
    other = Trainer(model, OnGpu(), optimizer, amp=True, amp_dtype="float16")
    other.load_state_dict(state)
    assert other.grad_scaler.get_scale() == 4 * 2.0**8


def test_state_goes_on_with_amp_switched_on_or_off():
    model = StandIn()
    optimizer = torch.optim.AdamW(model.parameters())
    with_amp = Trainer(model, None, optimizer, amp=True, amp_dtype="float16")
    with_amp.grad_scaler.load_state_dict(with_amp.grad_scaler.state_dict() | {"scale": 512.0})
    without = Trainer(model, None, optimizer)
    without.load_state_dict(with_amp.state_dict())
    assert without.grad_scaler.get_scale() == 1
    with_amp.load_state_dict(without.state_dict())
    assert with_amp.grad_scaler.get_scale() == 512


def test_losses_move_to_the_host_together():
    """The log holds tensors between flushes: reading one would make the device wait."""
    log = LossLog()
    with EventStorage() as storage:
        log.add(0, {"loss": torch.tensor(1.0)}, data_time=0.5)
        log.add(1, {"loss": torch.tensor(3.0)}, data_time=0.25)
        assert storage.histories() == {}
        log.flush(storage)
        assert storage.history("loss").values() == [(1.0, 0), (3.0, 1)]
        assert storage.history("data_time").values() == [(0.5, 0), (0.25, 1)]
        log.add(2, {"loss": torch.tensor(5.0)}, data_time=0.5)
        log.flush(storage)
        assert [v for v, _ in storage.history("loss").values()] == [1.0, 3.0, 5.0]
