"""Adds the encoder's proposals to the layers that are supervised."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .many_to_one_criterion import ManyToOneCriterion
from .prediction_set import PredictionSet


class TwoStageCriterion(ManyToOneCriterion):
    """Also supervises "enc_outputs", with `match_num[0]` queries per object and suffix _enc.

    Args:
        num_classes, matcher, weight_dict, match_num, gamma, alpha, tau, class_loss,
            rank_weights: as `ManyToOneCriterion`.
        two_stage_binary_cls: the proposals only learn object or not: their targets all have
            label 0.
    """

    def __init__(
        self,
        num_classes: int,
        matcher: nn.Module,
        weight_dict: Mapping[str, float],
        match_num: Sequence[int],
        gamma: float,
        alpha: float,
        tau: float,
        two_stage_binary_cls: bool = False,
        class_loss: str = "ia_bce",
        rank_weights: bool = True,
    ):
        super().__init__(
            num_classes, matcher, weight_dict, match_num, gamma, alpha, tau, class_loss,
            rank_weights,
        )  # fmt: skip
        self.two_stage_binary_cls = two_stage_binary_cls

    def prediction_sets(
        self, outputs: dict, targets: list[dict[str, Tensor]], num_boxes: float | Tensor
    ) -> list[PredictionSet]:
        """The proposals where there are any, then `ManyToOneCriterion.prediction_sets`."""
        sets = super().prediction_sets(outputs, targets, num_boxes)
        if "enc_outputs" not in outputs:
            return sets
        if self.two_stage_binary_cls:
            targets = [{**t, "labels": torch.zeros_like(t["labels"])} for t in targets]
        proposals = self.prediction_set(
            outputs["enc_outputs"], targets, num_boxes, 0, "encoder proposals", "_enc"
        )
        return [proposals, *sets]
