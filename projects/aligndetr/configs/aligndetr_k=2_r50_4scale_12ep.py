"""AlignDETR R-50, 4 scales, k=2, 12 epochs. 50.3 AP on COCO val2017 (upstream README, not ours).

python tools/train_net.py --num-gpus 8 \
    --config-file projects/aligndetr/configs/aligndetr_k=2_r50_4scale_12ep.py
"""

from aligndetr.config import coco_schedule

from .base import dataloader, dataset, model, optimizer, train  # noqa: F401

train.max_iter, lr_multiplier = coco_schedule(epochs=12, decay_epoch=11)
train.output_dir = "./output/aligndetr_k2_r50_4scale_12ep"
