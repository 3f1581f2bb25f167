"""AlignDETR Swin-T (ImageNet-1k, 224), 4 scales, k=2, 12 epochs. No published figure.

python tools/train_net.py --num-gpus 8 \
    --config-file projects/aligndetr/configs/backbones/aligndetr_k=2_swin_t_4scale_12ep.py
"""

from detectron2.config import LazyCall as L

from aligndetr.config import coco_schedule
from aligndetr.modeling import SwinTransformer

from ..base import dataloader, dataset, model, optimizer, train  # noqa: F401

train.max_iter, lr_multiplier = coco_schedule(epochs=12, decay_epoch=11)
train.output_dir = "./output/aligndetr_k2_swin_t_4scale_12ep"
train.init_checkpoint = (
    "https://github.com/SwinTransformer/storage/releases/download/v1.0.0/"
    "swin_tiny_patch4_window7_224.pth"
)
model.backbone = L(SwinTransformer)(
    pretrain_img_size=224,
    embed_dim=96,
    depths=[2, 2, 6, 2],
    num_heads=[3, 6, 12, 24],
    window_size=7,
    drop_path_rate=0.1,
    out_indices=[1, 2, 3],
)
model.neck.input_shapes = model.neck.in_features = None  # as the backbone has them
