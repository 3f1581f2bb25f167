"""A checkpoint as a training leaves it: the demo config, for images of up to 128 pixels."""

from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import nn

from aligndetr.checkpoint import Checkpointer
from aligndetr.config import apply_overrides, config_to_yaml, load_config
from aligndetr.engine import build_model

CONFIG = str(Path(__file__).parents[2] / "projects/aligndetr/configs/aligndetr_demo.py")
NAMES = ["cat", "bus", "cup"]
SMALL_IMAGES = [
    "train.device=cpu",
    "train.ms_deform_attn=reference",
    "dataset.test_short_edge=96",
    "dataset.max_size=128",
    "model.num_classes=3",
]


def small_model(options: list[str]) -> tuple[nn.Module, DictConfig]:
    """Random weights whose scores, and whose boxes from layer to layer, differ; and its config."""
    cfg = apply_overrides(load_config(CONFIG), options)
    torch.manual_seed(0)
    model = build_model(cfg)
    for class_head, box_head in zip(model.class_embed, model.bbox_embed, strict=True):
        nn.init.normal_(class_head.weight, std=0.4)
        nn.init.normal_(box_head.layers[-1].weight, std=0.3)
    return model, cfg


def save_trained(model: nn.Module, cfg: DictConfig, folder: Path, **checkpointables) -> Path:
    """model_final.pth with config and names."""
    extra = {"config": config_to_yaml(cfg), "class_names": NAMES}
    Checkpointer(model, str(folder), extra=extra, **checkpointables).save("model_final")
    return folder / "model_final.pth"
