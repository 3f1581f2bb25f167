"""Training criterions: model outputs and targets in, a dict of named losses out."""

from .align_detr_criterion import AlignDETRCriterion
from .base_criterion import BaseCriterion
from .hybrid_criterion import HybridCriterion
from .many_to_one_criterion import ManyToOneCriterion
from .two_stage_criterion import TwoStageCriterion

__all__ = [
    "AlignDETRCriterion",
    "BaseCriterion",
    "HybridCriterion",
    "ManyToOneCriterion",
    "TwoStageCriterion",
]
