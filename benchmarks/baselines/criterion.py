"""Align-DETR's criterion and matcher as the reference formulates them.

One layer after the other, each with a matcher call and a transfer to the host of its own. The
matcher compares every query of the batch with every object of the batch and then takes each
image's block. IoU and GIoU of matched pairs are the diagonal of an (N, N) matrix, and how many
objects an image has is asked of Python's `max`, element by element.

It keeps the reference's rule for k only as far as `aligndetr.matchers.MixedMatcher` shares it:
each image is matched by itself. Shapes: B batch, Q queries, K classes, N matched pairs.
"""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from aligndetr.criterions import AlignDETRCriterion
from aligndetr.matchers import MixedMatcher

Indices = list[tuple[Tensor, Tensor]]
EPS = 1e-6  # of the reference's IoU and GIoU


class BaselineCriterion(nn.Module):
    """Computes what `criterion` computes, from its settings; called and answering alike."""

    def __init__(self, criterion: AlignDETRCriterion):
        super().__init__()
        self.settings = criterion
        self.weighted = criterion.weighted

    def forward(
        self, outputs: dict, targets: list[dict[str, Tensor]], dn_metas: dict | None
    ) -> dict[str, Tensor]:
        """Unweighted losses under the keys of `AlignDETRCriterion.forward`."""
        num_boxes = max(sum(len(target["labels"]) for target in targets), 1)
        aux_outputs, match_num = outputs["aux_outputs"], self.settings.match_num
        layers = [
            ("", outputs, len(match_num) - 1),
            *((f"_{i}", aux, i + 1) for i, aux in enumerate(aux_outputs)),
            ("_enc", outputs["enc_outputs"], 0),
        ]
        losses = {}
        for suffix, layer, index in layers:
            indices = match(self.settings.matcher, layer, targets, match_num[index])
            weights = self.settings.weight_table[index]
            losses |= self._losses_of(suffix, layer, targets, indices, num_boxes, weights)

        if dn_metas is None:
            return losses
        groups, group_size = dn_metas["dn_num"], dn_metas["single_padding"]
        known = dn_metas["output_known_lbs_bboxes"]
        for i, layer in enumerate([known, *known["aux_outputs"]]):
            suffix = f"_dn_{i - 1}" if i else "_dn"
            indices = denoising_indices(targets, groups, group_size)
            losses |= self._losses_of(suffix, layer, targets, indices, num_boxes * groups, None)
        return losses

    def _losses_of(
        self,
        suffix: str,
        layer: dict[str, Tensor],
        targets: list[dict[str, Tensor]],
        indices: Indices,
        num_boxes: int,
        weight_of_rank: Tensor | None,
    ) -> dict[str, Tensor]:
        image = torch.cat([torch.full_like(query, i) for i, (query, _) in enumerate(indices)])
        query = torch.cat([query for query, _ in indices])
        src_boxes = to_xyxy(layer["pred_boxes"][image, query])
        matched = list(zip(targets, indices, strict=True))
        gt_boxes = to_xyxy(torch.cat([target["boxes"][gt] for target, (_, gt) in matched]))
        labels = torch.cat([target["labels"][gt] for target, (_, gt) in matched])

        iou = torch.diag(pairwise_iou(src_boxes, gt_boxes)[0]).detach()
        position = (image, query, labels)
        loss_class, weight = self._ia_bce(
            layer["pred_logits"], position, iou, indices, weight_of_rank
        )
        gt_cxcywh = torch.cat([target["boxes"][gt] for target, (_, gt) in matched])
        l1 = (layer["pred_boxes"][image, query] - gt_cxcywh).abs().sum(-1)
        giou = torch.diag(pairwise_giou(src_boxes, gt_boxes))
        return {
            "loss_class" + suffix: loss_class / num_boxes,
            "loss_bbox" + suffix: (weight * l1).sum() / num_boxes,
            "loss_giou" + suffix: (weight * (1 - giou)).sum() / num_boxes,
        }

    def _ia_bce(
        self,
        logits: Tensor,
        position: tuple[Tensor, Tensor, Tensor],
        iou: Tensor,
        indices: Indices,
        weight_of_rank: Tensor | None,
    ) -> tuple[Tensor, Tensor | int]:
        """Sum of IA-BCE over all entries, and the rank weight of each pair (N,), or 1."""
        alpha, gamma = self.settings.alpha, self.settings.gamma
        score = logits.sigmoid()
        quality = score[position] ** alpha * iou ** (1 - alpha)
        quality = quality.clamp(min=0.01).detach()
        # Ranked where they are not used, too.
        rank = local_rank(quality, indices)
        weight = 1 if weight_of_rank is None else weight_of_rank.to(quality)[rank]
        quality = quality * weight
        positive, negative = torch.zeros_like(score), score**gamma
        positive[position] = quality
        negative[position] = 1 - quality
        loss = -positive * score.log() - negative * (1 - score).log()
        return loss.sum(), weight


