"""detectron2's Swin, and its plain ViT with simple feature pyramid (ViTDet), for a DETR.

They need timm for a few layers. Images are padded to what they need; the padding is masked.
"""

from typing import Any

from detectron2.modeling.backbone import SimpleFeaturePyramid as D2SimpleFeaturePyramid
from detectron2.modeling.backbone import SwinTransformer as D2SwinTransformer
from detectron2.modeling.backbone import ViT as D2ViT
from torch import nn

from .timm_backbone import import_timm


class SwinTransformer(D2SwinTransformer):
    """As detectron2's (Liu et al., arXiv:2103.14030), with an error that says how to get timm."""

    def __init__(self, *args: Any, **kwargs: Any):
        import_timm()
        super().__init__(*args, **kwargs)


class ViT(D2ViT):
    """As detectron2's (Li et al., arXiv:2203.16527), with LayerNorms of epsilon 1e-6, as the
    published weights were trained; a saved config cannot hold the function that says so there."""

    def __init__(self, *args: Any, **kwargs: Any):
        import_timm()
        super().__init__(*args, **kwargs)
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = 1e-6


class SimpleFeaturePyramid(D2SimpleFeaturePyramid):
    """As detectron2's. Images are padded to multiples of its coarsest stride, which there is
    declared under a name that nothing reads."""

    @property
    def size_divisibility(self) -> int:
        return self._size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        return {"square_size": self._square_pad}
