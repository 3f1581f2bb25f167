"""Parts of a deformable DETR that are not a layer: neck, level flattening, proposals, denoising."""

from .box_refinement import refine_boxes
from .channel_mapper import ChannelMapper
from .denoising import DenoisingQueries, make_denoising_queries
from .detector import Detector
from .dilated_resnet import dilated_stages
from .hybrid import with_hybrid_queries
from .level_positions import LevelPositions
from .levels import FeatureLevels, encoder_reference_points, padding_masks, valid_ratio
from .memory_format import to_channels_last
from .postprocess import select_top_predictions
from .proposals import TokenRanking, check_num_levels, propose_from_tokens
from .resnet import ResNet
from .timm_backbone import TimmBackbone
from .transformer_backbones import SimpleFeaturePyramid, SwinTransformer, ViT

__all__ = [
    "ChannelMapper",
    "DenoisingQueries",
    "Detector",
    "FeatureLevels",
    "LevelPositions",
    "ResNet",
    "SimpleFeaturePyramid",
    "SwinTransformer",
    "TimmBackbone",
    "TokenRanking",
    "ViT",
    "check_num_levels",
    "dilated_stages",
    "encoder_reference_points",
    "make_denoising_queries",
    "padding_masks",
    "propose_from_tokens",
    "refine_boxes",
    "select_top_predictions",
    "to_channels_last",
    "valid_ratio",
    "with_hybrid_queries",
]