@torch.no_grad()
def match(
    matcher: MixedMatcher, layer: dict[str, Tensor], targets: list[dict[str, Tensor]], copies: int
) -> Indices:
    """Per image (query_idx, gt_idx), sorted by gt_idx, up to `copies` queries per object."""
    batch, num_queries = layer["pred_logits"].shape[:2]
    score = layer["pred_logits"].flatten(0, 1).sigmoid()
    boxes = layer["pred_boxes"].flatten(0, 1)
    labels = torch.cat([target["labels"] for target in targets])
    gt_boxes = torch.cat([target["boxes"] for target in targets])

    alpha, gamma = matcher.alpha, matcher.gamma
    negative = (1 - alpha) * score**gamma * -(1 - score + 1e-8).log()
    positive = alpha * (1 - score) ** gamma * -(score + 1e-8).log()
    class_cost = positive[:, labels] - negative[:, labels]
    l1 = torch.cdist(boxes, gt_boxes, p=1)
    giou = pairwise_giou(to_xyxy(boxes), to_xyxy(gt_boxes))
    cost = matcher.cost_bbox * l1 + matcher.cost_class * class_cost - matcher.cost_giou * giou
    cost = cost.view(batch, num_queries, -1).cpu()

    indices = []
    counts = [len(target["labels"]) for target in targets]
    for i, block in enumerate(cost.split(counts, -1)):
        repeats = max(1, min(copies, num_queries // (2 * max(counts[i], 1))))
        query_idx, column = linear_sum_assignment(block[i].repeat(1, repeats))
        gt_idx = torch.as_tensor(column % max(counts[i], 1), dtype=torch.int64)
        order = gt_idx.argsort(stable=True)
        query_idx = torch.as_tensor(query_idx, dtype=torch.int64)
        indices.append((query_idx[order].to(boxes.device), gt_idx[order].to(boxes.device)))
    return indices


def denoising_indices(
    targets: list[dict[str, Tensor]], num_groups: int, group_size: int
) -> Indices:
    """Per image: object n is answered by query n of every group."""
    indices = []
    for target in targets:
        device = target["labels"].device
        gt = torch.arange(len(target["labels"]), device=device).repeat(num_groups, 1)
        start = torch.tensor(range(num_groups)).to(device) * group_size
        indices.append(((start[:, None] + gt).flatten(), gt.flatten()))
    return indices


def local_rank(quality: Tensor, indices: Indices) -> Tensor:
    """(N,) rank of each pair in its object's bag; the bags of one image are equally large."""
    ranks, start = [], 0
    for _, gt_idx in indices:
        if len(gt_idx) == 0:
            continue
        num_objects = int(max(gt_idx)) + 1
        # Denoising pairs come group by group, not object by object: their rank means nothing.
        bags = quality[start : start + len(gt_idx)].view(num_objects, -1)
        start += len(gt_idx)
        order = bags.sort(dim=-1, descending=True, stable=True).indices
        position = torch.arange(bags.shape[1], device=bags.device).expand_as(order)
        ranks.append(torch.zeros_like(order).scatter_(-1, order, position).flatten())
    return torch.cat(ranks) if ranks else quality.new_zeros(0, dtype=torch.int64)


def to_xyxy(boxes: Tensor) -> Tensor:
    """(..., 4) cxcywh to xyxy."""
    cx, cy, w, h = boxes.unbind(-1)
    return torch.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], -1)


def pairwise_iou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and union (N, M) of boxes (N, 4) and (M, 4), xyxy."""
    area_a = (a[:, 2] - a[:, 0]) * (a[:, 3] - a[:, 1])
    area_b = (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
    overlap = torch.min(a[:, None, 2:], b[:, 2:]) - torch.max(a[:, None, :2], b[:, :2])
    overlap = overlap.clamp(min=0)
    inter = overlap[..., 0] * overlap[..., 1]
    union = area_a[:, None] + area_b - inter
    return inter / (union + EPS), union


def pairwise_giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU (N, M) of boxes (N, 4) and (M, 4), xyxy."""
    iou, union = pairwise_iou(a, b)
    hull = torch.max(a[:, None, 2:], b[:, 2:]) - torch.min(a[:, None, :2], b[:, :2])
    hull = hull.clamp(min=0)
    hull = hull[..., 0] * hull[..., 1]
    return iou - (hull - union) / (hull + EPS)
