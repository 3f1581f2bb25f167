"""AlignDETR plain ViT-B (MAE) and simple feature pyramid, 4 scales, k=2, 12 epochs. No published
figure.

python tools/train_net.py --num-gpus 8 \
    --config-file projects/aligndetr/configs/backbones/aligndetr_k=2_vitdet_b_4scale_12ep.py
"""

from detectron2.config import LazyCall as L

from aligndetr.config import coco_schedule
from aligndetr.modeling import SimpleFeaturePyramid, ViT

from ..base import dataloader, dataset, model, optimizer, train  # noqa: F401

train.max_iter, lr_multiplier = coco_schedule(epochs=12, decay_epoch=11)
train.output_dir = "./output/aligndetr_k2_vitdet_b_4scale_12ep"
train.init_checkpoint = "detectron2://ImageNetPretrained/MAE/mae_pretrain_vit_base.pth"
model.backbone = L(SimpleFeaturePyramid)(
    net=L(ViT)(
        img_size=1024,
        embed_dim=768,
        depth=12,
        num_heads=12,
        drop_path_rate=0.1,
        window_size=14,
        window_block_indexes=[0, 1, 3, 4, 6, 7, 9, 10],  # the others see the whole image
        use_rel_pos=True,
    ),
    in_feature="last_feat",
    out_channels=256,
    scale_factors=[2.0, 1.0, 0.5],
)
model.neck.input_shapes = model.neck.in_features = None  # as the backbone has them
