"""AlignDETR ResNet-50, 5 scales (strides 4 to 64), k=2, 12 epochs. No published figure.

python tools/train_net.py --num-gpus 8 \
    --config-file projects/aligndetr/configs/backbones/aligndetr_k=2_r50_5scale_12ep.py
"""

from aligndetr.config import coco_schedule

from ..base import dataloader, dataset, model, optimizer, train  # noqa: F401

train.max_iter, lr_multiplier = coco_schedule(epochs=12, decay_epoch=11)
train.output_dir = "./output/aligndetr_k2_r50_5scale_12ep"
train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
model.backbone.out_features = ["res2", "res3", "res4", "res5"]
model.neck.input_shapes = model.neck.in_features = None  # as the backbone has them
model.neck.num_outs = model.transformer.num_feature_levels = 5
