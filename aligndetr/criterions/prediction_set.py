"""What a criterion works on: a layer's predictions, how they are supervised, the matched pairs."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aligndetr.losses import look_up_pairs
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
        """What to ask the matcher: about no object if all pairs are known.

        Then it only checks that the predictions are finite.
        """
        outputs = {"pred_logits": self.logits, "pred_boxes": self.boxes}
        targets = self.targets
        if self.indices is not None:
            targets = [{name: value[:0] for name, value in t.items()} for t in targets]
        return MatchRequest(outputs, targets, self.num_candidates, self.name)


@dataclass(frozen=True)
class MatchedPairs:
    """The N matched (prediction, object) pairs of all sets, one set behind the other."""

    indices: list[Indices]  # of each set
    positions: list[tuple[Tensor, Tensor, Tensor]]  # of each set: image, query, class, int64
    src_boxes: Tensor  # (N, 4) predicted, cxcywh in [0, 1]
    target_boxes: Tensor  # (N, 4) their objects, as above

    @property
    def sizes(self) -> list[int]:
        """Number of pairs of each set."""
        return [len(image) for image, _, _ in self.positions]


def gather_pairs(sets: Sequence[PredictionSet], indices: list[Indices]) -> MatchedPairs:
    """Look up what `indices`, per set and image (query_idx, gt_idx), point at."""
    found: dict[tuple[int, int], tuple] = {}
    positions, src_boxes, target_boxes = [], [], []
    for layer, pairs in zip(sets, indices, strict=True):
        key = (id(layer.targets), id(pairs))  # the denoising sets of all layers share theirs
        if key not in found:
            found[key] = look_up_pairs(layer.targets, pairs)
        position, boxes = found[key]
        positions.append(position)
        # Indexed even if nothing is matched: the empty result keeps the boxes in the graph,
        # without which DDP would wait for the box head's gradients.
        src_boxes.append(layer.boxes[position[:2]])
        target_boxes.append(boxes.to(layer.boxes.dtype))
    return MatchedPairs(indices, positions, torch.cat(src_boxes), torch.cat(target_boxes))
