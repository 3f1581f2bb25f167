"""What every test starts from."""

import runpy
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from aligndetr.layers.ms_deform_attn import functional

ROOT = Path(__file__).parents[1]

# No example may fail for the time it takes: others may be using the machine. Where CI is set,
# hypothesis starts from its profile `ci`, and every run has the same examples.
settings.register_profile("aligndetr", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("aligndetr")


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(3600))


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    """Servers that tests start are on this machine, whatever proxy the environment names."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")


@pytest.fixture(autouse=True)
def default_attention(monkeypatch):
    """Runs and Predictors choose the process's default attention; no test hands it to the next."""
    monkeypatch.setattr(functional, "_default_backend", "auto")


@pytest.fixture
def run_tool(monkeypatch):
    """Runs tools/NAME as from the command line, but in this process: another one would import torch
    and detectron2 again, for seconds. Gives the exit status, or the words that it ends with."""

    def run(name, *words):
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        monkeypatch.setattr(sys, "path", list(sys.path))
        try:
            runpy.run_path(str(ROOT / "tools" / name), run_name="__main__")
        except SystemExit as end:
            return end.code or 0
        return 0

    return run
