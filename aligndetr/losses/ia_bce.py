"""IoU-aware binary cross entropy (IA-BCE), the classification loss of Align-DETR.

Cai et al., "Align-DETR: Enhancing End-to-end Object Detection with Aligned Loss",
https://arxiv.org/abs/2304.07527. With p = sigmoid(logit), a matched entry is drawn towards
t' = w' * max(0.01, p^alpha * IoU^(1 - alpha)) instead of 1, so that a confident score means a good
box; w' falls with the rank of the candidate among those of its object. Every other entry is a
negative, weighted by p^gamma as in the focal loss.
"""

import torch
from torch import Tensor

from aligndetr.layers import box_cxcywh_to_xyxy, elementwise_iou

from .local_rank import get_local_rank
from .variants import VARIANTS

# Below this a positive would hardly pull its score up at all, and training could not start.
MIN_QUALITY = 0.01


def IA_BCE_loss(
    src_logits: Tensor,
    pos_idx_c: tuple[Tensor, Tensor, Tensor],
    src_boxes: Tensor,
    target_boxes: Tensor,
    indices: list[tuple[Tensor, Tensor]],
    avg_factor: float | Tensor,
    alpha: float,
    gamma: float,
    w_prime: float | Tensor = 1,
    variant: str = "ia_bce",
) -> tuple[Tensor, Tensor | float]:
    """IA-BCE over all entries of `src_logits`, summed and divided by `avg_factor`.

    Computed in float32 or wider, from log sigmoid: saturated logits give finite losses and
    gradients. No gradient reaches the boxes.

    Args:
        src_logits: (B, Q, K).
        pos_idx_c: (image, query, class) of the N matched entries, each (N,) int64.
        src_boxes, target_boxes: (N, 4), cxcywh in [0, 1], in the order of `pos_idx_c`.
        indices: per image (query_idx, gt_idx), N entries in all, in the same order.
        avg_factor: number of objects to divide by, a float or a 0-d tensor.
        alpha: share of the score in the quality, 1 - alpha is that of the IoU; in [0, 1].
        gamma: exponent of the negatives' weight; >= 0.
        w_prime: (R,) weight of each rank, or one number for all of them.
        variant: a key of `VARIANTS`, where they are defined: IA-BCE or one of its relatives.

    Returns:
        The loss, 0-d, and the weight of each matched entry: (N,), or `w_prime` where it is one
        number.

    Raises:
        IndexError: an object has more than R candidates (on CUDA a device-side assertion).
    """
    form = VARIANTS[variant]
    logits = src_logits.to(torch.promote_types(src_logits.dtype, torch.float32))
    matched = logits[pos_idx_c]
    quality = match_quality(matched, src_boxes, target_boxes, form.score_share(alpha))
    if isinstance(w_prime, Tensor) and w_prime.dim() > 0:
        rank_weight = w_prime.to(quality)[get_local_rank(quality, indices)]
    else:
        rank_weight = w_prime
    positives = form.positives(matched, quality, rank_weight, gamma).sum()
    loss = (positives + form.negatives(logits, pos_idx_c, gamma)) / avg_factor
    return loss.reshape(()), rank_weight


@torch.no_grad()  # else the model could lower the quality of a prediction to lower its loss
def match_quality(logits: Tensor, src_boxes: Tensor, target_boxes: Tensor, alpha: float) -> Tensor:
    """Quality t = p^alpha * IoU^(1 - alpha), at least MIN_QUALITY, of matched entries.

    Args:
        logits: (N,), of each prediction for the class of its object.
        src_boxes, target_boxes: (N, 4), cxcywh in [0, 1].
        alpha: share of the score.

    Returns:
        (N,), without gradient.
    """
    src_xyxy = box_cxcywh_to_xyxy(src_boxes.to(logits.dtype))
    target_xyxy = box_cxcywh_to_xyxy(target_boxes.to(logits.dtype))
    iou = elementwise_iou(src_xyxy, target_xyxy)
    return (logits.sigmoid() ** alpha * iou ** (1 - alpha)).clamp(min=MIN_QUALITY)
