"""What a detector found in many images, as a few arrays: small to keep and quick to send."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.structures import BoxMode, Instances


@dataclass(frozen=True)
class GatheredDetections:
    """Detections of I images, N in all, image after image."""

    image_ids: list[Any]
    """I ids as the data set has them, numbers or texts."""
    counts: np.ndarray
    """(I,) detections in each image."""
    boxes: np.ndarray
    """(N, 4), XYWH in pixels; like `scores` in the precision of the model, at least float32."""
    scores: np.ndarray
    """(N,)"""
    classes: np.ndarray
    """(N,) labels from 0."""

    @classmethod
    def of_image(cls, image_id: Any, instances: Instances) -> "GatheredDetections":
        """Take over `pred_boxes`, `scores` and `pred_classes`, which may be on any device."""
        boxes = BoxMode.convert(
            instances.pred_boxes.tensor.detach().cpu(), BoxMode.XYXY_ABS, BoxMode.XYWH_ABS
        )
        return cls(
            image_ids=[image_id],
            counts=np.array([len(instances)]),
            boxes=_to_numpy(boxes),
            scores=_to_numpy(instances.scores),
            classes=instances.pred_classes.cpu().numpy(),
        )

    @classmethod
    def concatenate(cls, parts: Sequence["GatheredDetections"]) -> "GatheredDetections":
        """One after the other; of nothing, no images."""
        if not parts:
            empty = np.zeros(0)
            return cls([], empty.astype(int), np.zeros((0, 4)), empty, empty.astype(int))
        return cls(
            [image_id for part in parts for image_id in part.image_ids],
            *(
                np.concatenate([getattr(part, name) for part in parts])
                for name in ("counts", "boxes", "scores", "classes")
            ),
        )

    def is_finite(self) -> bool:
        """No box and no score is NaN or infinite."""
        return bool(np.isfinite(self.boxes).all() and np.isfinite(self.scores).all())

    def to_results(self, category_ids: Mapping[int, int] | Sequence[int]) -> list[dict[str, Any]]:
        """COCO's result format; label i becomes `category_ids[i]`."""
        image_ids = [i for i, n in zip(self.image_ids, self.counts, strict=True) for _ in range(n)]
        return [
            {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score}
            for image_id, label, box, score in zip(
                image_ids,
                self.classes.tolist(),
                self.boxes.tolist(),
                self.scores.tolist(),
                strict=True,
            )
        ]


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """numpy has no bfloat16; float32 holds all its values."""
    return tensor.detach().cpu().to(torch.promote_types(tensor.dtype, torch.float32)).numpy()
