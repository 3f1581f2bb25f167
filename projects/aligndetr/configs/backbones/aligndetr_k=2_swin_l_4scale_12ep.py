"""AlignDETR Swin-L (ImageNet-22k, 384), 4 scales, k=2, 12 epochs. No published figure.

python tools/train_net.py --num-gpus 8 \
    --config-file projects/aligndetr/configs/backbones/aligndetr_k=2_swin_l_4scale_12ep.py
"""

from detectron2.config import LazyCall as L

from aligndetr.config import coco_schedule
from aligndetr.modeling import SwinTransformer

from ..base import dataloader, dataset, model, optimizer, train  # noqa: F401

train.max_iter, lr_multiplier = coco_schedule(epochs=12, decay_epoch=11)
train.output_dir = "./output/aligndetr_k2_swin_l_4scale_12ep"
train.init_checkpoint = (
    "https://github.com/SwinTransformer/storage/releases/download/v1.0.0/"
    "swin_large_patch4_window12_384_22k.pth"
)
model.backbone = L(SwinTransformer)(
    pretrain_img_size=384,
    embed_dim=192,
    depths=[2, 2, 18, 2],
    num_heads=[6, 12, 24, 48],
    window_size=12,
    drop_path_rate=0.2,
    out_indices=[1, 2, 3],
)
model.neck.input_shapes = model.neck.in_features = None  # as the backbone has them
