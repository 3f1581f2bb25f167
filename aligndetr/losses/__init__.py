"""Loss functions on tensors: sums over a batch, or one value for each matched pair."""

from .box_losses import giou_box_loss, l1_box_loss
from .ia_bce import IA_BCE_loss, match_quality, negative_loss, positive_loss
from .local_rank import get_local_rank

__all__ = [
    "IA_BCE_loss",
    "get_local_rank",
    "giou_box_loss",
    "l1_box_loss",
    "match_quality",
    "negative_loss",
    "positive_loss",
]
