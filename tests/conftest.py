"""What every test starts from."""

import pytest

from aligndetr.layers.ms_deform_attn import functional


@pytest.fixture(autouse=True)
def default_attention(monkeypatch):
    """Runs and Predictors choose the process's default attention; no test hands it to the next."""
    monkeypatch.setattr(functional, "_default_backend", "auto")
