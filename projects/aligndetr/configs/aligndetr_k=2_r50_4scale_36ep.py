"""AlignDETR R-50, 4 scales, k=2, 36 epochs. No published figure.

python tools/train_net.py --num-gpus 8 \
    --config-file projects/aligndetr/configs/aligndetr_k=2_r50_4scale_36ep.py
"""

from aligndetr.config import coco_schedule

from .base import dataloader, dataset, model, optimizer, train  # noqa: F401

train.max_iter, lr_multiplier = coco_schedule(epochs=36, decay_epoch=30)
train.output_dir = "./output/aligndetr_k2_r50_4scale_36ep"
