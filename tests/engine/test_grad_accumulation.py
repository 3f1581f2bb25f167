"""One step over k micro-batches is one step over the k-fold batch."""

import pytest
import torch
from detectron2.utils.events import EventStorage

from aligndetr.engine import Trainer
from tests.builders import golden_tiny_model, random_batch
from tests.engine.stand_in import Images, StandIn

SIZES = [(64, 96)] * 4


def one_step(model, batches, **options):
    """(losses, gradients) of a step that leaves the weights as they are."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    trainer = Trainer(model.train(), batches, optimizer, log_period=1, **options)
    trainer.iter, trainer.max_iter = 0, 10
    with EventStorage() as trainer.storage:
        trainer.run_step()
        logged = {name: value for name, (value, _) in trainer.storage.latest().items()}
    logged.pop("data_time", None)  # the main process alone logs
    module = getattr(model, "module", model)
    return logged, {n: p.grad for n, p in module.named_parameters() if p.requires_grad}


def assert_same_step(found, expected):
    assert found[0] == pytest.approx(expected[0], rel=1e-6, abs=1e-6)
    scale = max(gradient.abs().max().item() for gradient in expected[1].values())
    for name, gradient in expected[1].items():
        torch.testing.assert_close(
            found[1][name],
            gradient,
            rtol=0,
            atol=1e-6 * scale,
            msg=lambda m, n=name: f"{n}: {m}",
        )


@pytest.mark.parametrize(
    "counts", [[3, 1, 2, 4], [0, 2, 0, 3], [0, 0, 0, 0]], ids=["all", "two without objects", "none"]
)
def test_four_single_images_equal_a_batch_of_four(counts):
    batch = random_batch(SIZES, counts)
    expected = one_step(golden_tiny_model(dn_number=0), [batch])
    found = one_step(golden_tiny_model(dn_number=0), [[x] for x in batch], grad_accum_steps=4)
    assert_same_step(found, expected)


def test_also_with_denoising_at_equal_object_counts_and_without_noise():
    batch = random_batch(SIZES, [3, 3, 3, 3])
    expected = one_step(golden_tiny_model(dn_number=10), [batch])
    found = one_step(golden_tiny_model(dn_number=10), [[x] for x in batch], grad_accum_steps=4)
    assert expected[0]["loss_class_dn"] > 0
    assert_same_step(found, expected)


def test_the_normaliser_is_forgotten_after_the_step():
    batch = random_batch(SIZES, [3, 1, 2, 4])
    model = golden_tiny_model(dn_number=0)
    expected = one_step(model, [batch[:1]])
    one_step(model, [[x] for x in batch], grad_accum_steps=4)
    assert one_step(model, [batch[:1]])[0] == expected[0]


def test_losses_of_a_model_without_a_normaliser_are_averaged():
    torch.manual_seed(0)
    model = StandIn()
    stream = iter(Images(1))
    micro_batches = [next(stream) for _ in range(3)]
    expected = one_step(model, [[x for batch in micro_batches for x in batch]])
    expected = (expected[0], {name: g.clone() for name, g in expected[1].items()})
    assert_same_step(one_step(model, micro_batches, grad_accum_steps=3), expected)
