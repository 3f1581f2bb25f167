"""What a user would pick instead: transformers' Deformable DETR, at the sizes of our R-50 model.

Needs `pip install transformers` (the extra `bench`). Weights are random: nothing is downloaded.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def is_available() -> bool:
    try:
        import transformers  # noqa: F401
    except ImportError:
        print("left out: transformers is not installed; pip install -e '.[bench]'")
        return False
    return True


class TransformersDetr(nn.Module):
    """Deformable DETR R-50, two-stage with box refinement; takes detectron2's batches.

    Its own loss (focal, L1, GIoU on every decoder layer); there are no denoising queries in it.

    Args:
        num_queries, num_classes, feedforward_dim: its own default of the last is 1024.
    """

    def __init__(self, num_queries: int = 900, num_classes: int = 80, feedforward_dim: int = 2048):
        super().__init__()
        from transformers import (
            DeformableDetrConfig,
            DeformableDetrForObjectDetection,
            ResNetConfig,
        )

        config = DeformableDetrConfig(
            backbone_config=ResNetConfig(out_features=["stage2", "stage3", "stage4"]),
            num_queries=num_queries,
            two_stage=True,
            two_stage_num_proposals=num_queries,
            with_box_refine=True,
            encoder_ffn_dim=feedforward_dim,
            decoder_ffn_dim=feedforward_dim,
            dropout=0.0,
            auxiliary_loss=True,
            num_labels=num_classes,
        )
        self.model = DeformableDetrForObjectDetection(config)
        # As in our backbone only the stem is frozen. (Left alone, it freezes all of it: it looks
        # for "stage.1" in names that say "stages.1", transformers 5.24.0.)
        for name, parameter in self.model.model.backbone.named_parameters():
            parameter.requires_grad_(".stages." in name)

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | object:
        """{"loss": 0-d} of equally large images in training, transformers' output otherwise."""
        images = torch.stack([x["image"] for x in batched_inputs]).to(self.model.device)
        images = (images.to(torch.float32) - 127.5) / 58.0
        mask = torch.ones_like(images[:, 0], dtype=torch.int64)
        if not self.training:
            return self.model(images, pixel_mask=mask)
        labels = [self._labels(x["instances"]) for x in batched_inputs]
        return {"loss": self.model(images, pixel_mask=mask, labels=labels).loss}

    def _labels(self, instances) -> dict[str, Tensor]:
        height, width = instances.image_size
        boxes = instances.gt_boxes.tensor / torch.tensor([width, height, width, height])
        corner, other = boxes.split(2, -1)
        boxes = torch.cat([(corner + other) / 2, other - corner], -1)
        device = self.model.device
        return {"class_labels": instances.gt_classes.to(device), "boxes": boxes.to(device)}


def transformers_ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """transformers' own function, called as `aligndetr.layers.multi_scale_deformable_attn`."""
    from transformers.models.deformable_detr.modeling_deformable_detr import (
        MultiScaleDeformableAttention,
    )

    shapes = torch.tensor(spatial_shapes, device=value.device)
    sizes = shapes.prod(1)
    return MultiScaleDeformableAttention()(
        value,
        shapes,
        list(spatial_shapes),
        sizes.cumsum(0) - sizes,
        sampling_locations,
        attention_weights,
        64,  # read by its CUDA kernel alone
    )
