"""What a model costs: parameters, operations and activations counted, latency measured."""

from .counting import ModelCounts, count_model
from .latency import Latency, OutOfMemory, measure_latency
from .latency_report import LatencyReport

__all__ = [
    "Latency",
    "LatencyReport",
    "ModelCounts",
    "OutOfMemory",
    "count_model",
    "measure_latency",
]
