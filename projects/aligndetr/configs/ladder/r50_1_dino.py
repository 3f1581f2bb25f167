"""Ladder, rung 1: DINO R-50, 4 scales, 12 epochs. One query per object, focal loss.

python tools/train_net.py --num-gpus 8 \
    --config-file projects/aligndetr/configs/ladder/r50_1_dino.py

49.2 AP on COCO val2017 with detrex's DINO (its model zoo, not ours).
"""

from aligndetr.config import coco_schedule

from ..base import dataloader, dataset, model, optimizer, train  # noqa: F401

train.max_iter, lr_multiplier = coco_schedule(epochs=12, decay_epoch=11)
train.output_dir = "./output/ladder/r50_1_dino"
model.criterion.class_loss = "focal"
model.criterion.match_num = [1] * 7
