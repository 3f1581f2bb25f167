"""Ladder, rung 3: rung 2 with two queries per object in all layers but the last, which count
alike. No published figure.

python tools/train_net.py --num-gpus 8 \
    --config-file projects/aligndetr/configs/ladder/r50_3_mixed_matching.py
"""

from .r50_2_ia_bce import dataloader, dataset, lr_multiplier, model, optimizer, train  # noqa: F401

train.output_dir = "./output/ladder/r50_3_mixed_matching"
model.criterion.match_num = [2] * 6 + [1]
model.criterion.rank_weights = False
