"""Mixed matching: several queries per object in early layers, IA-BCE and rank weights."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from aligndetr.losses import (
    VARIANTS,
    check_loss_arguments,
    get_local_rank,
    match_quality,
    rank_weight_table,
)

from .base_criterion import BaseCriterion
from .prediction_set import MatchedPairs, PredictionSet


class ManyToOneCriterion(BaseCriterion):
    """Objects get `match_num[layer]` queries each, weighted exp(-rank / tau) within the object.

    Args:
        num_classes, matcher, weight_dict: as `BaseCriterion`.
        match_num: queries per object, positive ints: for the encoder's proposals, then for each
            decoder layer. The encoder's entry is there even if no encoder loss is computed.
        gamma, alpha: of `IA_BCE_loss`.
        tau: how slowly the weights fall with the rank, > 0.
        class_loss: the classification loss, a `variant` of `IABCELoss`. "focal" with a
            `match_num` of 1 throughout is DINO's.
        rank_weights: False: all candidates of an object count alike, in every loss.

    Attributes:
        weight_table: (len(match_num), max(match_num)); row l is exp(-i / tau), or 1 without
            rank weights, for i < match_num[l], then 0. Not in the state_dict.

    Raises:
        ValueError: one of them is outside the range given above, or, when a model is built with
            it, `match_num` does not have one entry per decoder layer and one for the encoder.
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
        class_loss: str = "ia_bce",
        rank_weights: bool = True,
    ):
        super().__init__(num_classes, matcher, weight_dict)
        self.weight_table: Tensor
        self.match_num = _positive_ints(match_num)
        check_loss_arguments(alpha, gamma, tau, class_loss)
        self.gamma = gamma
        self.alpha = alpha
        self.tau = tau
        self.class_loss = class_loss
        self.rank_weights = rank_weights
        self.register_buffer(
            "weight_table", self._make_weight_table(self.match_num), persistent=False
        )

    def check_num_layers(self, num_layers: int) -> None:
        """Raise a ValueError unless `match_num` fits a decoder of `num_layers` layers."""
        if len(self.match_num) != num_layers + 1:
            raise ValueError(
                f"`match_num` (={self.match_num}) has {len(self.match_num)} entries but the "
                f"decoder has {num_layers} layers; expected {num_layers + 1} (encoder proposals "
                "first, then one per layer). Edit `model.criterion.match_num` in the config."
            )

    def prediction_sets(
        self, outputs: dict, targets: list[dict[str, Tensor]], num_boxes: float | Tensor
    ) -> list[PredictionSet]:
        """As `BaseCriterion.prediction_sets`; checks first that `match_num` fits the layers."""
        if "aux_outputs" in outputs:
            self.check_num_layers(len(outputs["aux_outputs"]) + 1)
            return super().prediction_sets(outputs, targets, num_boxes)
        # Without auxiliary outputs the number of layers is unknown, but the last is the last.
        last = len(self.match_num) - 1
        return [self.prediction_set(outputs, targets, num_boxes, last, "last decoder layer")]

    def prediction_set(self, *args, **kwargs) -> PredictionSet:
        """As `BaseCriterion.prediction_set`, with `match_num[layer]` candidates per object."""
        layer = super().prediction_set(*args, **kwargs)
        if layer.indices is not None:
            return layer
        if not 0 <= layer.layer < len(self.match_num):
            raise ValueError(
                f"there is no layer {layer.layer}: `match_num` (={self.match_num}) knows 0, the "
                f"encoder, to {len(self.match_num) - 1}, the last decoder layer"
            )
        return replace(layer, num_candidates=self.match_num[layer.layer])

    def classification_sums(
        self, sets: list[PredictionSet], pairs: MatchedPairs
    ) -> tuple[list[Tensor], Tensor]:
        """`class_loss` and the rank weights (`IA_BCE_loss`, of several sets at once)."""
        form = VARIANTS[self.class_loss]
        positions = list(zip(sets, pairs.positions, strict=True))
        matched = torch.cat([layer.logits[position] for layer, position in positions])
        share = form.score_share(self.alpha)
        quality = match_quality(matched, pairs.src_boxes, pairs.target_boxes, share)
        weight = self._rank_weights(sets, pairs, quality)
        positives = form.positives(matched, quality, weight, self.gamma).split(pairs.sizes)
        sums = [
            positive.sum() + form.negatives(layer.logits, position, self.gamma)
            for (layer, position), positive in zip(positions, positives, strict=True)
        ]
        return sums, weight

    def _rank_weights(
        self, sets: list[PredictionSet], pairs: MatchedPairs, quality: Tensor
    ) -> Tensor:
        """(N,): exp(-rank / tau) of each pair; pairs that were given, not matched, weigh 1."""
        of_sets = list(quality.split(pairs.sizes))
        ranked = [s for s, layer in enumerate(sets) if layer.indices is None]
        if not ranked:
            return torch.ones_like(quality)
        rank = get_local_rank(
            torch.cat([of_sets[s] for s in ranked]), [p for s in ranked for p in pairs.indices[s]]
        )
        sizes = [pairs.sizes[s] for s in ranked]
        row = torch.cat([rank.new_full((n,), sets[s].layer) for s, n in zip(ranked, sizes)])
        weights = iter(self.weight_table.to(quality)[row, rank].split(sizes))
        return torch.cat(
            [
                next(weights) if layer.indices is None else torch.ones_like(of_set)
                for layer, of_set in zip(sets, of_sets, strict=True)
            ]
        )

    def _make_weight_table(self, match_num: list[int]) -> Tensor:
        rank = torch.arange(max(match_num))
        used = rank < torch.tensor(match_num)[:, None]
        weights = rank_weight_table(len(rank), self.tau) if self.rank_weights else 1.0
        return torch.where(used, weights, 0.0)


def _positive_ints(match_num: Sequence[int]) -> list[int]:
    numbers = list(match_num) if isinstance(match_num, Iterable) else []
    if not numbers or any(type(n) is not int or n < 1 for n in numbers):
        raise ValueError(
            f"`match_num` (={match_num}) must be a list of positive integers: queries per object "
            "for the encoder's proposals, then for each decoder layer. Edit "
            "`model.criterion.match_num` in the config."
        )
    return numbers
