"""What happens before anything is built: checks of the run, the log, the seed, config.yaml.

`check_run` writes nothing, so the parent process can call it once before it spawns others.
"""

import argparse
import logging
import os
import platform
import secrets
from pathlib import Path

import torch
from detectron2 import __version__ as d2_version
from detectron2.config import instantiate
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from aligndetr.checkpoint import local_checkpoint
from aligndetr.config import (
    CONFIG_FILE,
    check_arguments,
    check_known_keys,
    save_config,
    saved_value,
)
from aligndetr.data import check_num_classes, check_same_classes, class_names
from aligndetr.layers import set_default_backend

from .checks import (
    add_later_keys,
    check_batch_size,
    check_device,
    check_output_dir,
    check_parts,
    check_train_keys,
    has_checkpoints,
    remove_rehearsal,
)
from .determinism import make_deterministic
from .launch import check_machines
from .length import set_length
from .place import has_own_gpu
from .torchrun_command import is_started_anew, note_command
from .trackers import check_trackers

logger = logging.getLogger(__name__)

COCO_NUM_CLASSES = 80
"""`model.num_classes` of the shipped configs: a default that own data may replace."""

FAST_DEV_RUN = {"max_iter": 20, "eval_period": 10, "log_period": 1}
FAST_DEV_RUN_IMAGES = 4


def setup(cfg: DictConfig, args: argparse.Namespace) -> None:
    """Check the run, complete its config, start the log, seed, and save the config.

    Every process calls it once, before anything is built. With `--eval-only` nothing is saved:
    config.yaml belongs to the training.

    Args:
        cfg: completed in place, see `complete_config`.
        args: of detectron2's `default_argument_parser`.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: see `check_run`.
    """
    length_is_open = cfg.train.max_iter is None or cfg.train.get("max_epochs") is not None
    check_run(cfg, args)
    output_dir = cfg.train.output_dir
    goes_on = not args.eval_only and is_started_anew(output_dir, args)
    comm.synchronize()  # all have seen the folder as it was before the first writes to it
    rank = comm.get_rank()
    for name in ("fvcore", "detectron2", "aligndetr", "projects"):
        setup_logger(output_dir, distributed_rank=rank, name=name)
    logger.info("Rank %d of %d processes", rank, comm.get_world_size())
    logger.info("%s", describe_environment(cfg.train.device))
    logger.info("Command line: %s", args)
    results_dir = OmegaConf.select(cfg, "dataloader.evaluator.output_dir")
    if results_dir and os.path.abspath(results_dir) != os.path.abspath(output_dir):
        logger.warning(
            "Results of evaluations go to `dataloader.evaluator.output_dir` (=%r), all else to "
            "`train.output_dir` (=%r); '${train.output_dir}' there keeps them together",
            results_dir, output_dir,
        )  # fmt: skip
    if goes_on:
        logger.info("torchrun has started this run before, so it resumes")
    if length_is_open and not args.eval_only:
        logger.info("`train.max_iter` follows the data: %d iterations", cfg.train.max_iter)
    settle_seed(cfg, resume=args.resume)
    if comm.is_main_process() and not args.eval_only:
        remove_rehearsal(output_dir)
        note_command(output_dir, args)
        path = Path(output_dir) / CONFIG_FILE
        save_config(cfg, str(path))
        logger.info("The full config is in %s", path)
    attention = cfg.train.get("ms_deform_attn", "auto")
    if cfg.train.deterministic:
        attention = make_deterministic(cfg.train.device, attention)
    set_default_backend(attention, cfg.train.device)
    seed_all_rng(rank_seed(cfg))


def describe_environment(device: str) -> str:
    """One line; `python -m detectron2.utils.collect_env` tells more."""
    if torch.device(device).type == "cuda":
        where = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    else:
        where = f"{torch.get_num_threads()} threads per process on {device}"
    python = platform.python_version()
    return f"Python {python}, torch {torch.__version__}, detectron2 {d2_version}; {where}"


def settle_seed(cfg: DictConfig, resume: bool = False) -> None:
    """Where `train.seed` is -1, put the seed of the run there, the same on all ranks.

    So it is in the log, in config.yaml and in the checkpoints. A resumed run keeps the one that
    its config.yaml has.
    """
    if cfg.train.seed >= 0:
        logger.info("Seed %d", cfg.train.seed)
        return
    earlier = Path(cfg.train.output_dir) / CONFIG_FILE
    seed = None
    if resume and comm.is_main_process() and earlier.exists():
        seed = saved_value(earlier, "train.seed")
    if type(seed) is not int or seed < 0:
        seed = secrets.randbelow(2**31)
    cfg.train.seed = comm.all_gather(seed)[0]
    logger.info("Seed %d, drawn; train.seed=%d repeats the run", cfg.train.seed, cfg.train.seed)


