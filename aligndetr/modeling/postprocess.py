"""From the last decoder layer's predictions to detections."""

from torch import Tensor

from aligndetr.utils import smaller_size


def select_top_predictions(
    logits: Tensor, boxes: Tensor, num_boxes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The best `num_boxes` over all (query, class) pairs; a query may be chosen for two classes.

    Args:
        logits: (B, Q, K) before the sigmoid.
        boxes: (B, Q, 4).
        num_boxes: how many to keep; Q * K where that is fewer.

    Returns:
        scores (B, N) in [0, 1] from high to low, classes (B, N) int64, boxes (B, N, 4).
    """
    num_classes = logits.shape[-1]
    probabilities = logits.sigmoid().flatten(1)
    count = smaller_size(num_boxes, probabilities.shape[1])
    scores, index = probabilities.topk(count, dim=1)
    query = (index // num_classes)[..., None].expand(-1, -1, 4)
    return scores, index % num_classes, boxes.gather(1, query)
