"""The benchmarks of criterion and model, each in a process of its own, as a user runs it."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

BENCHMARKS = Path(__file__).resolve().parents[1]


def criterion_benchmark(device: torch.device) -> str:
    return run_benchmark("criterion", device)


def model_benchmark(device: torch.device) -> str:
    return run_benchmark("model", device)


def run_benchmark(name: str, device: torch.device) -> str:
    """Run `benchmarks/NAME.py`, which checks its candidates' numbers first; ours in one line.

    On a CPU the quick one: a training step of the whole baseline takes half a minute there.
    """
    with tempfile.TemporaryDirectory() as folder:
        figures_file = Path(folder, "figures.json")
        options = ["--quick"] if device.type == "cpu" else []
        subprocess.run(
            [
                sys.executable, str(BENCHMARKS / f"{name}.py"), *options,
                "--device", device.type, "--json", str(figures_file),
            ],
            check=True,
        )  # fmt: skip
        figures = json.loads(figures_file.read_text(encoding="utf-8"))["figures"]
    ours = [
        f"{figure['work']} {figure['times_faster_than_baseline']:.1f}x"
        for figure in figures
        if figure.get("candidate") == "aligndetr" and "times_faster_than_baseline" in figure
    ]
    assert ours, f"benchmarks/{name}.py gave no ratio: {figures}"
    return "; ".join(ours)
