"""Adds the denoising queries to what is supervised: the criterion Align-DETR trains with."""

import torch
from torch import Tensor

from .prediction_set import Indices, PredictionSet
from .two_stage_criterion import TwoStageCriterion


class AlignDETRCriterion(TwoStageCriterion):
    """Two-stage criterion with contrastive denoising; constructed as `TwoStageCriterion`.

    The denoising queries need no matching: a positive is a noised copy of a known object. They
    are supervised with weight 1, their losses carry the suffix _dn (last layer) or _dn_i.
    """

    def forward(
        self, outputs: dict, targets: list[dict[str, Tensor]], dn_metas: dict | None = None
    ) -> dict[str, Tensor]:
        """Unweighted losses of the last, auxiliary, encoder and denoising predictions.

        Args:
            outputs: as `BaseCriterion.forward`, and "enc_outputs", the proposals' dict.
            targets: as `BaseCriterion.forward`.
            dn_metas: as `compute_dn_loss`.

        Returns:
            0-d losses. The _dn keys are always there, 0 without denoising.
        """
        num_boxes = self.count_boxes(outputs, targets)
        aux_num = len(outputs.get("aux_outputs", []))
        sets = self.prediction_sets(outputs, targets, num_boxes)
        denoising = self._denoising_sets(dn_metas, targets, aux_num, num_boxes)
        losses = self.compute_losses([*sets, *denoising])
        return losses if denoising else losses | _no_denoising(targets, aux_num)

    def compute_dn_loss(
        self,
        dn_metas: dict | None,
        targets: list[dict[str, Tensor]],
        aux_num: int,
        num_boxes: float | Tensor,
    ) -> dict[str, Tensor]:
        """Losses of the denoising queries.

        Args:
            dn_metas: None, or "dn_num" G (groups), "single_padding" P (queries per group, the
                positives of an image first), and "output_known_lbs_bboxes": "pred_logits"
                (B, G * P, K), "pred_boxes" (B, G * P, 4) and, optional, "aux_outputs", a list of
                such. Optional "gt_indices": per image the objects that are in the groups, in
                their order; all of them by default.
            targets: as `BaseCriterion.forward`.
            aux_num: number of auxiliary layers.
            num_boxes: objects per process; the sums are divided by `num_boxes` * G.
        """
        sets = self._denoising_sets(dn_metas, targets, aux_num, num_boxes)
        return self.compute_losses(sets) if sets else _no_denoising(targets, aux_num)

    def _denoising_sets(
        self,
        dn_metas: dict | None,
        targets: list[dict[str, Tensor]],
        aux_num: int,
        num_boxes: float | Tensor,
    ) -> list[PredictionSet]:
        if not dn_metas or "output_known_lbs_bboxes" not in dn_metas:
            return []
        outputs = dn_metas["output_known_lbs_bboxes"]
        num_groups, group_size = dn_metas["dn_num"], dn_metas["single_padding"]
        gt_indices = dn_metas.get("gt_indices")
        indices = _denoising_indices(targets, num_groups, group_size, gt_indices)
        normaliser = num_boxes * max(num_groups, 1)
        layers = [("_dn", aux_num + 1, outputs)]
        for i, aux in enumerate(outputs.get("aux_outputs", [])[:aux_num]):
            layers.append((f"_dn_{i}", i + 1, aux))
        return [
            self.prediction_set(
                of_layer,
                targets,
                normaliser,
                layer,
                f"denoising queries of decoder layer {layer}",
                suffix,
                indices,
            )
            for suffix, layer, of_layer in layers
        ]


def _denoising_indices(
    targets: list[dict[str, Tensor]],
    num_groups: int,
    group_size: int,
    gt_indices: list[Tensor] | None = None,
) -> Indices:
    """Per image: object n, or that at n in its `gt_indices`, is answered by query n of every
    group."""
    if gt_indices is None:
        gt_indices = [torch.arange(len(t["labels"]), device=t["labels"].device) for t in targets]
    indices = []
    for gt in gt_indices:
        assert 2 * len(gt) <= group_size, (len(gt), group_size)
        slot = torch.arange(len(gt), device=gt.device)
        start = torch.arange(num_groups, device=gt.device) * group_size
        indices.append(((start[:, None] + slot).flatten(), gt.repeat(num_groups)))
    return indices


def _no_denoising(targets: list[dict[str, Tensor]], aux_num: int) -> dict[str, Tensor]:
    suffixes = ["_dn", *(f"_dn_{i}" for i in range(aux_num))]
    names = ("loss_class", "loss_bbox", "loss_giou")
    zeros = torch.zeros(len(suffixes) * len(names), device=targets[0]["boxes"].device)
    return dict(zip([n + s for s in suffixes for n in names], zeros.unbind(), strict=True))
