"""Ladder at the demo's size, rung 4: rung 3 with rank weights, which is Align-DETR with k=2.

python tools/train_net.py --config-file projects/aligndetr/configs/ladder/demo_4_rank_weights.py
"""

from .demo_3_mixed_matching import (  # noqa: F401
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

train.output_dir = "./output/ladder/demo_4_rank_weights"
model.criterion.rank_weights = True
