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
        stem=L(BasicStem)(
            in_channels=3,  # of the image
            out_channels=64,  # of the first convolution
            norm="FrozenBN",  # batch norm with fixed statistics and weights
        ),
        stages=L(ResNet.make_default_stages)(
            depth=50,  # 18, 34, 50, 101 or 152
            stride_in_1x1=False,  # True: where caffe2's weights stride
            norm="FrozenBN",  # as of the stem; "GN" to train without first weights
        ),
        out_features=["res3", "res4", "res5"],  # maps of strides 8, 16, 32
        freeze_at=1,  # first stages that do not learn: 1 the stem, 2 also res2; 0 none
        use_checkpoint=False,
    ),
    position_embedding=L(PositionEmbeddingSine)(
        num_pos_feats=128,
        temperature=10000,  # wavelengths grow from 2 pi to almost 2 pi times this
        normalize=True,
        offset=-0.5,
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
        norm_layer=L(nn.GroupNorm)(
            num_groups=32,  # that the channels are split into
            num_channels=256,  # as `out_channels`
        ),
    ),
    transformer=L(Transformer)(
        encoder=L(TransformerEncoder)(
            embed_dim=256,  # channels of a token; divisible by `num_heads`
            num_heads=8,  # of attention
            feedforward_dim=2048,  # hidden channels of the feed-forward networks
            attn_dropout=0.0,  # of attention's output
            ffn_dropout=0.0,  # inside the feed-forward networks
            num_layers=6,  # one after the other
            post_norm=False,
            num_feature_levels="${..num_feature_levels}",  # as the transformer
            use_checkpoint=False,
        ),
        decoder=L(TransformerDecoder)(
            embed_dim=256,  # channels of a query; divisible by `num_heads`
            num_heads=8,  # of attention
            feedforward_dim=2048,  # hidden channels of the feed-forward networks
            attn_dropout=0.0,  # of self-attention's weights and cross-attention's output
            ffn_dropout=0.0,  # inside the feed-forward networks
            num_layers=NUM_DECODER_LAYERS,  # `match_num` and `weight_dict` have to fit it
            return_intermediate=True,
            num_feature_levels="${..num_feature_levels}",  # as the transformer
            use_checkpoint=False,
        ),
        num_feature_levels=4,  # maps of the neck that encoder and decoder look at, at most 5
        two_stage_num_proposals="${..num_queries}",
    ),
    embed_dim=256,  # channels of tokens and queries; encoder, decoder and neck have the same
    num_classes=80,  # follows the data where it is not set
    num_queries=900,  # of the decoder, each at most one detection per class
    aux_loss=True,
    criterion=L(AlignDETRCriterion)(
        num_classes="${..num_classes}",
        matcher=L(MixedMatcher)(
            cost_class=2.0,  # weight of the class cost
            cost_bbox=5.0,  # weight of the L1 distance of boxes
            cost_giou=2.0,  # weight of minus GIoU
            cost_class_type="focal_loss_cost",
            alpha=0.25,  # share of the positive part of the focal cost
            gamma=2.0,  # exponent of the focal cost
        ),
        # Weight of each loss by its key. A key with a layer's suffix (`loss_bbox_dn_3`) goes before
        # the one without (`loss_bbox_dn`).
        weight_dict=all_weights(BASE_WEIGHTS, NUM_DECODER_LAYERS),
        match_num=[2, 2, 2, 2, 2, 2, 1],
        alpha=0.25,  # share of the score in a candidate's quality; the rest is the IoU's
        gamma=2.0,  # exponent of the score that weighs negatives
        tau=1.5,
        two_stage_binary_cls=False,
    ),
    # Denoising queries per image, positives, as groups of all its objects; 0: no denoising.
    dn_number=100,
    label_noise_ratio=0.5,  # half of this share of the denoising queries' labels is drawn anew
    box_noise_scale=1.0,  # 1 moves a corner by up to half the box's width and height
    pixel_mean=[123.675, 116.280, 103.530],  # of red, green and blue, in 0 to 255
    pixel_std=[58.395, 57.120, 57.375],  # what the difference to the mean is divided by
    select_box_nums_for_evaluation=300,
    prior_init=0.01,
)
