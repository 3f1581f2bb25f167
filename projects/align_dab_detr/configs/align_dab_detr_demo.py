"""A small Align-DAB-DETR on the demo's trees, on a CPU: to see it run and learn. No published
figure.

python tools/prepare_demo_data.py
python tools/train_net.py \
    --config-file projects/align_dab_detr/configs/align_dab_detr_demo.py
"""

from ...aligndetr.configs.aligndetr_demo import (  # noqa: F401
    DECODER_LAYERS,
    EMBED_DIM,
    ENCODER_LAYERS,
    FFN_DIM,
    HEADS,
    dataloader,
    dataset,
    lr_multiplier,
    optimizer,
    train,
)
from ...aligndetr.configs.aligndetr_demo import model as _aligndetr
from .models.align_dab_detr_r50 import model

model.backbone = _aligndetr.backbone
model.in_features = model.backbone.out_features = ["res4"]  # trees are small: stride 16
model.position_embedding.num_pos_feats = EMBED_DIM // 2
model.embed_dim = EMBED_DIM
for part, num_layers in (("encoder", ENCODER_LAYERS), ("decoder", DECODER_LAYERS)):
    model.transformer[part].update(
        embed_dim=EMBED_DIM, num_heads=HEADS, feedforward_dim=FFN_DIM, num_layers=num_layers
    )
model.num_queries = 200
model.criterion.match_num = [1, 6, 6, 1]
model.select_box_nums_for_evaluation = 100
model.device = "${train.device}"
train.output_dir = "./output/align_dab_detr_demo"
