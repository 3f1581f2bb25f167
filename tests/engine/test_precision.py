"""Mixed precision: what is computed in half, what never is, and what the scaler does."""

import statistics

import pytest
import torch
from torch import nn

from aligndetr.engine import NonFiniteGradientError, Trainer
from aligndetr.layers import MultiScaleDeformableAttention
from aligndetr.matchers import MixedMatcher
from projects.aligndetr.modeling import align_detr, decoder
from tests.builders import golden_tiny_model, random_batch
from tests.engine.stand_in import Images, StandIn

BATCH = random_batch([(64, 96), (64, 96)], [3, 2])


class Forever:
    def __iter__(self):
        while True:
            yield BATCH


def train_tiny(steps, **options):
    torch.manual_seed(0)
    model = golden_tiny_model(label_noise_ratio=0.5, box_noise_scale=1.0).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    trainer = Trainer(model, Forever(), optimizer, log_period=1, **options)
    trainer.train(0, steps)
    return trainer, [loss for loss, _ in trainer.storage.history("total_loss").values()]


def watch(monkeypatch, owner, name, seen, of=lambda result: result, key=None):
    """Note the dtypes of what the function `owner.name` returns, or of what `of` picks."""
    original = getattr(owner, name)

    def watched(*args, **kwargs):
        result = original(*args, **kwargs)
        picked = of(result)
        tensors = picked if isinstance(picked, (list, tuple)) else [picked]
        seen.setdefault(key or name, set()).update(t.dtype for t in tensors)
        return result

    monkeypatch.setattr(owner, name, watched)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_coordinates_matching_and_losses_stay_in_float32(monkeypatch, dtype):
    seen = {}
    watch(monkeypatch, MultiScaleDeformableAttention, "_sampling_locations", seen)
    watch(monkeypatch, MixedMatcher, "_costs", seen)
    watch(monkeypatch, MixedMatcher, "_values_of", seen)
    watch(monkeypatch, decoder, "refine_boxes", seen)
    watch(monkeypatch, align_detr, "refine_boxes", seen)
    watch(monkeypatch, nn.Linear, "forward", seen)
    model = golden_tiny_model().train()
    watch(monkeypatch, model.criterion, "forward", seen, lambda x: list(x.values()), "losses")
    trainer = Trainer(model, Forever(), torch.optim.SGD(model.parameters(), lr=1e-3), amp=True,
                      amp_dtype=dtype)  # fmt: skip
    trainer.train(0, 1)
    half = {"bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]
    # Linear: most in half, sampling offsets in float32.
    assert seen.pop("forward") == {torch.float32, half}
    assert len(seen) == 5
    for name, dtypes in seen.items():
        assert dtypes == {torch.float32}, name
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}


def test_bfloat16_on_the_cpu_trains_like_float32():
    _, full = train_tiny(15)
    trainer, half = train_tiny(15, amp=True)
    assert not trainer.grad_scaler.is_enabled()
    assert half != full
    assert half[:2] == pytest.approx(full[:2], rel=0.02)
    # Later a query or two is matched otherwise, and each run goes its own way.
    assert statistics.fmean(half) == pytest.approx(statistics.fmean(full), rel=0.05)
    assert half[-1] < 0.9 * half[0]


def test_float16_gradients_are_scaled_and_the_scale_is_saved():
    trainer, losses = train_tiny(6, amp=True, amp_dtype="float16", clip_grad={"max_norm": 0.1})
    assert losses[-1] < losses[0]
    assert trainer.grad_scaler.get_scale() > 1
    trainer.grad_scaler.update(512.0)
    other = Trainer(trainer.model, None, trainer.optimizer, amp=True, amp_dtype="float16")
    other.load_state_dict(trainer.state_dict())
    assert other.grad_scaler.get_scale() == 512.0


class Overflowing(StandIn):
    """Scaled by more than 2 ** 14, its gradient is infinite."""

    def forward(self, batch):
        losses = super().forward(batch)
        small = losses["loss_abs"] * 0.0 + self.head.weight.sum() * 4
        return {**losses, "loss_half": small.half().float() * 1.0}


def scaled_trainer(model, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    return Trainer(model, Images(2), optimizer, amp=True, amp_dtype="float16", **options)


def test_an_overflow_of_scaled_gradients_lowers_the_scale_and_is_no_bad_step():
    trainer = scaled_trainer(Overflowing(), max_bad_steps=1)
    taken = []
    trainer.after_step = lambda: taken.append(trainer.step_taken)
    trainer.train(0, 6)
    assert taken[0] is False
    assert taken[-1] is True
    assert trainer.grad_scaler.get_scale() == 2.0 ** (16 - taken.count(False))
    assert trainer.bad_steps.total == 0


def test_infinite_gradients_at_the_lowest_scale_are_bad_steps():
    class NaNGradient(StandIn):
        def forward(self, batch):
            return {"loss": super().forward(batch)["loss_abs"] + (0 * self.head.bias).sum().sqrt()}

    trainer = scaled_trainer(NaNGradient(), max_bad_steps=3)
    with pytest.raises(NonFiniteGradientError, match="iteration 19"):  # 2 ** 16 halves 17 times
        trainer.train(0, 30)


def test_unknown_dtype_is_named():
    with pytest.raises(ValueError, match=r"train\.amp\.dtype.*'half'.*bfloat16"):
        train_tiny(1, amp=True, amp_dtype="half")
