"""AlignDETR R-50, 4 scales, k=2, 12 epochs, with H-DETR's hybrid branch: 1,500 more queries in
training, six for each object. No published figure.

python tools/train_net.py --num-gpus 8 \
    --config-file projects/aligndetr/configs/hybrid/aligndetr_k=2_r50_4scale_hybrid_12ep.py
"""

from aligndetr.config import coco_schedule

from ..base import dataloader, dataset, model, optimizer, train  # noqa: F401

train.max_iter, lr_multiplier = coco_schedule(epochs=12, decay_epoch=11)
train.output_dir = "./output/aligndetr_k2_r50_4scale_hybrid_12ep"
model.transformer.num_hybrid_queries = 1500
model.criterion._target_ = "aligndetr.criterions.HybridCriterion"
model.criterion.hybrid_match_num = 6
