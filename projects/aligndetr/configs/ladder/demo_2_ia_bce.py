"""Ladder at the demo's size, rung 2: rung 1 with IA-BCE in place of the focal loss.

python tools/train_net.py --config-file projects/aligndetr/configs/ladder/demo_2_ia_bce.py
"""

from .demo_1_dino import dataloader, dataset, lr_multiplier, model, optimizer, train  # noqa: F401

train.output_dir = "./output/ladder/demo_2_ia_bce"
model.criterion.class_loss = "ia_bce"
