"""Which settings of a run cannot work: each is refused in one clear sentence, by its key."""

import logging
import math
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from aligndetr.config import CONFIG_FILE, saved_value
from aligndetr.layers import check_backend_name

from .gradients import check_clip_arguments
from .length import FROM_DATA
from .precision import check_amp_dtype

logger = logging.getLogger(__name__)

# Keys of `train` that are whole numbers: the least, and what it means where that is not plain.
WHOLE_NUMBERS = {
    "max_iter": (1, ""),
    "log_period": (1, ""),
    "eval_period": (0, ", where 0 evaluates at the end only"),
    "checkpointer.period": (0, ", where 0 saves at the end only"),
    "checkpointer.max_to_keep": (1, ""),
    "grad_accum_steps": (1, ""),
    "max_bad_steps": (1, ", where 1 ends the run at the first"),
    "seed": (-1, ", where -1 draws a seed"),
}
TEXTS = ("output_dir", "device")
YES_OR_NO = ("deterministic", "auto_scale_lr", "report")
# For configs that were saved before there were these keys.
LATER_KEYS = {
    "amp.dtype": "bfloat16",
    "grad_accum_steps": 1,
    "max_bad_steps": 10,
    "deterministic": False,
    "checkpointer.best_metric": "bbox/AP",
    "max_corrupt_share": 0.05,
    "max_epochs": None,
    "auto_scale_lr": False,
    "hooks": [],
    "report": True,
}

_MISSING = object()


def check_parts(cfg: DictConfig, training: bool) -> None:
    """Raise a ValueError unless the config has the parts that a run is made of."""
    parts = ["train", "model", "dataloader.test", "dataloader.evaluator"]
    if training:
        parts += ["dataloader.train", "optimizer", "lr_multiplier"]
    if "dataloader" in cfg and "${dataset." in str(OmegaConf.to_container(cfg.dataloader)):
        parts.append("dataset")
    missing = [part for part in parts if OmegaConf.select(cfg, part) is None]
    if missing:
        raise ValueError(
            f"the config has no {' and no '.join(f'`{part}`' for part in missing)}, or it is null; "
            f"a config file must define or import each of {', '.join(parts)}"
        )


def add_later_keys(cfg: DictConfig) -> None:
    """Give the keys of `train` that an older config lacks their defaults."""
    for key, value in LATER_KEYS.items():
        if OmegaConf.select(cfg.train, key, default=_MISSING) is _MISSING:
            OmegaConf.update(cfg.train, key, value, force_add=True)


def check_train_keys(cfg: DictConfig) -> None:
    """Raise a ValueError unless the numbers and names of `cfg.train` are in their ranges."""
    for key, (least, meaning) in WHOLE_NUMBERS.items():
        value = OmegaConf.select(cfg.train, key)
        # Null: keeps all checkpoints, or follows the data.
        if value is None and key in ("checkpointer.max_to_keep", *FROM_DATA):
            continue
        if type(value) is not int or value < least:
            raise ValueError(
                f"`train.{key}` (={value!r}) must be a whole number of at least {least}{meaning}"
            )
    for key in TEXTS:
        if not cfg.train[key] or not isinstance(cfg.train[key], str):
            raise ValueError(f"`train.{key}` (={cfg.train[key]!r}) must be a text and not empty")
    epochs = cfg.train.max_epochs
    if epochs is not None and (type(epochs) not in (int, float) or not 0 < epochs < math.inf):
        raise ValueError(
            f"`train.max_epochs` (={epochs!r}) must be a number greater than 0, or null, where "
            "`train.max_iter` counts"
        )
    share = cfg.train.max_corrupt_share
    if type(share) not in (int, float) or not 0 <= share <= 1:
        raise ValueError(
            f"`train.max_corrupt_share` (={share!r}) must be a number in [0, 1], a share of the "
            "training images"
        )
    check_amp_dtype(cfg.train.amp.dtype)
    if cfg.train.clip_grad.enabled:
        check_clip_arguments(cfg.train.clip_grad.params)
    for key in YES_OR_NO:
        if not isinstance(cfg.train[key], bool):
            raise ValueError(f"`train.{key}` (={cfg.train[key]!r}) must be True or False")
    best = cfg.train.checkpointer.best_metric
    if best is not None and (not isinstance(best, str) or "/" not in best):
        raise ValueError(
            f"`train.checkpointer.best_metric` (={best!r}) must be task/metric, such as 'bbox/AP', "
            "or null, which keeps no model_best.pth"
        )
    check_backend_name(cfg.train.get("ms_deform_attn", "auto"))


