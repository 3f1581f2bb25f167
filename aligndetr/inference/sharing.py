"""Trained weights for other people and other codebases: files, and the Hugging Face Hub."""

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from detectron2.config import instantiate
from omegaconf import DictConfig, OmegaConf

from aligndetr.checkpoint import (
    as_overrides,
    cfg_options,
    load_weights,
    local_checkpoint,
    other_sizes,
    read_checkpoint,
    upload_to_hub,
    write_weights,
)
from aligndetr.config import apply_overrides, config_from_yaml, config_to_yaml
from aligndetr.utils.files import atomic_path

from .model_card import model_card
from .preprocessing import preprocessing
from .restoring import (
    Config,
    as_config,
    averaged_weights,
    check_classes,
    choose_names,
    config_or_none,
)

MMDET_CONFIG = "projects/AlignDETR/configs/align_detr-4scale_r50_8xb2-12e_coco.py"

PRIVATE_KEYS = ("train.init_checkpoint", "train.output_dir", "train.wandb.params",
                "train.mlflow.params", "dataset.root", "dataset.train_json",
                "dataset.train_images", "dataset.val_json", "dataset.val_images")  # fmt: skip
"""Paths and accounts of the machine that trained, which are nobody's business."""


def convert_checkpoint(
    source: str,
    output: str | os.PathLike,
    to: str = "safetensors",
    config: Config | None = None,
    *,
    ema: bool = False,
    overrides: Iterable[str] = (),
) -> list[str]:
    """Write weights of any known kind in another format.

    Args:
        source: as of `Predictor.from_checkpoint`.
        output: must not be there yet.
        to: see `aligndetr.checkpoint.write_weights`.
        config: of the model; default: the one in the checkpoint, else config.yaml beside it. With
            one, the model is built and must take every tensor; without one, names alone change.
        ema: take the averaged weights.
        overrides: `key=value` for the config.

    Returns:
        Lines that say what was read, and what whoever uses the file must know.

    Raises:
        FileExistsError: `output` is there.
        CheckpointError, ValueError: as of `Predictor.from_checkpoint`; or the format has no place
            for a tensor.
    """
    if os.path.exists(output):
        raise FileExistsError(f"{os.fspath(output)!r} is there already; name another file")
    checkpoint = prepare_weights(source, config, ema=ema, overrides=overrides)
    write_weights(output, checkpoint, to)
    return _notes(checkpoint, to)


def prepare_weights(
    source: str, config: Config | None = None, *, ema: bool = False, overrides: Iterable[str] = ()
) -> dict[str, Any]:
    """Weights under our names with "config", "class_names" and "preprocessing" as far as they are
    known; arguments and errors as of `convert_checkpoint`."""
    checkpoint = read_checkpoint(local_checkpoint(source))
    cfg = as_config(config) if config is not None else config_or_none(checkpoint, source)
    weights = averaged_weights(checkpoint, source) if ema else checkpoint
    kept = ("source", "settings", "training", "filled", "class_names")
    result = {"model": weights["model"]} | {k: checkpoint[k] for k in kept if k in checkpoint}
    if cfg is None:
        return result
    cfg = apply_overrides(cfg, overrides)
    on_cpu = cfg.copy()
    on_cpu.train.device = "cpu"
    model = instantiate(on_cpu.model)
    check_classes(model, result["model"], source)
    load_weights(model, result, source, strict=True)
    result["class_names"] = choose_names(cfg, checkpoint.get("class_names"))
    return result | {"config": config_to_yaml(cfg), "preprocessing": preprocessing(cfg)}


def save_pretrained(
    source: str,
    folder: str | os.PathLike,
    config: Config | None = None,
    *,
    ema: bool = False,
    overrides: Iterable[str] = (),
) -> None:
    """Write model.safetensors, config.yaml and a model card to a folder, which
    `Predictor.from_pretrained` reads.

    Paths and accounts of this machine are left out of the config.

    Args, Raises:
        As of `convert_checkpoint`; a config must be found.
    """
    folder = Path(folder)
    path = folder / "model.safetensors"
    if path.exists():
        raise FileExistsError(f"{str(path)!r} is there already; name another folder")
    checkpoint = prepare_weights(source, config, ema=ema, overrides=overrides)
    if "config" not in checkpoint:
        raise ValueError(f"{source!r} holds no config, which others need; name it by `config`")
    cfg = _without_private(config_from_yaml(checkpoint["config"], source=source))
    checkpoint["config"] = config_to_yaml(cfg)
    write_weights(path, checkpoint, "safetensors")
    texts = {"config.yaml": checkpoint["config"], "README.md": model_card(checkpoint)}
    for name, text in texts.items():
        with atomic_path(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def push_to_hub(
    source: str,
    repo: str,
    config: Config | None = None,
    *,
    ema: bool = False,
    overrides: Iterable[str] = (),
    private: bool = False,
) -> str:
    """Put a trained detector on the Hugging Face Hub, from where
    `Predictor.from_pretrained(repo)` takes it.

    Args:
        repo: `user/model`; made if it is not there. A model that is there gets a new version.
        private: for a new one.

    Returns:
        The address of its page.

    Raises:
        MissingExtraError: huggingface_hub is not installed.
        OSError: the Hub refuses. Others as of `save_pretrained`.
    """
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(source, folder, config, ema=ema, overrides=overrides)
        return upload_to_hub(folder, repo, private=private)


def _without_private(cfg: DictConfig) -> DictConfig:
    cfg = cfg.copy()
    for key in PRIVATE_KEYS:
        value = OmegaConf.select(cfg, key)
        if value is not None:
            empty = {} if OmegaConf.is_config(value) else ""
            OmegaConf.update(cfg, key, None if key.startswith("dataset.") else empty, merge=False)
    return cfg


def _notes(checkpoint: dict[str, Any], to: str) -> list[str]:
    notes = [f"{len(checkpoint['model'])} tensors of {checkpoint.get('source', 'our kind')}"]
    if "config" not in checkpoint and checkpoint.get("settings"):
        notes.append(f"a config for them needs {' '.join(as_overrides(checkpoint['settings']))}")
    if checkpoint.get("training"):
        notes.append(f"they were trained with {' '.join(as_overrides(checkpoint['training']))}")
    if to == "mmdet" and "config" in checkpoint:
        notes += _notes_for_mmdet(config_from_yaml(checkpoint["config"], source="the config"))
    return notes


def _notes_for_mmdet(cfg: DictConfig) -> list[str]:
    model: Any = OmegaConf.to_container(cfg.model, resolve=False)
    options, sizes = cfg_options(model), other_sizes(model)
    words = [MMDET_CONFIG, *(["--cfg-options", *options] if options else [])]
    notes = [f"in mmdetection: {' '.join(words)}"]
    if sizes:
        notes.append(f"that config must also be changed to the sizes {' '.join(sizes)}")
    return notes
