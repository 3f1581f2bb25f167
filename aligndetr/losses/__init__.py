"""Loss functions on tensors: sums over a batch, or one value for each matched pair."""

from .box_losses import giou_box_loss, l1_box_loss
from .ia_bce import IA_BCE_loss, match_quality
from .local_rank import get_local_rank
from .module import IABCELoss, check_loss_arguments, rank_weight_table
from .pairs import look_up_pairs
from .variants import VARIANTS, negative_loss, positive_loss

__all__ = [
    "VARIANTS",
    "IABCELoss",
    "IA_BCE_loss",
    "check_loss_arguments",
    "get_local_rank",
    "giou_box_loss",
    "l1_box_loss",
    "look_up_pairs",
    "match_quality",
    "negative_loss",
    "positive_loss",
    "rank_weight_table",
]
