"""What `train.deterministic` switches, and which attention it takes."""

import pytest
import torch

from aligndetr.engine.determinism import make_deterministic


@pytest.fixture(autouse=True)
def switched_back():
    before = torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = False, before


@pytest.mark.parametrize(
    ("device", "attention", "taken", "said"),
    [
        ("cpu", "embedding_bag", "embedding_bag", False),  # on the CPU all are deterministic
        ("cuda", "triton", "triton", False),
        ("cuda", "auto", "deterministic", False),
        ("cuda:1", "reference", "deterministic", True),
    ],
)
def test_attention_that_adds_in_any_order_is_replaced(device, attention, taken, said, caplog):
    assert make_deterministic(device, attention) == taken
    assert torch.are_deterministic_algorithms_enabled()
    replaced = f"train.deterministic=True replaces train.ms_deform_attn={attention}"
    assert (replaced in caplog.text) is said
