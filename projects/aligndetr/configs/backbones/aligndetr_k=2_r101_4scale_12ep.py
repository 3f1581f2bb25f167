"""AlignDETR ResNet-101, 4 scales, k=2, 12 epochs. No published figure.

python tools/train_net.py --num-gpus 8 \
    --config-file projects/aligndetr/configs/backbones/aligndetr_k=2_r101_4scale_12ep.py
"""

from aligndetr.config import coco_schedule

from ..base import dataloader, dataset, model, optimizer, train  # noqa: F401

train.max_iter, lr_multiplier = coco_schedule(epochs=12, decay_epoch=11)
train.output_dir = "./output/aligndetr_k2_r101_4scale_12ep"
train.init_checkpoint = "https://download.pytorch.org/models/resnet101-63fe2227.pth"
model.backbone.stages.depth = 101
