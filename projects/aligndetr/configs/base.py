"""What all AlignDETR R-50 experiments share: data, optimizer, run and model.

COCO 2017 is expected under $DETECTRON2_DATASETS. Your own data needs overrides only:
    dataset.train_json=... dataset.train_images=... dataset.val_json=... dataset.val_images=...
(or dataset.root=... for a folder in COCO's, Roboflow's or YOLO's layout); `model.num_classes`
follows the data.
"""

from aligndetr.config import get_config

from .models.aligndetr_r50 import model

_data = get_config("common/data/coco.py")
dataset, dataloader = _data.dataset, _data.dataloader
optimizer = get_config("common/optim.py").optimizer
train = get_config("common/train.py").train

train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
train.clip_grad.enabled = True
train.checkpointer.period = 10000
train.log_period = 100

model.device = "${train.device}"
