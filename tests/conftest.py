"""What every test starts from."""

import pytest
from hypothesis import HealthCheck, settings

from aligndetr.layers.ms_deform_attn import functional

# No example may fail for the time it takes: others may be using the machine.
settings.register_profile("aligndetr", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("aligndetr")


@pytest.fixture(autouse=True)
def default_attention(monkeypatch):
    """Runs and Predictors choose the process's default attention; no test hands it to the next."""
    monkeypatch.setattr(functional, "_default_backend", "auto")
