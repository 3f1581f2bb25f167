"""AlignDETR R-50 on your own data: 5,000 iterations in the shape of 12 epochs. No published figure.

python tools/train_net.py --num-gpus 1 --config-file projects/aligndetr/configs/finetune.py \
    dataset.train_json=... dataset.train_images=... dataset.val_json=... dataset.val_images=... \
    train.init_checkpoint=aligndetr_trained_on_coco.pth

Without `train.init_checkpoint` only the backbone is pre-trained. Set `train.max_iter` to iterations
per epoch (images / `dataloader.train.total_batch_size`) times epochs; the schedule follows it.
"""

from aligndetr.config import coco_schedule

from .base import dataloader, dataset, model, optimizer, train  # noqa: F401

_, lr_multiplier = coco_schedule(epochs=12, decay_epoch=11)
train.max_iter = 5000
train.eval_period = train.checkpointer.period = 500
train.log_period = 20
train.output_dir = "./output/finetune"
