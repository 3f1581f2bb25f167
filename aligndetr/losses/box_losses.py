"""Regression losses on matched pairs: the i-th prediction against the i-th target."""

from torch import Tensor

from aligndetr.layers import box_cxcywh_to_xyxy, elementwise_giou


def l1_box_loss(src_boxes: Tensor, target_boxes: Tensor) -> Tensor:
    """L1 distance of the four coordinates of each pair.

    Args:
        src_boxes, target_boxes: (N, 4), cxcywh in [0, 1]; N may be 0, the result is then empty
            and still attached to the graph of `src_boxes`.

    Returns:
        (N,).
    """
    return (src_boxes - target_boxes).abs().sum(-1)


def giou_box_loss(src_boxes: Tensor, target_boxes: Tensor) -> Tensor:
    """1 - GIoU of each pair. Arguments and result as `l1_box_loss`."""
    return 1 - elementwise_giou(box_cxcywh_to_xyxy(src_boxes), box_cxcywh_to_xyxy(target_boxes))
