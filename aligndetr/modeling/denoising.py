"""Contrastive denoising queries: noised ground truth as extra decoder queries (DINO, section 3.3).

Every object stands in each of G groups twice, as a positive (noise of up to one half-size) and as
a negative (between one and two half-sizes). A group has 2 * T slots, T the largest number of
objects in an image of the batch: positives in the first T, negatives in the last T, unused slots
zero. So G depends on the local batch: more objects, fewer groups. One group there always is, whose
size grows with T, unless `max_queries` caps it.

Shapes: B batch, G groups, T slots of positives, N noised entries (2 * G * objects of the batch),
C embed_dim, Q matching queries. Entries are ordered by group, then positives of all images, then
negatives of all images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aligndetr.layers import box_cxcywh_to_xyxy, box_xyxy_to_cxcywh
from aligndetr.utils import inverse_sigmoid


@dataclass(frozen=True)
class DenoisingQueries:
    """Denoising queries of one batch; they stand before the matching queries."""

    content: Tensor  # (B, G * 2T, C)
    boxes: Tensor  # (B, G * 2T, 4), cxcywh before the sigmoid
    attn_mask: Tensor  # (G * 2T + Q, G * 2T + Q) bool, True = may not attend
    num_groups: int  # G
    group_size: int  # 2T
    gt_indices: list[Tensor] | None = None  # per image the objects in a group; None: all of them


@dataclass(frozen=True)
class NoiseDraws:
    """The random numbers behind one batch of denoising queries; None where a noise is off."""

    flip_probability: Tensor | None  # (N,) uniform in [0, 1)
    new_label: Tensor | None  # one per flipped entry, in order; int64 in [0, num_classes)
    sign: Tensor | None  # (N, 4), 0 or 1 for -1 or +1
    part: Tensor | None  # (N, 4) uniform in [0, 1), in half-sizes, before negatives get + 1


def draw_noise(
    num_entries: int, num_classes: int, label_noise_ratio: float, box_noise_scale: float
) -> NoiseDraws:
    """All random draws of denoising, in this order, on the CPU; but which objects are left out
    under `max_queries` is drawn before.

    On the CPU, since the number of flipped labels is a size the host needs, and a GPU would have
    to be waited for; the same seed then also gives the same noise on every device.
    """
    flip_probability = new_label = sign = part = None
    if label_noise_ratio > 0:
        flip_probability = torch.rand(num_entries)
        num_flipped = int((flip_probability < _flip_threshold(label_noise_ratio)).sum())
        new_label = torch.randint(0, num_classes, (num_flipped,))
    if box_noise_scale > 0:
        sign = torch.randint(0, 2, (num_entries, 4))
        part = torch.rand(num_entries, 4)
    return NoiseDraws(flip_probability, new_label, sign, part)


def _flip_threshold(label_noise_ratio: float) -> float:
    return label_noise_ratio * 0.5  # DN-DETR's convention, kept by DINO


def make_denoising_queries(
    targets: Sequence[dict[str, Tensor]],
    dn_number: int,
    label_noise_ratio: float,
    box_noise_scale: float,
    num_queries: int,
    num_classes: int,
    label_enc: nn.Embedding,
    max_queries: int | None = None,
) -> DenoisingQueries | None:
    """Noise the targets and lay them out as queries.

    Args:
        targets: per image "labels" (n,) int64 and "boxes" (n, 4) cxcywh in [0, 1]; not modified.
        dn_number: positives wanted per image; G = max(1, dn_number // T).
        label_noise_ratio: half of this share of the labels is drawn anew.
        box_noise_scale: 1 moves a positive's corners by up to half its width and height.
        num_queries: Q, for the attention mask.
        num_classes: new labels are drawn from [0, num_classes).
        label_enc: (num_classes, C) content of a query by its label.
        max_queries: most denoising queries, G * 2T, at least 2. First the groups become fewer, as
            far as to one; then each image with more than `max_queries` // 2 objects has so many of
            them drawn at random. None: no limit, as published.

    Returns:
        None where there is nothing to denoise: `dn_number` <= 0, or no object in the batch.
    """
    counts = [len(target["labels"]) for target in targets]
    max_objects = max(counts, default=0)
    if dn_number <= 0 or max_objects == 0:
        return None
    gt_indices = None
    if max_queries is not None and 2 * max_objects > max_queries:
        max_objects = max_queries // 2
        gt_indices = [_draw_objects(count, max_objects) for count in counts]
        device = label_enc.weight.device
        gt_indices = [index.to(device, non_blocking=True) for index in gt_indices]
        targets = [_objects_at(index, t) for index, t in zip(gt_indices, targets, strict=True)]
        counts = [len(target["labels"]) for target in targets]
    group_size = 2 * max_objects
    num_groups = max(1, dn_number // max_objects)
    if max_queries is not None:
        num_groups = min(num_groups, max_queries // group_size)
    copies = 2 * num_groups
    labels = torch.cat([target["labels"] for target in targets]).repeat(copies)
    boxes = torch.cat([target["boxes"] for target in targets]).repeat(copies, 1)

    draws = draw_noise(len(labels), num_classes, label_noise_ratio, box_noise_scale)
    labels = _noise_labels(labels, draws, label_noise_ratio)
    boxes = _noise_boxes(boxes, draws, box_noise_scale, is_negative=_negatives(counts, num_groups))

    image, slot = _slots(counts, copies, max_objects)
    image = image.to(labels.device, non_blocking=True)
    slot = slot.to(labels.device, non_blocking=True)
    embedded = label_enc(labels)
    content = embedded.new_zeros(len(counts), num_groups * group_size, embedded.shape[-1])
    content[image, slot] = embedded
    box_logits = boxes.new_zeros(len(counts), num_groups * group_size, 4)
    box_logits[image, slot] = inverse_sigmoid(boxes)
    return DenoisingQueries(
        content=content,
        boxes=box_logits,
        attn_mask=_attention_mask(num_groups, group_size, num_queries, labels.device),
        num_groups=num_groups,
        group_size=group_size,
        gt_indices=gt_indices,
    )


def _draw_objects(count: int, most: int) -> Tensor:
    """Indices of at most `most` of `count` objects, rising."""
    return torch.arange(count) if count <= most else torch.randperm(count)[:most].sort().values


def _objects_at(index: Tensor, target: dict[str, Tensor]) -> dict[str, Tensor]:
    index = index.to(target["labels"].device, non_blocking=True)
    return {name: target[name][index] for name in ("labels", "boxes")}


def _slots(counts: list[int], copies: int, max_objects: int) -> tuple[Tensor, Tensor]:
    """(N,) image and (N,) slot of each entry; a copy is one half (T slots) of a group."""
    image = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    within = torch.cat([torch.arange(count) for count in counts])
    offsets = torch.arange(copies).repeat_interleave(len(within)) * max_objects
    return image.repeat(copies), within.repeat(copies) + offsets


def _negatives(counts: list[int], num_groups: int) -> Tensor:
    """(N,) bool: every second copy of the batch's objects is a negative."""
    return torch.tensor([False, True]).repeat(num_groups).repeat_interleave(sum(counts))


def _noise_labels(labels: Tensor, draws: NoiseDraws, label_noise_ratio: float) -> Tensor:
    if draws.flip_probability is None or draws.new_label is None:
        return labels
    (flipped,) = torch.nonzero(
        draws.flip_probability < _flip_threshold(label_noise_ratio), as_tuple=True
    )
    new_label = draws.new_label.to(labels.device, labels.dtype, non_blocking=True)
    return labels.index_copy(0, flipped.to(labels.device, non_blocking=True), new_label)


def _noise_boxes(
    boxes: Tensor, draws: NoiseDraws, box_noise_scale: float, is_negative: Tensor
) -> Tensor:
    """Move each corner coordinate by a signed part of the half-size; clamp to the image."""
    if draws.part is None or draws.sign is None:
        return boxes
    moves = (draws.part + is_negative[:, None]) * (draws.sign * 2 - 1)
    half_size = boxes[:, 2:].repeat(1, 2) / 2
    moves = moves.to(boxes, non_blocking=True)
    corners = box_cxcywh_to_xyxy(boxes) + moves * half_size * box_noise_scale
    return box_xyxy_to_cxcywh(corners.clamp(0, 1))


def _attention_mask(
    num_groups: int, group_size: int, num_queries: int, device: torch.device
) -> Tensor:
    """Groups cannot see each other, matching queries cannot see any group."""
    num_denoising = num_groups * group_size
    # Matching queries count as one more group that every denoising query may look at.
    group = torch.arange(num_denoising + num_queries, device=device) // group_size
    group = group.clamp(max=num_groups)
    seen = group[None, :]
    return (group[:, None] != seen) & (seen < num_groups)
