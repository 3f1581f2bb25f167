"""Ladder at the demo's size, rung 3: rung 2 with two queries per object in all layers but the last,
which count alike.

python tools/train_net.py --config-file projects/aligndetr/configs/ladder/demo_3_mixed_matching.py
"""

from .demo_2_ia_bce import dataloader, dataset, lr_multiplier, model, optimizer, train  # noqa: F401

train.output_dir = "./output/ladder/demo_3_mixed_matching"
model.criterion.match_num = [2] * 3 + [1]
model.criterion.rank_weights = False
