"""How long a detector takes, from images in main memory to detections in main memory."""

import statistics
import time
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import nn

PERCENTILES = (50, 90, 99)
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16}
OutOfMemory = torch.cuda.OutOfMemoryError


@dataclass(frozen=True)
class Latency:
    """Of one batch size, image size and precision; times in milliseconds per batch."""

    batch_size: int
    height: int
    width: int
    precision: str
    repeats: int
    mean: float
    p50: float
    p90: float
    p99: float
    images_per_second: float
    """Of all repeats together: images / time."""

    @classmethod
    def of_times(
        cls, seconds: list[float], batch_size: int, height: int, width: int, precision: str
    ) -> "Latency":
        """Percentiles are interpolated between the two nearest times."""
        percentiles = np.percentile(seconds, PERCENTILES) * 1e3
        mean = statistics.fmean(seconds)
        return cls(
            batch_size,
            height,
            width,
            precision,
            len(seconds),
            mean * 1e3,
            *percentiles.tolist(),
            images_per_second=batch_size / mean,
        )

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def measure_latency(
    model: nn.Module,
    batch_size: int,
    height: int,
    width: int,
    precision: str = "fp32",
    repeats: int = 50,
    warm_up: int = 10,
) -> Latency:
    """Time calls of `model` on a batch of noise, after `warm_up` calls that are not counted.

    A call is what an evaluation does with images that are loaded: copy them to the model's
    device, normalise, predict, and wait until the detections are in main memory.

    Args:
        model: detectron2's convention, on its device; it is put to eval mode.
        precision: a key of `PRECISIONS`; "bf16" is autocast, the weights stay float32.

    Raises:
        ValueError: a number below 1 (`warm_up` may be 0), or an unknown precision.
    """
    _check(precision, batch_size=batch_size, height=height, width=width, repeats=repeats)
    if warm_up < 0:
        raise ValueError(f"`warm_up` (={warm_up}) must be at least 0")
    generator = torch.Generator().manual_seed(0)
    size = (3, height, width)
    batch = [
        {"image": torch.randint(256, size, dtype=torch.uint8, generator=generator)}
        for _ in range(batch_size)
    ]
    model.eval()
    device = next(model.parameters()).device
    dtype = PRECISIONS[precision]
    seconds = []
    for _ in range(warm_up + repeats):
        _synchronise(device)
        start = time.perf_counter()
        with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype is not None):
            for output in model(batch):
                output["instances"].to("cpu")
        _synchronise(device)
        seconds.append(time.perf_counter() - start)
    return Latency.of_times(seconds[warm_up:], batch_size, height, width, precision)


def _check(precision: str, **at_least_one: int) -> None:
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}; choose one of {list(PRECISIONS)}")
    for name, value in at_least_one.items():
        if value < 1:
            raise ValueError(f"`{name}` (={value}) must be at least 1")


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
