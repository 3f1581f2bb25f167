"""AlignDETR ConvNeXt-T of timm, 4 scales, k=2, 12 epochs. No published figure.

python tools/train_net.py --num-gpus 8 \
    --config-file projects/aligndetr/configs/backbones/aligndetr_k=2_convnext_t_4scale_12ep.py
"""

from detectron2.config import LazyCall as L

from aligndetr.config import coco_schedule
from aligndetr.modeling import TimmBackbone

from ..base import dataloader, dataset, model, optimizer, train  # noqa: F401

train.max_iter, lr_multiplier = coco_schedule(epochs=12, decay_epoch=11)
train.output_dir = "./output/aligndetr_k2_convnext_t_4scale_12ep"
train.init_checkpoint = (
    "https://huggingface.co/timm/convnext_tiny.fb_in22k/resolve/main/model.safetensors"
)
model.backbone = L(TimmBackbone)(
    model_name="convnext_tiny",  # or any other of timm
    out_indices=[1, 2, 3],
    drop_path_rate=0.1,
)
model.neck.input_shapes = model.neck.in_features = None  # as the backbone has them