def check_device(device: str, num_processes: int) -> None:
    """Raise a ValueError unless this machine has the device, once for each process."""
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"`train.device` (={device!r}) is not a device: {error}") from error
    if num_processes < 1:
        raise ValueError(f"--num-gpus (={num_processes}) must be at least 1")
    if wanted.type != "cuda":
        return
    if not torch.cuda.is_available():
        raise ValueError(
            f"`train.device` is {device!r}, but this machine has no GPU that torch can use; "
            "set train.device=cpu"
        )
    if num_processes > torch.cuda.device_count():
        raise ValueError(
            f"--num-gpus (={num_processes}) is more than the {torch.cuda.device_count()} GPUs of "
            "this machine"
        )
    if num_processes > 1 and wanted.index is not None:
        raise ValueError(
            f"`train.device` (={device!r}) names one GPU, but --num-gpus is {num_processes}; "
            "set train.device=cuda"
        )


def check_batch_size(batch_size: int, world_size: int) -> None:
    """Raise a ValueError unless every process gets the same number of images, at least one."""
    if type(batch_size) is not int:
        raise ValueError(
            f"`dataloader.train.total_batch_size` (={batch_size!r}) must be a whole number"
        )
    if batch_size < 1 or batch_size % world_size:
        below = batch_size // world_size * world_size
        nearest = sorted({max(n, world_size) for n in (below, below + world_size)})
        raise ValueError(
            f"`dataloader.train.total_batch_size` (={batch_size}) must be divisible by the "
            f"number of processes ({world_size}); the nearest valid: "
            f"{' or '.join(map(str, nearest))}"
        )


def check_output_dir(output_dir: str, resume: bool, fast_dev_run: bool = False) -> None:
    """Raise a FileExistsError if a training would overwrite checkpoints of an earlier one.

    A fast_dev_run is refused with --resume too: the next start would take the checkpoints for
    its own and delete them.
    """
    if not has_checkpoints(output_dir):
        return
    if fast_dev_run:
        raise FileExistsError(
            f"`train.output_dir` (={output_dir!r}) holds checkpoints of a training; choose another "
            "train.output_dir for a fast_dev_run"
        )
    if not resume:
        raise FileExistsError(
            f"`train.output_dir` (={output_dir!r}) holds checkpoints of an earlier training; add "
            "--resume to go on with it, or choose another train.output_dir"
        )


def has_checkpoints(output_dir: str) -> bool:
    """True if a training has saved something in this folder; a fast_dev_run is none."""
    return bool(_checkpoints(output_dir)) and not _is_rehearsal(output_dir)


def remove_rehearsal(output_dir: str) -> None:
    """Delete the checkpoints of a fast_dev_run, whose folder is free for the training itself."""
    found = _checkpoints(output_dir) if _is_rehearsal(output_dir) else []
    if found:
        logger.info("Deleting the %d checkpoints of the fast_dev_run in %s", len(found), output_dir)
    for path in found:
        path.unlink(missing_ok=True)


def _checkpoints(output_dir: str) -> list[Path]:
    folder = Path(output_dir)
    found = [path for suffix in ("pth", "safetensors") for path in folder.glob(f"model_*.{suffix}")]
    return found + [path for path in [folder / "last_checkpoint"] if path.exists()]


def _is_rehearsal(output_dir: str) -> bool:
    """Whether the last run in this folder was a fast_dev_run."""
    config_file = Path(output_dir) / CONFIG_FILE
    if not config_file.is_file():
        return False
    try:
        return saved_value(config_file, "train.fast_dev_run.enabled") is True
    except ValueError:  # whoever wrote it, it is no fast_dev_run's
        return False
