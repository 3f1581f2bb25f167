"""Building blocks: tensors in, tensors out. They know torch (and once scipy)
and `aligndetr.utils`, nothing else."""

from .attention import MultiheadAttention
from .box_ops import (
    box_cxcywh_to_xyxy,
    box_iou,
    box_xyxy_to_cxcywh,
    elementwise_giou,
    elementwise_iou,
    generalized_box_iou,
    masks_to_boxes,
)
from .conditional_attention import ConditionalCrossAttention, ConditionalSelfAttention
from .mlp import FFN, MLP
from .ms_deform_attn import (
    MultiScaleDeformableAttention,
    as_shape_list,
    check_backend_name,
    multi_scale_deformable_attn,
    multi_scale_deformable_attn_pytorch,
    set_default_backend,
)
from .position_embedding import PositionEmbeddingSine, get_sine_pos_embed
from .recompute import recompute
from .transformer import BaseTransformerLayer, TransformerLayerSequence

__all__ = [
    "FFN",
    "MLP",
    "BaseTransformerLayer",
    "ConditionalCrossAttention",
    "ConditionalSelfAttention",
    "MultiScaleDeformableAttention",
    "MultiheadAttention",
    "PositionEmbeddingSine",
    "TransformerLayerSequence",
    "as_shape_list",
    "box_cxcywh_to_xyxy",
    "box_iou",
    "box_xyxy_to_cxcywh",
    "check_backend_name",
    "elementwise_giou",
    "elementwise_iou",
    "generalized_box_iou",
    "get_sine_pos_embed",
    "masks_to_boxes",
    "multi_scale_deformable_attn",
    "multi_scale_deformable_attn_pytorch",
    "recompute",
    "set_default_backend",
]
