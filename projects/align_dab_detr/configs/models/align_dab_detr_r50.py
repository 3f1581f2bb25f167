"""DAB-DETR with ResNet-50's C5 map and Align-DETR's criterion."""

from detectron2.config import LazyCall as L
from detectron2.modeling.backbone import BasicStem
from torch import nn

from aligndetr.criterions import ManyToOneCriterion
from aligndetr.layers import PositionEmbeddingSine
from aligndetr.matchers import MixedMatcher
from aligndetr.modeling import ResNet
from projects.align_dab_detr.modeling import (
    AlignDABDETR,
    DabDetrTransformer,
    DabDetrTransformerDecoder,
    DabDetrTransformerEncoder,
)

model = L(AlignDABDETR)(
    backbone=L(ResNet)(
        stem=L(BasicStem)(in_channels=3, out_channels=64, norm="FrozenBN"),
        stages=L(ResNet.make_default_stages)(depth=50, stride_in_1x1=False, norm="FrozenBN"),
        out_features=["res5"],
        freeze_at=1,
        use_checkpoint=False,
    ),
    in_features=["res5"],
    in_channels=None,  # the backbone's
    position_embedding=L(PositionEmbeddingSine)(num_pos_feats=128, temperature=20, normalize=True),
    transformer=L(DabDetrTransformer)(
        encoder=L(DabDetrTransformerEncoder)(
            embed_dim=256,
            num_heads=8,
            attn_dropout=0.0,
            feedforward_dim=2048,
            ffn_dropout=0.0,
            activation=L(nn.PReLU)(),
            num_layers=6,
            use_checkpoint=False,
        ),
        decoder=L(DabDetrTransformerDecoder)(
            embed_dim=256,
            num_heads=8,
            attn_dropout=0.0,
            feedforward_dim=2048,
            ffn_dropout=0.0,
            activation=L(nn.PReLU)(),
            num_layers=6,
            modulate_hw_attn=True,
            use_checkpoint=False,
        ),
    ),
    embed_dim=256,
    num_classes=80,
    num_queries=300,
    criterion=L(ManyToOneCriterion)(
        num_classes="${..num_classes}",
        matcher=L(MixedMatcher)(
            cost_class=2.0,
            cost_bbox=5.0,
            cost_giou=2.0,
            cost_class_type="focal_loss_cost",
            alpha=0.25,
            gamma=2.0,
        ),
        weight_dict={"loss_class": 1, "loss_bbox": 5.0, "loss_giou": 2.0},  # of every layer
        match_num=[1, 2, 2, 2, 2, 2, 1],  # the first is for proposals, of which there are none
        alpha=0.25,
        gamma=2.0,
        tau=1.5,
    ),
    aux_loss=True,
    pixel_mean=[123.675, 116.280, 103.530],
    pixel_std=[58.395, 57.120, 57.375],
    # The authors' config says True, but their code freezes nothing (docs/differences.md).
    freeze_anchor_box_centers=False,
    select_box_nums_for_evaluation=300,
)
