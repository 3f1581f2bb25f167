"""The classification loss of Align-DETR as a module, for the criterion of any DETR."""

import math

import torch
from torch import Tensor, nn

from .ia_bce import IA_BCE_loss
from .pairs import look_up_pairs
from .variants import VARIANTS


class IABCELoss(nn.Module):
    """IA-BCE with rank weights, or one of its relatives; has no parameters and no state.

    It needs sigmoid scores, one logit per class and none for "no object". `docs/loss.md` plugs it
    into a plain DETR.

    Args:
        alpha: share of the score in the quality t = p^alpha * IoU^(1 - alpha), in [0, 1].
        gamma: exponent of the focal factors, >= 0.
        tau: how slowly the weights exp(-rank / tau) of an object's candidates fall, > 0. Towards 0
            only the best counts, with `math.inf` all count alike. Without meaning where every
            object has one query.
        variant: "ia_bce", "ia_bce_focal", "focal" or "varifocal"; `aligndetr.losses.variants`
            defines them.
        rank_weights: False: all candidates count alike.

    Raises:
        ValueError: an argument is outside its range.
    """

    def __init__(
        self,
        alpha: float = 0.25,
        gamma: float = 2.0,
        tau: float = 1.5,
        variant: str = "ia_bce",
        rank_weights: bool = True,
    ):
        super().__init__()
        check_loss_arguments(alpha, gamma, tau, variant)
        self.alpha = alpha
        self.gamma = gamma
        self.tau = tau if rank_weights else math.inf
        self.variant = variant

    def forward(
        self,
        pred_logits: Tensor,
        pred_boxes: Tensor,
        targets: list[dict[str, Tensor]],
        indices: list[tuple[Tensor, Tensor]],
        num_boxes: float | Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Loss of one layer's predictions, and how much each matched pair counts.

        Args:
            pred_logits: (B, Q, K).
            pred_boxes: (B, Q, 4), cxcywh in [0, 1]. No gradient reaches them.
            targets: per image "labels" (n,) int64 in [0, K) and "boxes" (n, 4), cxcywh in [0, 1].
            indices: per image (query_idx, gt_idx), int64 of equal length, as DETR's matcher
                returns them; an object may have several queries, a query one object.
            num_boxes: number of objects to divide by.

        Returns:
            The loss, 0-d. And (N,), the rank weight of each of the N pairs, one image behind the
            other: Align-DETR multiplies L1 and GIoU of the pairs by it. All 1 where every object
            has one query.
        """
        position, target_boxes = look_up_pairs(targets, indices)
        image, query, labels = (index.to(pred_boxes.device) for index in position)
        weights = rank_weight_table(pred_logits.shape[1], self.tau, pred_logits.device)
        loss, of_pairs = IA_BCE_loss(
            pred_logits, (image, query, labels), pred_boxes[image, query],
            target_boxes.to(pred_boxes), indices, num_boxes, self.alpha, self.gamma, weights,
            self.variant,
        )  # fmt: skip
        assert isinstance(of_pairs, Tensor), "a table of weights was given"
        return loss, of_pairs

    def extra_repr(self) -> str:
        return f"{self.variant}, alpha={self.alpha}, gamma={self.gamma}, tau={self.tau}"


def rank_weight_table(size: int, tau: float, device: torch.device | None = None) -> Tensor:
    """exp(-rank / tau) of the ranks 0 ... size - 1: (size,) float32."""
    return torch.exp(-torch.arange(size, device=device) / tau)


def check_loss_arguments(alpha: float, gamma: float, tau: float, variant: str) -> None:
    """Raise a ValueError unless the arguments of `IABCELoss` are in their ranges."""
    if not 0 <= alpha <= 1:
        raise ValueError(f"`alpha` (={alpha}) must be in [0, 1]")
    if not gamma >= 0:  # written so that NaN is refused as well
        raise ValueError(f"`gamma` (={gamma}) must be at least 0")
    if not tau > 0:
        raise ValueError(
            f"`tau` (={tau}) must be greater than 0; towards 0 only the best candidate counts"
        )
    if variant not in VARIANTS:
        raise ValueError(f"unknown classification loss {variant!r}; choose one of {[*VARIANTS]}")
