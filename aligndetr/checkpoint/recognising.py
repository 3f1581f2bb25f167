"""Whose names a state dict has, and what they are here."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from .converted import Converted
from .mmdet_names import from_mmdet, is_mmdet
from .resnet_names import (
    from_caffe2,
    from_detectron2_backbone,
    from_torchvision,
    is_caffe2,
    is_detectron2_backbone,
    is_torchvision,
)


def with_our_names(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint of another codebase as one of ours; any other as it is.

    Args:
        checkpoint: "model" and what stood beside it in the file.

    Returns:
        The weights under our names, and for other codebases' files all fields of `Converted`, with
        "class_names" where the file tells them. (detrex and the published AlignDETR have the names
        that we have.)
    """
    state = without_ddp_prefix(checkpoint["model"])
    converted = _convert(state, checkpoint)
    if converted is None:
        return {**checkpoint, "model": state}
    names = _class_names(checkpoint)
    return asdict(converted) | ({} if names is None else {"class_names": names})


def without_ddp_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without the `module.` that DistributedDataParallel puts before all of them."""
    if all(name.startswith("module.") for name in state):
        return {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return dict(state)


def _convert(state: Mapping[str, Tensor], checkpoint: Mapping[str, Any]) -> Converted | None:
    names = set(state)
    if is_mmdet(names):
        config = _dict(checkpoint, "meta").get("cfg")
        return from_mmdet(state, config if isinstance(config, str) else None)
    if is_torchvision(names):
        return from_torchvision(state)
    if is_detectron2_backbone(names):
        return from_detectron2_backbone(state, str(checkpoint.get("__author__")))
    if is_caffe2(names):
        return from_caffe2(state)
    return None


def _class_names(checkpoint: Mapping[str, Any]) -> list[str] | None:
    """Of mmengine's files, where they are called "classes", once "CLASSES"."""
    meta = _dict(checkpoint, "meta")
    data = _dict(meta, "dataset_meta")
    names = data.get("classes") or data.get("CLASSES") or meta.get("CLASSES")
    if isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names):
        return list(names)
    return None


def _dict(mapping: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = mapping.get(key)
    return value if isinstance(value, dict) else {}
