"""Measuring a detector on a data set."""

from .inference import evaluate

__all__ = ["evaluate"]
