"""The unit a criterion works on: one layer's predictions and how they are supervised."""

from dataclasses import dataclass

from torch import Tensor

from aligndetr.matchers import MatchRequest

Indices = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class PredictionSet:
    """Predictions of one layer for all images of the batch.

    Either `indices` is given, or the matcher finds them with up to `num_candidates` queries
    per object.
    """

    logits: Tensor  # (B, Q, K), float32 or float64
    boxes: Tensor  # (B, Q, 4), cxcywh in [0, 1]
    targets: list[dict[str, Tensor]]  # per image "labels" (N,), "boxes" (N, 4) as above
    num_boxes: float | Tensor  # what the sums are divided by
    layer: int  # 0 encoder, 1 ... L - 1 intermediate decoder layers, L the last
    name: str  # for error messages
    suffix: str = ""  # of the loss keys: "_enc", "_3", "_dn_3"
    num_candidates: int = 1
    indices: Indices | None = None  # per image (query_idx, gt_idx)

    def match_request(self) -> MatchRequest:
        outputs = {"pred_logits": self.logits, "pred_boxes": self.boxes}
        return MatchRequest(outputs, self.targets, self.num_candidates, self.name)


@dataclass(frozen=True)
class MatchedPairs:
    """The N matched (prediction, object) pairs of a prediction set, images in order."""

    indices: Indices
    position: tuple[Tensor, Tensor, Tensor]  # image, query, class: each (N,) int64
    src_boxes: Tensor  # (N, 4) predicted, cxcywh in [0, 1]
    target_boxes: Tensor  # (N, 4) their objects, as above
