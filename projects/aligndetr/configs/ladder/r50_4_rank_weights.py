"""Ladder, rung 4: rung 3 with rank weights, which is Align-DETR (aligndetr_k=2_r50_4scale_12ep.py).
50.3 AP on COCO val2017 (upstream README, not ours).

python tools/train_net.py --num-gpus 8 \
    --config-file projects/aligndetr/configs/ladder/r50_4_rank_weights.py
"""

from .r50_3_mixed_matching import (  # noqa: F401
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

train.output_dir = "./output/ladder/r50_4_rank_weights"
model.criterion.rank_weights = True
