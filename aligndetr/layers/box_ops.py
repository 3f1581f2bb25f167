"""Box formats, IoU and generalised IoU.

xyxy is (x1, y1, x2, y2) with x1 <= x2 and y1 <= y2; cxcywh is (centre x, centre y, width,
height). All functions take boxes in any unit, but IOU_EPS is an absolute area: it was chosen,
and the published models were trained, with coordinates normalised to [0, 1].
"""

import torch
from torch import Tensor

# Added to union and hull areas, as in the reference. On normalised boxes this is not negligible
# for small objects: a perfect prediction of a 0.001 x 0.001 box gets an IoU of 0.5. Changing it
# would change the quality targets and matching costs that published results rest on.
IOU_EPS = 1e-6


def box_cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """(..., 4) cxcywh to (..., 4) xyxy; ordered corners as long as width and height are >= 0."""
    cx, cy, w, h = boxes.unbind(-1)
    return torch.stack([cx - 0.5 * w, cy - 0.5 * h, cx + 0.5 * w, cy + 0.5 * h], dim=-1)


def box_xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """(..., 4) xyxy to (..., 4) cxcywh."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], dim=-1)


def box_iou(boxes_a: Tensor, boxes_b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and union area of every box of `boxes_a` with every box of `boxes_b`.

    Args:
        boxes_a, boxes_b: (N, 4) and (M, 4), xyxy; N or M may be 0.

    Returns:
        iou (N, M) in [0, 1], union (N, M). IoU is inter / (union + IOU_EPS), so a zero-area
        pair gives 0, not NaN; `union` itself is without epsilon.
    """
    return _iou_and_union(boxes_a[:, None], boxes_b[None])


def generalized_box_iou(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """Generalised IoU (Rezatofighi et al., CVPR 2019) of every pair of boxes.

    Args:
        boxes_a, boxes_b: (N, 4) and (M, 4), xyxy; N or M may be 0. Corners must be ordered;
            this is not checked, the check would make the host wait for the device.

    Returns:
        (N, M) in [-1, 1]: iou - (hull - union) / (hull + IOU_EPS), hull the area of the
        smallest box around both.
    """
    return _giou(boxes_a[:, None], boxes_b[None])


def elementwise_iou(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """IoU of the i-th box of `boxes_a` with the i-th box of `boxes_b`.

    Args:
        boxes_a, boxes_b: (N, 4), xyxy; N may be 0. Zero-area pairs give 0, not NaN.

    Returns:
        (N,) in [0, 1]. Never builds the (N, N) matrix that `diag(box_iou(...))` would.

    Raises:
        ValueError: the two do not have the same shape.
    """
    _require_same_shape(boxes_a, boxes_b)
    return _iou_and_union(boxes_a, boxes_b)[0]


def elementwise_giou(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """Generalised IoU of the i-th box of `boxes_a` with the i-th box of `boxes_b`.

    Args, returns and raises as `elementwise_iou`; values in [-1, 1].
    """
    _require_same_shape(boxes_a, boxes_b)
    return _giou(boxes_a, boxes_b)


def masks_to_boxes(masks: Tensor) -> Tensor:
    """Tight box around each mask, in pixels.

    Args:
        masks: (N, H, W), bool or any dtype in which non-zero is foreground; N may be 0.

    Returns:
        (N, 4) float32 xyxy, each side the index of the first or last foreground pixel (so one
        pixel gives x1 == x2). An empty mask gives zeros.
    """
    foreground = masks != 0
    height, width = foreground.shape[1:]
    x1, x2 = _first_and_last(foreground.any(dim=1), width)
    y1, y2 = _first_and_last(foreground.any(dim=2), height)
    boxes = torch.stack([x1, y1, x2, y2], dim=-1).float()
    return boxes.masked_fill(~foreground.flatten(1).any(dim=1)[:, None], 0)


def _first_and_last(occupied: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Index of the first and last True of each row of `occupied` (N, length)."""
    position = torch.arange(length, device=occupied.device)
    first = position.where(occupied, length).amin(dim=1)
    last = position.where(occupied, -1).amax(dim=1)
    return first, last


def _iou_and_union(boxes_a: Tensor, boxes_b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and union of boxes whose leading dimensions broadcast.

    Coordinate by coordinate: pairs of a last dimension of 2 or 4 would be read with strides.
    """
    ax1, ay1, ax2, ay2 = boxes_a.unbind(-1)
    bx1, by1, bx2, by2 = boxes_b.unbind(-1)
    width = (torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)).clamp(min=0)
    height = (torch.minimum(ay2, by2) - torch.maximum(ay1, by1)).clamp(min=0)
    inter = width * height
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - inter
    return inter / (union + IOU_EPS), union


def _giou(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    iou, union = _iou_and_union(boxes_a, boxes_b)
    ax1, ay1, ax2, ay2 = boxes_a.unbind(-1)
    bx1, by1, bx2, by2 = boxes_b.unbind(-1)
    width = (torch.maximum(ax2, bx2) - torch.minimum(ax1, bx1)).clamp(min=0)
    height = (torch.maximum(ay2, by2) - torch.minimum(ay1, by1)).clamp(min=0)
    hull = width * height
    return iou - (hull - union) / (hull + IOU_EPS)


def _require_same_shape(boxes_a: Tensor, boxes_b: Tensor) -> None:
    if boxes_a.shape != boxes_b.shape:
        raise ValueError(
            f"boxes to compare one by one must have the same shape, got {tuple(boxes_a.shape)} "
            f"and {tuple(boxes_b.shape)}; for every pair use `box_iou` or `generalized_box_iou`"
        )
