"""Measuring a detector on a data set."""

from .coco import COCOEvaluator
from .inference import evaluate

__all__ = ["COCOEvaluator", "evaluate"]
