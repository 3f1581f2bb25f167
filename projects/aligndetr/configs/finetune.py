"""AlignDETR R-50 on your own data, in the shape of 12 epochs on COCO. No published figure.

python tools/train_net.py --num-gpus 1 --config-file projects/aligndetr/configs/finetune.py \
    dataset.root=... train.init_checkpoint=aligndetr_trained_on_coco.pth

`dataset.root` is a folder in COCO's, Roboflow's or YOLO's layout (docs/own_data.md). Without
`train.init_checkpoint` only the backbone is pre-trained. The length follows the number of images:
5,000 iterations, but 12 epochs at least, and no more than 100 epochs or 500 iterations. Setting
`train.max_iter` overrides it; the schedule follows.
"""

from aligndetr.config import coco_schedule

from .base import dataloader, dataset, model, optimizer, train  # noqa: F401

_, lr_multiplier = coco_schedule(epochs=12, decay_epoch=11)
train.max_iter = train.eval_period = train.checkpointer.period = None  # from the data
train.log_period = 20
train.output_dir = "./output/finetune"
