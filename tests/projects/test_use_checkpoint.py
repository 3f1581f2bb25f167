"""Activation checkpointing changes what is kept, not what is computed."""

import pytest
import torch
from torch import nn

from tests.builders import golden_tiny_model, random_batch, tiny_backbone

BATCH = random_batch([(64, 96), (72, 80)], [2, 3])
PARTS = {
    "encoder": {"encoder"},
    "decoder": {"decoder"},
    "backbone": {"backbone"},
    "all": {"encoder", "decoder", "backbone"},
}


def model_with(parts=frozenset(), dropout=0.0):
    model = golden_tiny_model(backbone=tiny_backbone(use_checkpoint="backbone" in parts))
    for name in ("encoder", "decoder"):
        model.transformer.get_submodule(name).use_checkpoint = name in parts
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    return model.train()


def step(model, amp=False):
    """Losses, gradients, and the bytes kept for the backward pass."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(0)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=amp),
    ):
        losses = model(BATCH)
        total = sum(losses.values())
    num_bytes = sum(kept.values())
    total.backward()
    return losses, {name: p.grad for name, p in model.named_parameters()}, num_bytes


@pytest.mark.parametrize(
    "options", [{}, {"dropout": 0.3}, {"amp": True}], ids=["plain", "dropout", "bfloat16"]
)
@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_same_losses_and_gradients_bit_for_bit_in_less_memory(parts, options):
    amp, dropout = options.get("amp", False), options.get("dropout", 0.0)
    losses, gradients, num_bytes = step(model_with(dropout=dropout), amp)
    found_losses, found_gradients, found_bytes = step(model_with(parts, dropout), amp)
    for name, loss in losses.items():
        assert torch.equal(found_losses[name], loss), name
    for name, gradient in gradients.items():
        same = found_gradients[name] is None if gradient is None else None
        assert same or torch.equal(found_gradients[name], gradient), name
    assert found_bytes < (0.5 if len(parts) == 3 else 0.95) * num_bytes


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_layers_run_twice_in_training_and_once_in_evaluation(parts):
    model, calls = model_with(parts), []
    watched = {
        "encoder": model.transformer.encoder.layers[0],
        "decoder": model.transformer.decoder.layers[-1],
        "backbone": model.backbone.res3[0].conv2,
    }
    for name, module in watched.items():
        module.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
    step(model)
    assert {name: calls.count(name) for name in watched} == {
        name: 2 if name in parts else 1 for name in watched
    }
    calls.clear()
    with torch.no_grad():
        model.eval()(BATCH)
    assert max(calls.count(name) for name in watched) == 2  # two sizes, each once


def test_names_of_weights_stay():
    assert list(model_with(PARTS["all"]).state_dict()) == list(model_with().state_dict())


def test_batch_norm_would_count_twice():
    with pytest.raises(ValueError, match=r"model\.backbone\.use_checkpoint.*FrozenBN"):
        tiny_backbone(norm="BN", use_checkpoint=True)
    assert tiny_backbone(norm="BN").use_checkpoint is False
