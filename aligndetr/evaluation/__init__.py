"""Measuring a detector on a data set."""

from .alignment_evaluator import AlignmentEvaluator
from .coco import COCOEvaluator
from .inference import evaluate

__all__ = ["AlignmentEvaluator", "COCOEvaluator", "evaluate"]
