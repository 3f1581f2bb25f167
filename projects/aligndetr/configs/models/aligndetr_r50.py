"""Align-DETR with ResNet-50 and 4 feature levels, as published.

Experiments set `criterion.match_num` and `criterion.tau`. `num_classes` follows the data where an
experiment is given another data set (see `projects/aligndetr/configs/base.py`).
"""

from detectron2.config import LazyCall as L
from detectron2.modeling.backbone import BasicStem
from torch import nn

from aligndetr.criterions import AlignDETRCriterion
from aligndetr.layers import PositionEmbeddingSine
from aligndetr.matchers import MixedMatcher
from aligndetr.modeling import ChannelMapper, ResNet
from projects.aligndetr.modeling import (
    AlignDETR,
    Transformer,
    TransformerDecoder,
    TransformerEncoder,
)

NUM_DECODER_LAYERS = 6
BASE_WEIGHTS = {"loss_class": 1, "loss_bbox": 5.0, "loss_giou": 2.0}


def all_weights(base: dict[str, float], num_decoder_layers: int) -> dict[str, float]:
    """The weights of `base` for the last layer and its denoising queries, and the same again for
    the encoder's proposals and for each intermediate decoder layer."""
    last = base | {f"{name}_dn": weight for name, weight in base.items()}
    suffixes = ["", "_enc", *(f"_{layer}" for layer in range(num_decoder_layers - 1))]
    return {name + suffix: weight for suffix in suffixes for name, weight in last.items()}


model = L(AlignDETR)(
    backbone=L(ResNet)(
        stem=L(BasicStem)(in_channels=3, out_channels=64, norm="FrozenBN"),
        stages=L(ResNet.make_default_stages)(depth=50, stride_in_1x1=False, norm="FrozenBN"),
        out_features=["res3", "res4", "res5"],
        freeze_at=1,
        use_checkpoint=False,
    ),
    position_embedding=L(PositionEmbeddingSine)(
        num_pos_feats=128, temperature=10000, normalize=True, offset=-0.5
    ),
    neck=L(ChannelMapper)(
        input_shapes={
            "res3": {"channels": 512},
            "res4": {"channels": 1024},
            "res5": {"channels": 2048},
        },
        in_features=["res3", "res4", "res5"],
        out_channels=256,
        num_outs=4,
        kernel_size=1,
        norm_layer=L(nn.GroupNorm)(num_groups=32, num_channels=256),
    ),
    transformer=L(Transformer)(
        encoder=L(TransformerEncoder)(
            embed_dim=256,
            num_heads=8,
            feedforward_dim=2048,
            attn_dropout=0.0,
            ffn_dropout=0.0,
            num_layers=6,
            post_norm=False,
            num_feature_levels="${..num_feature_levels}",
            use_checkpoint=False,
        ),
        decoder=L(TransformerDecoder)(
            embed_dim=256,
            num_heads=8,
            feedforward_dim=2048,
            attn_dropout=0.0,
            ffn_dropout=0.0,
            num_layers=NUM_DECODER_LAYERS,
            return_intermediate=True,
            num_feature_levels="${..num_feature_levels}",
            use_checkpoint=False,
        ),
        num_feature_levels=4,
        two_stage_num_proposals="${..num_queries}",
    ),
    embed_dim=256,
    num_classes=80,
    num_queries=900,
    aux_loss=True,
    criterion=L(AlignDETRCriterion)(
        num_classes="${..num_classes}",
        matcher=L(MixedMatcher)(
            cost_class=2.0,
            cost_bbox=5.0,
            cost_giou=2.0,
            cost_class_type="focal_loss_cost",
            alpha=0.25,
            gamma=2.0,
        ),
        weight_dict=all_weights(BASE_WEIGHTS, NUM_DECODER_LAYERS),
        match_num=[2, 2, 2, 2, 2, 2, 1],
        alpha=0.25,
        gamma=2.0,
        tau=1.5,
        two_stage_binary_cls=False,
    ),
    dn_number=100,
    label_noise_ratio=0.5,
    box_noise_scale=1.0,
    pixel_mean=[123.675, 116.280, 103.530],
    pixel_std=[58.395, 57.120, 57.375],
    select_box_nums_for_evaluation=300,
    prior_init=0.01,
)
