"""Latencies as rows of a Markdown table, and as JSON together with what they were measured on."""

import json
import os
import platform
from collections.abc import Iterator

import torch

from aligndetr.utils.files import atomic_path

from .latency import Latency

COLUMNS = ("precision", "size", "batch", "mean ms", "p50", "p90", "p99", "images/s")


class LatencyReport:
    """Collects what was measured on one device.

    Args:
        device: of the model.
    """

    def __init__(self, device: torch.device):
        on_gpu = device.type == "cuda"
        self.machine = {
            "device": torch.cuda.get_device_name(device) if on_gpu else str(device),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda if on_gpu else None,
            "python": platform.python_version(),
        }
        self.latencies: list[Latency] = []

    def heading(self) -> Iterator[str]:
        """The machine in a line, and the two lines that begin the table."""
        yield ", ".join(f"{name} {value}" for name, value in self.machine.items() if value)
        yield f"| {' | '.join(f'{name:>9}' for name in COLUMNS)} |"
        yield f"|{'|'.join('-' * 10 + ':' for _ in COLUMNS)}|"

    def row(self, found: Latency) -> str:
        """Keep it, and give its row; times are those of a batch."""
        self.latencies.append(found)
        times = (found.mean, found.p50, found.p90, found.p99, found.images_per_second)
        size = (found.height, found.width)
        return self._row(found.precision, *size, found.batch_size, *map("{:.2f}".format, times))

    def out_of_memory(self, batch_size: int, height: int, width: int, precision: str) -> str:
        """The row of a batch that does not fit; it is not among the figures."""
        return self._row(precision, height, width, batch_size, "out of", "memory", "", "", "")

    @staticmethod
    def _row(precision: str, height: int, width: int, batch_size: int, *times: str) -> str:
        cells = (precision, f"{height}x{width}", str(batch_size), *times)
        return f"| {' | '.join(f'{cell:>9}' for cell in cells)} |"

    def save(self, path: str | os.PathLike) -> None:
        """{"machine": …, "latencies": [one dict each, times in ms]}; complete or not at all."""
        content = {"machine": self.machine, "latencies": [x.as_dict() for x in self.latencies]}
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
