"""Align-DAB-DETR R-50, C5, k=2, 50 epochs. 46.0 AP on COCO val2017 (published, not ours).

python tools/train_net.py --num-gpus 8 \
    --config-file projects/align_dab_detr/configs/align_dab_detr_r50_50ep.py
"""

from aligndetr.config import coco_schedule

from ...aligndetr.configs.base import dataloader, dataset, optimizer, train  # noqa: F401
from .models.align_dab_detr_r50 import model

train.max_iter, lr_multiplier = coco_schedule(epochs=50, decay_epoch=40)
train.output_dir = "./output/align_dab_detr_r50_50ep"
model.device = "${train.device}"
