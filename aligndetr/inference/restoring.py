"""What a checkpoint needs besides weights to become a detector: config, names, device."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.data import MetadataCatalog
from omegaconf import DictConfig, OmegaConf
from torch import nn

from aligndetr.checkpoint import CheckpointError
from aligndetr.config import CONFIG_FILE, config_from_yaml, load_config

logger = logging.getLogger(__name__)

Config = str | os.PathLike | DictConfig


def as_config(config: Config) -> DictConfig:
    """A copy of a config, or the one in a file."""
    return config.copy() if isinstance(config, DictConfig) else load_config(config)


def find_config(checkpoint: dict, path: str) -> DictConfig:
    """The config in a checkpoint, else the one beside it."""
    cfg = config_or_none(checkpoint, path)
    if cfg is None:
        raise CheckpointError(
            f"checkpoint {path!r} holds no config, and there is no config.yaml beside it; name the "
            "config that the model was trained with: from_checkpoint(path, config=…)"
        )
    return cfg


def config_or_none(checkpoint: dict, path: str) -> DictConfig | None:
    """As `find_config`; None if there is none."""
    if isinstance(checkpoint.get("config"), str):
        return config_from_yaml(checkpoint["config"], source=f"the config in {path}")
    beside = Path(path).expanduser().parent / CONFIG_FILE
    return load_config(beside) if beside.is_file() else None


def averaged_weights(checkpoint: dict, path: str) -> dict:
    """As `read_checkpoint` returns it, with the averaged weights for "model"."""
    if "ema_state" not in checkpoint:
        raise CheckpointError(
            f"checkpoint {path!r} holds no averaged weights ('ema_state'); set ema=False"
        )
    return {"model": checkpoint["ema_state"]}


def choose_device(device: str | torch.device | None) -> torch.device:
    """The GPU if there is one, else the CPU; or what is given, if this machine has it."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"`device` (={device!r}) is not a device: {error}") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"`device` is {device!r}, but this machine has no GPU that torch can use; "
            'set device="cpu"'
        )
    return chosen


def choose_names(cfg: DictConfig, names: Sequence[str] | None) -> list[str]:
    """Class names of the model: those given, else COCO's where it can be a COCO model, else
    numbered ones. A ValueError if they are not as many as its classes."""
    num_classes = OmegaConf.select(cfg, "model.num_classes")
    if names is None:
        coco = MetadataCatalog.get("coco_2017_val").thing_classes
        own_data = any(OmegaConf.select(cfg, f"dataset.{key}") for key in ("root", "val_json"))
        if num_classes == len(coco) and not own_data:
            return list(coco)
        names = [f"class_{number}" for number in range(num_classes or 0)]
        logger.warning("No class names are known; give `class_names`, or read class_0, class_1, …")
    names = list(names)
    if num_classes is not None and len(names) != num_classes:
        raise ValueError(
            f"there are {len(names)} class names, but the model has {num_classes} classes; give "
            f"the {num_classes} names that it was trained on, in their order, by `class_names`"
        )
    return names


def check_classes(model: nn.Module, weights: dict[str, torch.Tensor], path: str) -> None:
    """Raise if the weights differ from the model in their number of classes and nothing else."""
    ours = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    differ = [name for name in ours if ours[name] != theirs.get(name, ours[name])]
    lengths = {(theirs[name][:1], ours[name][:1]) for name in differ}
    same_otherwise = all(ours[name][1:] == theirs[name][1:] for name in differ)
    if len(lengths) == 1 and same_otherwise:
        ((found,), (expected,)) = lengths.pop()
        if expected == getattr(model, "num_classes", None):
            raise CheckpointError(
                f"checkpoint {path!r} was trained on {found} classes, but the config says "
                f"{expected}; add overrides=['model.num_classes={found}'], or give the config of "
                "its training"
            )
