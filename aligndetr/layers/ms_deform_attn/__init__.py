"""Multi-scale deformable attention: the module, its function, and implementations of that."""

from .functional import (
    as_shape_list,
    check_backend_name,
    multi_scale_deformable_attn,
    multi_scale_deformable_attn_pytorch,
    set_default_backend,
)
from .module import MultiScaleDeformableAttention

__all__ = [
    "MultiScaleDeformableAttention",
    "as_shape_list",
    "check_backend_name",
    "multi_scale_deformable_attn",
    "multi_scale_deformable_attn_pytorch",
    "set_default_backend",
]
