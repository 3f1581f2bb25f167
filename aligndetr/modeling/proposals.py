"""Two-stage proposals: a box for each encoder token, before any head has seen it.

Deformable DETR, appendix A.4: the token's own place, and a size that doubles from level to level.
Shapes: B batch, S tokens over all levels, Q queries.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from aligndetr.utils import smaller_size

from .levels import cell_centres

BASE_SIZE = 0.05  # width and height of a proposal on the finest level, as a share of the image
SMALLEST, LARGEST = 0.01, 0.99  # a coordinate of a proposal that can be used
MAX_LEVELS = 1 + math.floor(math.log2(LARGEST / BASE_SIZE))  # proposals of a further one: too large


def propose_from_tokens(
    padding_mask: Tensor, spatial_shapes: Sequence[tuple[int, int]]
) -> tuple[Tensor, Tensor]:
    """One proposal per token.

    Args:
        padding_mask: (B, S) bool, True = padding.
        spatial_shapes: L pairs (h, w) with sum of h * w equal to S.

    Returns:
        proposals: (B, S, 4) float32, cxcywh as logits; +inf where unusable, which a sigmoid turns
            into the box (1, 1, 1, 1). The published models were trained so and such a token can be
            selected.
        unusable: (B, S) bool: padding, or a coordinate outside 0.01 ... 0.99.
    """
    start, boxes = 0, []
    for level, shape in enumerate(spatial_shapes):
        height, width = shape
        mask = padding_mask[:, start : start + height * width].view(-1, height, width)
        # The mask's first row and column count the valid cells: an image starts top left.
        valid_cells = torch.stack([(~mask[:, 0]).sum(1), (~mask[:, :, 0]).sum(1)], -1)
        centres = cell_centres(shape, padding_mask.device) / valid_cells[:, None]
        boxes.append(torch.cat([centres, torch.full_like(centres, BASE_SIZE * 2.0**level)], -1))
        start = start + height * width  # not +=: under a tracer it is a tensor, and in use
    proposals = torch.cat(boxes, 1)
    inside = ((proposals > SMALLEST) & (proposals < LARGEST)).all(-1)
    unusable = padding_mask | ~inside
    logits = torch.log(proposals / (1 - proposals))
    return logits.masked_fill(unusable[..., None], float("inf")), unusable


def check_num_levels(num_feature_levels: int) -> None:
    """Refuse levels that cannot give a proposal: their tokens would never become a query."""
    if num_feature_levels > MAX_LEVELS:
        raise ValueError(
            f"`model.transformer.num_feature_levels` (={num_feature_levels}) must be at most "
            f"{MAX_LEVELS}: sizes of proposals double from level to level, and on a further one "
            "they exceed the image. Set `model.neck.num_outs` as well"
        )


class TokenRanking(nn.Module):
    """The tokens that become queries: those of highest score, best first.

    A module without weights, so that a forward hook can see the scores, and give another ranking
    in place of this one. Each rank has a query of its own: two runtimes that round differently can
    rank near-equal tokens differently, and are compared on one ranking (`aligndetr.export`).
    """

    def forward(self, scores: Tensor, count: int) -> Tensor:
        """Scores (B, S) to token indices (B, Q), Q = min(count, S)."""
        return scores.topk(smaller_size(count, scores.shape[1]), dim=1).indices
