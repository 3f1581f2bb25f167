"""A small AlignDETR on aerial images of trees, from nothing: twelve to thirty minutes on two
CPU cores.

make demo, or: python tools/prepare_demo_data.py
               python tools/train_net.py --config-file projects/aligndetr/configs/aligndetr_demo.py
"""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.modeling.backbone import BasicStem
from detectron2.modeling.backbone.resnet import BasicBlock
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler

from aligndetr.modeling import ResNet

from .base import dataloader, dataset, model, optimizer, train
from .models.aligndetr_r50 import BASE_WEIGHTS as _BASE_WEIGHTS
from .models.aligndetr_r50 import all_weights

dataset.root = "datasets/trees"
dataset.train_short_edges = [320]  # the tiles have 256: enlarged, a tree covers more cells
dataset.test_short_edge = 320
# All train tiles come from one image, the val tiles from another under another light. From above a
# tree has no upright, so turning is free; brightness, contrast and saturation are what differs.
dataloader.train.mapper.augmentation = [
    L(T.RandomFlip)(horizontal=True, vertical=False),
    L(T.RandomFlip)(horizontal=False, vertical=True),
    L(T.RandomRotation)(angle=[0, 90], sample_style="choice"),
    L(T.RandomBrightness)(intensity_min=0.7, intensity_max=1.3),
    L(T.RandomContrast)(intensity_min=0.7, intensity_max=1.3),
    L(T.RandomSaturation)(intensity_min=0.7, intensity_max=1.3),
    L(T.ResizeShortestEdge)(
        short_edge_length="${dataset.train_short_edges}",
        max_size="${dataset.max_size}",
        sample_style="choice",
    ),
]
dataloader.train.mapper.augmentation_with_crop = None
dataloader.train.total_batch_size = 8
dataloader.train.num_workers = 1  # as many cores as small machines can spare beside the training
dataloader.test.num_workers = 0

# GroupNorm and nothing frozen: there are no pre-trained weights to take statistics from.
STEM, *STAGES = CHANNELS = [32, 32, 64, 128, 256]
EMBED_DIM, FFN_DIM, ENCODER_LAYERS, DECODER_LAYERS = 128, 512, 2, 3
HEADS = 4  # faster than 8
model.backbone = L(ResNet)(
    stem=L(BasicStem)(in_channels=3, out_channels=STEM, norm="GN"),
    stages=[
        [
            L(BasicBlock)(
                in_channels=before, out_channels=after, stride=1 if after == STEM else 2, norm="GN"
            ),
            L(BasicBlock)(in_channels=after, out_channels=after, stride=1, norm="GN"),
        ]
        for before, after in zip(CHANNELS, STAGES)
    ],
    out_features=["res3", "res4", "res5"],
    freeze_at=0,
)
model.position_embedding.num_pos_feats = EMBED_DIM // 2
model.neck.input_shapes = {
    name: {"channels": channels} for name, channels in zip(["res3", "res4", "res5"], STAGES[1:])
}
model.neck.out_channels = model.neck.norm_layer.num_channels = model.embed_dim = EMBED_DIM
for part, num_layers in (("encoder", ENCODER_LAYERS), ("decoder", DECODER_LAYERS)):
    model.transformer[part].update(
        embed_dim=EMBED_DIM, num_heads=HEADS, feedforward_dim=FFN_DIM, num_layers=num_layers
    )
# Queries are cheap here and time is short, so each object teaches many of them at once.
model.num_queries = 200
model.dn_number = 100
model.select_box_nums_for_evaluation = 100
model.criterion.match_num = [6, 6, 6, 1]
model.criterion.weight_dict = all_weights(dict(_BASE_WEIGHTS), DECODER_LAYERS)

train.device = "cpu"
train.init_checkpoint = ""
train.output_dir = "./output/demo"
train.ms_deform_attn = "cpp"  # faster, where there is a compiler
train.max_iter = 450
train.eval_period = train.checkpointer.period = 75
train.log_period = 10
train.seed = 0

optimizer.lr = 1e-3
optimizer.params.lr_factor_func.factor = 1.0
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1], milestones=[75, 100]),
    warmup_length=50 / train.max_iter,
    warmup_factor=0.001,
    warmup_method="linear",
)
