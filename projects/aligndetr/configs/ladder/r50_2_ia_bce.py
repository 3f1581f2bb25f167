"""Ladder, rung 2: rung 1 with IA-BCE in place of the focal loss. No published figure.

python tools/train_net.py --num-gpus 8 \
    --config-file projects/aligndetr/configs/ladder/r50_2_ia_bce.py
"""

from .r50_1_dino import dataloader, dataset, lr_multiplier, model, optimizer, train  # noqa: F401

train.output_dir = "./output/ladder/r50_2_ia_bce"
model.criterion.class_loss = "ia_bce"
