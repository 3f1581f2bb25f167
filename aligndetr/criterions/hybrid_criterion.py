"""Adds H-DETR's hybrid branch: extra queries that learn from several-to-one matching alone."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor, nn

from .align_detr_criterion import AlignDETRCriterion
from .base_criterion import BaseCriterion
from .prediction_set import PredictionSet


class HybridCriterion(AlignDETRCriterion):
    """Also supervises "hybrid_outputs", with the suffix _hybrid (last layer) or _hybrid_i.

    Jia et al., "DETRs with Hybrid Matching", arXiv:2207.13080. In every decoder layer an object
    gets up to `hybrid_match_num` of the extra queries, by `MixedMatcher`, and they learn from
    the losses that all others learn from, rank weights included.

    Args:
        hybrid_match_num: queries per object in the hybrid branch, at least 1.
        All others: as `AlignDETRCriterion`.

    Attributes:
        weight_table: as there, and one more row, of the hybrid branch.
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
        hybrid_match_num: int = 6,
    ):
        super().__init__(
            num_classes, matcher, weight_dict, match_num, gamma, alpha, tau, two_stage_binary_cls,
            class_loss, rank_weights,
        )  # fmt: skip
        if type(hybrid_match_num) is not int or hybrid_match_num < 1:
            raise ValueError(f"`hybrid_match_num` (={hybrid_match_num}) must be a positive integer")
        self.hybrid_match_num = hybrid_match_num
        self.weight_table = self._make_weight_table([*self.match_num, hybrid_match_num])

    def prediction_sets(
        self, outputs: dict, targets: list[dict[str, Tensor]], num_boxes: float | Tensor
    ) -> list[PredictionSet]:
        """Those of `AlignDETRCriterion`, then those of the hybrid branch where there is one."""
        sets = super().prediction_sets(outputs, targets, num_boxes)
        hybrid = outputs.get("hybrid_outputs")
        if hybrid is None:
            return sets
        layers = {f"_hybrid_{i}": aux for i, aux in enumerate(hybrid.get("aux_outputs", []))}
        for number, (suffix, layer) in enumerate([*layers.items(), ("_hybrid", hybrid)], start=1):
            name = f"hybrid queries of decoder layer {number}"
            row = len(self.match_num)  # of the weight table
            found = BaseCriterion.prediction_set(self, layer, targets, num_boxes, row, name, suffix)
            sets.append(replace(found, num_candidates=self.hybrid_match_num))
        return sets

    def weight_of(self, key: str) -> float:
        """As `BaseCriterion.weight_of`; the hybrid branch has the weights of the matching queries
        unless "loss_class_hybrid" and the like are in `weight_dict`."""
        if not {key, re.sub(r"_\d+$", "", key)} & self.weight_dict.keys():
            key = key.replace("_hybrid", "")
        return super().weight_of(key)
