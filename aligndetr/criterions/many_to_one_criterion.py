"""Mixed matching: several queries per object in early layers, IA-BCE and rank weights."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from aligndetr.losses import IA_BCE_loss

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

    Attributes:
        weight_table: (len(match_num), max(match_num)); row l is exp(-i / tau) for
            i < match_num[l], then 0. Not in the state_dict.

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
    ):
        super().__init__(num_classes, matcher, weight_dict)
        self.match_num = _positive_ints(match_num)
        if not 0 <= alpha <= 1:
            raise ValueError(f"`alpha` (={alpha}) must be in [0, 1]")
        if not gamma >= 0:
            raise ValueError(f"`gamma` (={gamma}) must be at least 0")
        if not tau > 0:
            raise ValueError(
                f"`tau` (={tau}) must be greater than 0; towards 0 only the best candidate counts"
            )
        self.gamma = gamma
        self.alpha = alpha
        self.tau = tau
        self.register_buffer("weight_table", self._make_weight_table(), persistent=False)

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
        return replace(layer, num_candidates=self.match_num[layer.layer])

    def classification_loss(
        self, layer: PredictionSet, pairs: MatchedPairs
    ) -> tuple[Tensor, float | Tensor]:
        """IA-BCE and the rank weights; pairs that were given, not matched, all weigh 1."""
        if layer.indices is None:
            w_prime = self.weight_table[layer.layer].to(layer.logits.device)
        else:
            w_prime = 1
        return IA_BCE_loss(
            layer.logits,
            pairs.position,
            pairs.src_boxes,
            pairs.target_boxes,
            pairs.indices,
            layer.num_boxes,
            self.alpha,
            self.gamma,
            w_prime,
        )

    def _make_weight_table(self) -> Tensor:
        rank = torch.arange(max(self.match_num))
        used = rank < torch.tensor(self.match_num)[:, None]
        return torch.where(used, torch.exp(-rank / self.tau), 0.0)


def _positive_ints(match_num: Sequence[int]) -> list[int]:
    numbers = list(match_num)
    if not numbers or any(type(n) is not int or n < 1 for n in numbers):
        raise ValueError(
            f"`match_num` (={numbers}) must be a list of positive integers: queries per object for "
            "the encoder's proposals, then for each decoder layer. Edit "
            "`model.criterion.match_num` in the config."
        )
    return numbers