def rank_seed(cfg: DictConfig, start_iter: int = 0) -> int | None:
    """Seed of this process's random generators: another one on each rank and at each start.

    (A resumed run goes on with the generators of its checkpoint where it can.) None, where
    `train.seed` is negative, lets `seed_all_rng` draw one.
    """
    if cfg.train.seed < 0:
        return None
    return cfg.train.seed + comm.get_rank() + start_iter * comm.get_world_size()


def check_run(cfg: DictConfig, args: argparse.Namespace) -> None:
    """Complete the config and refuse, in one clear sentence, what cannot work.

    Args:
        cfg: completed in place, see `complete_config`.
        args: of detectron2's `default_argument_parser`; `resume` is set in place where torchrun
            has started this run before.

    Raises:
        ValueError: a part of the config is missing, a key is unknown, an argument is missing or
            not taken, a key of `train` out of its range or without effect yet, device, number of
            processes or machines, batch size, data set or number of classes. (CheckpointError and
            DatasetError are ValueErrors.)
        FileNotFoundError: `train.init_checkpoint` does not exist.
        FileExistsError: training would mix with what `train.output_dir` holds.
    """
    check_parts(cfg, training=not args.eval_only)
    check_known_keys(cfg)
    check_arguments(cfg, "model")
    parts = ["dataloader.test", "dataloader.evaluator"]
    if not args.eval_only:
        parts += ["dataloader.train", "optimizer", "lr_multiplier"]
    for part in parts:
        check_arguments(cfg, part, complete=False)  # the engine adds some when it builds
    add_later_keys(cfg)
    check_train_keys(cfg)
    check_trackers(cfg.train)
    complete_config(cfg, args)
    check_device(cfg.train.device, 1 if has_own_gpu() else args.num_gpus)
    check_machines(args.num_machines, args.machine_rank, args.dist_url)
    if not args.eval_only:
        check_batch_size(cfg.dataloader.train.total_batch_size, args.num_gpus * args.num_machines)
        set_length(cfg, args.opts)
        args.resume = args.resume or is_started_anew(cfg.train.output_dir, args)
        rehearsal = cfg.train.fast_dev_run.enabled
        check_output_dir(cfg.train.output_dir, args.resume, rehearsal)
    elif not cfg.train.init_checkpoint:
        raise ValueError(
            "--eval-only needs trained weights, but `train.init_checkpoint` is empty; give "
            "train.init_checkpoint=path/to/model_final.pth"
        )
    resumed = args.resume and not args.eval_only and has_checkpoints(cfg.train.output_dir)
    if cfg.train.init_checkpoint and not resumed:
        local_checkpoint(cfg.train.init_checkpoint)


def complete_config(cfg: DictConfig, args: argparse.Namespace) -> None:
    """Set what follows from other values: the fast_dev_run, and the number of classes.

    `model.num_classes` follows the data unless the user chose it, by an override or by a config
    with another number than COCO's 80; then it must be the data's.
    """
    if cfg.train.fast_dev_run.enabled:
        cfg.train.update(FAST_DEV_RUN)
        if OmegaConf.select(cfg, "train.checkpointer.period", default=0) is None:
            cfg.train.checkpointer.period = FAST_DEV_RUN["max_iter"]  # one file, at the end
        warmup = OmegaConf.select(cfg, "lr_multiplier.warmup_iters")
        if warmup is not None:
            cfg.lr_multiplier.warmup_iters = min(warmup, FAST_DEV_RUN["max_iter"] // 2)
    names = dataset_class_names(cfg, train=not args.eval_only)
    if not names or "num_classes" not in cfg.model:
        return
    is_default = cfg.model.num_classes == COCO_NUM_CLASSES
    if not is_default or any(_sets_num_classes(option) for option in args.opts):
        check_num_classes(cfg.model.num_classes, names)
    else:
        cfg.model.num_classes = len(names)


def _sets_num_classes(override: str) -> bool:
    """Whether a key=value, which the config has taken, is the user's choice of the classes."""
    if override.startswith("model="):
        value = OverridesParser.create().parse_override(override).value()
        return isinstance(value, dict) and "num_classes" in value
    return override.startswith("model.num_classes=")


def dataset_class_names(cfg: DictConfig, train: bool = True) -> list[str]:
    """Class names of the data in label order; [] for loaders that name no data set.

    Args:
        train: ask the train data too (evaluation must not need it), and compare.
    """
    found = []
    for loader in ("train", "test") if train else ("test",):
        names = OmegaConf.select(cfg, f"dataloader.{loader}.dataset.names")
        names = instantiate(names) if names is not None else []
        found += [class_names(n) for n in ([names] if isinstance(names, str) else names)]
    for other in found[1:]:
        check_same_classes(found[0], other)
    return found[0] if found else []
