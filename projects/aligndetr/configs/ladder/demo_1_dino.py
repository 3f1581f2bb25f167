"""Ladder at the demo's size, rung 1: one query per object and the focal loss, as in DINO.

python tools/prepare_demo_data.py
python tools/train_net.py --config-file projects/aligndetr/configs/ladder/demo_1_dino.py

docs/ablation.md has the one command for all rungs.
"""

from ..aligndetr_demo import dataloader, dataset, lr_multiplier, model, optimizer, train  # noqa: F401

train.output_dir = "./output/ladder/demo_1_dino"
model.criterion.class_loss = "focal"
model.criterion.match_num = [1] * 4
