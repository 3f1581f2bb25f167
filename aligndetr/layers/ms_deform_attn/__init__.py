"""Multi-scale deformable attention: the module, its function, and implementations of that."""

from .functional import (
    as_shape_list,
    multi_scale_deformable_attn,
    multi_scale_deformable_attn_pytorch,
)
from .module import MultiScaleDeformableAttention

__all__ = [
    "MultiScaleDeformableAttention",
    "as_shape_list",
    "multi_scale_deformable_attn",
    "multi_scale_deformable_attn_pytorch",
]
