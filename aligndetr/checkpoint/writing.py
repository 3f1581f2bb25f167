"""Weights for sharing, and for the codebases that others evaluate with."""

import os
from collections.abc import Mapping
from typing import Any

import torch

from aligndetr.utils.files import atomic_path

from .aliases import with_aliases
from .mmdet_names import to_mmdet
from .safetensors_files import write_safetensors

FORMATS = ("safetensors", "detrex", "mmdet")


def write_weights(path: str | os.PathLike, checkpoint: Mapping[str, Any], to: str) -> None:
    """Write a checkpoint's weights, without the state of a training.

    Args:
        path: appears when it is whole.
        checkpoint: as `read_checkpoint` returns it.
        to: "safetensors", which holds config, class names and preprocessing too; "detrex", a torch
            file with the names of detrex and of the published AlignDETR; "mmdet", a torch file for
            mmdetection's projects/AlignDETR.

    Raises:
        ValueError: an unknown format, or a tensor that mmdetection's model does not have.
    """
    if to == "safetensors":
        write_safetensors(path, checkpoint)
    elif to == "detrex":
        content = {key: checkpoint[key] for key in ("config", "class_names") if key in checkpoint}
        _save(path, {"model": with_aliases(checkpoint["model"]), **content})
    elif to == "mmdet":
        names = checkpoint.get("class_names")
        meta = {"dataset_meta": {"classes": tuple(names)}} if names else {}
        state = to_mmdet(checkpoint["model"], set(checkpoint.get("filled", ())))
        _save(path, {"meta": meta, "state_dict": state})
    else:
        raise ValueError(f"unknown format {to!r}; choose one of {', '.join(FORMATS)}")


def _save(path: str | os.PathLike, content: dict[str, Any]) -> None:
    with atomic_path(path) as temporary:
        torch.save(content, temporary)
