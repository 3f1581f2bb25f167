"""Regression losses on matched pairs: the i-th prediction against the i-th target."""

from torch import Tensor

from aligndetr.layers import box_cxcywh_to_xyxy, elementwise_giou


def l1_box_loss(
    src_boxes: Tensor,
    target_boxes: Tensor,
    avg_factor: float | Tensor,
    weight: float | Tensor = 1,
) -> Tensor:
    """Weighted sum over pairs of the L1 distance of their four coordinates, over `avg_factor`.

    Args:
        src_boxes, target_boxes: (N, 4), cxcywh in [0, 1]; N may be 0, the result is then 0 and
            still attached to the graph of `src_boxes`.
        avg_factor: number of objects to divide by, a float or a 0-d tensor.
        weight: one number, or (N,).

    Returns:
        0-d tensor.
    """
    return (weight * (src_boxes - target_boxes).abs().sum(-1)).sum() / avg_factor


def giou_box_loss(
    src_boxes: Tensor,
    target_boxes: Tensor,
    avg_factor: float | Tensor,
    weight: float | Tensor = 1,
) -> Tensor:
    """Weighted sum over pairs of 1 - GIoU, over `avg_factor`. Arguments as `l1_box_loss`."""
    giou = elementwise_giou(box_cxcywh_to_xyxy(src_boxes), box_cxcywh_to_xyxy(target_boxes))
    return (weight * (1 - giou)).sum() / avg_factor
