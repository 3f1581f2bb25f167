"""Building blocks: tensors in, tensors out. Import torch and `aligndetr.utils`, nothing else."""

from .box_ops import (
    box_cxcywh_to_xyxy,
    box_iou,
    box_xyxy_to_cxcywh,
    elementwise_giou,
    elementwise_iou,
    generalized_box_iou,
    masks_to_boxes,
)

__all__ = [
    "box_cxcywh_to_xyxy",
    "box_iou",
    "box_xyxy_to_cxcywh",
    "elementwise_giou",
    "elementwise_iou",
    "generalized_box_iou",
    "masks_to_boxes",
]
