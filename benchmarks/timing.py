"""What the benchmarks share: candidates in turn, ratios with their spread, figures as JSON.

    python benchmarks/NAME.py [--quick] [--repeats N] [--threads N] [--json FILE]

A benchmark verifies first, then calls `compare` once per piece of work, then `Report.save`.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

BASELINE = "baseline"  # the candidate that the others are measured against


def command_line(doc: str, repeats: int = 5) -> argparse.ArgumentParser:
    """The options that every benchmark has; `doc` is its docstring."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures to this file, too")
    parser.add_argument("--quick", action="store_true", help="small sizes, less than a minute")
    parser.add_argument("--repeats", type=int, default=repeats, help="turns after the warm-up")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser


def interleave(
    candidates: dict[str, Callable[[], object]], repeats: int, device: str = "cpu"
) -> dict[str, list[float]]:
    """Seconds of each candidate in each turn.

    All candidates run once per turn, so that whatever else the machine does meets them alike.
    The first turn is a warm-up and not counted.
    """
    seconds = {name: [] for name in candidates}
    for turn in range(repeats + 1):
        for name, run in candidates.items():
            _wait_for(device)
            start = time.perf_counter()
            run()
            _wait_for(device)
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


class Report:
    """Prints a line for each figure and keeps it for the JSON file.

    Args:
        threads: of this run, for the record.
    """

    def __init__(self, threads: int):
        self.machine = {
            "command": " ".join(["python", *sys.argv]),
            "date": datetime.date.today().isoformat(),
            "cpu": _cpu_name(),
            "cores": os.cpu_count(),
            "threads": threads,
            "python": platform.python_version(),
            "torch": torch.__version__,
        }
        self.figures: list[dict] = []
        print(", ".join(f"{name} {value}" for name, value in self.machine.items()))

    def compare(self, work: str, seconds: dict[str, list[float]], against: str = BASELINE) -> None:
        """Median seconds of each candidate, and how many times faster than `against` it is.

        The ratio is that of one turn; its median, lowest and highest over the turns are given.
        """
        for name, times in seconds.items():
            ratios = [a / b for a, b in zip(seconds[against], times, strict=True)]
            figure = {
                "work": work,
                "candidate": name,
                "seconds": statistics.median(times),
                f"times_faster_than_{against}": statistics.median(ratios),
                "lowest": min(ratios),
                "highest": max(ratios),
                "repeats": len(times),
            }
            self.figures.append(figure)
            print(
                f"{work:38s} {name:14s} {_duration(figure['seconds'])}   "
                f"{statistics.median(ratios):6.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"
            )

    def note(self, work: str, **values: float | str | bool) -> None:
        """Any other figure of this run."""
        self.figures.append({"work": work, **values})
        text = ", ".join(
            f"{name.replace('_', ' ')} {value:.4g}"
            if isinstance(value, float)
            else f"{name.replace('_', ' ')} {value}"
            for name, value in values.items()
        )
        print(f"{work:38s} {text}")

    def save(self, path: str | None) -> None:
        """Write `machine` and `figures` to `path`; a file is there in full or not at all."""
        if path is None:
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(target.name + ".tmp")
        content = {"machine": self.machine, "figures": self.figures}
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        temporary.replace(target)


def peak_memory(work: Callable[..., object], *args) -> int:
    """Most bytes in use by a fresh process that runs `work(*args)`, a module's function.

    On the GPU where `work` used one, else resident in main memory, libraries included.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_run_and_measure, work, args).result()


def _run_and_measure(work: Callable[..., object], args: tuple) -> int:
    work(*args)
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    # Not ru_maxrss where it can be helped: Linux lets a new process inherit its parent's.
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _wait_for(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def _duration(seconds: float) -> str:
    return f"{seconds:9.2f} s " if seconds >= 10 else f"{seconds * 1e3:9.2f} ms"


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
