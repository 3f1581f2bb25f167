"""Align-DAB-DETR R-50, dilated C5 (stride 16), k=2, 50 epochs. No published figure.

python tools/train_net.py --num-gpus 8 \
    --config-file projects/align_dab_detr/configs/align_dab_detr_r50_dc5_50ep.py
"""

from detectron2.config import LazyCall as L

from aligndetr.modeling import dilated_stages

from .align_dab_detr_r50_50ep import (  # noqa: F401
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

train.output_dir = "./output/align_dab_detr_r50_dc5_50ep"
model.backbone.stages = L(dilated_stages)(depth=50, stride_in_1x1=False, norm="FrozenBN")
