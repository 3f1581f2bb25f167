"""Training and testing a config from beginning to end."""

import argparse
import copy
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from detectron2.config import instantiate
from detectron2.engine import HookBase
from detectron2.engine import hooks as d2_hooks
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig, OmegaConf
from torch import nn

from aligndetr.checkpoint import Checkpointer, CheckpointError
from aligndetr.config import config_to_yaml
from aligndetr.evaluation import evaluate
from aligndetr.inference import preprocessing

from .build import (
    build_evaluation,
    build_hooks,
    build_model,
    build_model_ema,
    build_optimizer,
    create_ddp_model,
    without_ddp,
)
from .checks import has_checkpoints
from .ema import ModelEMA
from .evaluating import EvalHook
from .hooks import EMAUpdater
from .length import images_per_step
from .metrics_file import METRICS_FILE, cut_at
from .misfits import naming_the_part
from .reporting import reporting_hooks
from .run_state import RUN_KEY, restore_run_state
from .run_table import run_table
from .saving import SaveHook
from .setup import check_run, dataset_class_names, rank_seed
from .signals import StopSignals
from .trainer import Trainer

logger = logging.getLogger(__name__)

EMA_KEY = "ema_state"
"""Where a checkpoint holds the averaged weights."""

Results = dict[str, dict[str, float]]


def do_train(cfg: DictConfig, resume: bool = False) -> nn.Module:
    """Train `cfg.model`, evaluating and saving on the way and at the end.

    `cfg.train.output_dir` gets checkpoints, metrics.json, TensorBoard events and curves.png.

    Args:
        cfg: as `setup` leaves it.
        resume: go on from the last checkpoint in `output_dir` as if there had been no
            interruption; if there is none, start from `cfg.train.init_checkpoint`.

    Returns:
        The trained model, without DDP.

    Raises:
        TrainingStopped: a SystemExit, after SIGTERM, SIGINT or SIGUSR1; a checkpoint is saved.
    """
    model, trainer, ema, checkpointer = _build(cfg)
    resume = resume and has_checkpoints(cfg.train.output_dir)
    signals = StopSignals()
    trainer.register_hooks(_hooks(cfg, model, ema, checkpointer, resume, signals))
    start_iter, rest = _load(cfg, checkpointer, trainer, resume)
    seed_all_rng(rank_seed(cfg, start_iter))
    trainer.data_loader = instantiate(cfg.dataloader.train)
    if resume:
        restore_run_state(rest.get(RUN_KEY), trainer.data_loader, trainer.device)
        if comm.is_main_process():
            cut_at(Path(cfg.train.output_dir) / METRICS_FILE, start_iter)
    if start_iter >= cfg.train.max_iter:
        logger.info("Nothing to train: all %d iterations are done", cfg.train.max_iter)
        _finish(trainer, cfg.train.max_iter)
        return model
    if comm.is_main_process():
        logger.info("\n%s", run_table(cfg, model, trainer.data_loader))
    with signals:
        trainer.train(start_iter, cfg.train.max_iter)
    logger.info("Checkpoints, config.yaml, metrics.json and log.txt: %s", cfg.train.output_dir)
    return model


def rehearse(cfg: DictConfig, args: argparse.Namespace) -> None:
    """`check_run`, then build on the CPU what the run will build, and load its checkpoint.

    Called once, before processes start and anything is written: what the user can mend is found
    where it can be shown as one line. (A ResNet-50 takes half a second.) All is let go again.

    Args:
        cfg: completed in place, as by `check_run`.
        args: of detectron2's `default_argument_parser`.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: see `check_run`; a part refuses its
            arguments, or the checkpoint cannot be read or does not fit.
    """
    with naming_the_part():
        check_run(cfg, args)
        on_cpu = copy.deepcopy(cfg)
        on_cpu.train.device, on_cpu.train.model_ema.device = "cpu", ""
    logging.disable()  # the run itself will say it
    try:
        for loader in ("test",) if args.eval_only else ("train", "test"):
            mapper = f"dataloader.{loader}.mapper"
            with naming_the_part(mapper):
                instantiate(OmegaConf.select(on_cpu, mapper))
        if args.eval_only:
            with naming_the_part():
                load_trained(on_cpu)
            return
        with naming_the_part("lr_multiplier"):
            instantiate(on_cpu.lr_multiplier)
        with naming_the_part():
            build_hooks(on_cpu)
            _, trainer, _, checkpointer = _build(on_cpu)
            resume = args.resume and has_checkpoints(cfg.train.output_dir)
            _load(on_cpu, checkpointer, trainer, resume)
    finally:
        logging.disable(logging.NOTSET)


def do_test(cfg: DictConfig, model: nn.Module | None = None) -> Results:
    """Evaluate on `cfg.dataloader.test`.

    Args:
        model: may be wrapped by DDP; None loads `cfg.train.init_checkpoint`, see `load_trained`,
            and with `cfg.train.model_ema.enabled` evaluates its averaged weights as well.

    Returns:
        As `aligndetr.evaluation.evaluate`: {task: {metric: value}}, {} on other ranks. Tasks of
        averaged weights are called "ema/<task>".
    """
    if model is None:
        models = load_trained(cfg)
    else:
        models = {"": without_ddp(model)}
    names = dataset_class_names(cfg, train=False)
    return _evaluate(models, build_evaluation(cfg), names, cfg.train.device)


def load_trained(cfg: DictConfig) -> dict[str, nn.Module]:
    """The models to evaluate, from `cfg.train.init_checkpoint`, which must fit in every tensor.

    Returns:
        "" for the trained weights, then "ema/" for the averaged ones, as `cfg.train.model_ema`
        asks for them.

    Raises:
        CheckpointError: averaged weights are asked for and the file has none.
    """
    model = build_model(cfg)
    checkpointer = Checkpointer(model, extra={"class_names": dataset_class_names(cfg, train=False)})
    path = cfg.train.init_checkpoint
    others = checkpointer.load(path, checkpointables=[])
    ema = build_model_ema(cfg, model)
    if ema is not None:
        if EMA_KEY not in others:
            raise CheckpointError(
                f"checkpoint {path!r} holds no averaged weights ({EMA_KEY!r}); set "
                "train.model_ema.enabled=False to evaluate the trained ones"
            )
        ema.load_state_dict(others[EMA_KEY])
    return _models_to_evaluate(cfg, model, ema)


def _models_to_evaluate(
    cfg: DictConfig, model: nn.Module, ema: ModelEMA | None
) -> dict[str, nn.Module]:
    if ema is None:
        return {"": model}
    if cfg.train.model_ema.use_ema_weights_for_eval_only:
        return {"ema/": ema.model}
    return {"": model, "ema/": ema.model}


def _evaluate(
    models: dict[str, nn.Module],
    evaluation: tuple[Iterable, DatasetEvaluator],
    names: list[str],
    device: str,
) -> Results:
    results = {}
    for prefix, model in models.items():
        if prefix:
            logger.info("Evaluating the averaged weights (EMA)")
        home = next(model.parameters()).device
        of_model = evaluate(model.to(device), *evaluation, names)
        model.to(home)
        results |= {prefix + task: metrics for task, metrics in of_model.items()}
    return results


def _build(cfg: DictConfig) -> tuple[nn.Module, Trainer, ModelEMA | None, Checkpointer]:
    """What a training consists of, before hooks and data."""
    model = build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    trainer = Trainer(
        create_ddp_model(model, **cfg.train.ddp),
        None,  # the loader comes once the seed of a resumed run is known
        optimizer,
        amp=cfg.train.amp.enabled,
        clip_grad=cfg.train.clip_grad.params if cfg.train.clip_grad.enabled else None,
        log_period=cfg.train.log_period,
        amp_dtype=cfg.train.amp.dtype,
        grad_accum_steps=cfg.train.grad_accum_steps,
        max_bad_steps=cfg.train.max_bad_steps,
        max_corrupt_share=cfg.train.max_corrupt_share,
        report_dir=cfg.train.output_dir,
    )
    ema = build_model_ema(cfg, model)
    checkpointer = Checkpointer(
        model,
        cfg.train.output_dir,
        extra={
            "config": config_to_yaml(cfg),
            "class_names": dataset_class_names(cfg),
            "preprocessing": preprocessing(cfg),
        },
        trainer=trainer,
        **({} if ema is None else {EMA_KEY: ema}),
    )
    return model, trainer, ema, checkpointer


def _finish(trainer: Trainer, max_iter: int) -> None:
    """What follows the last step, for a run that was interrupted in it or after it."""
    trainer.iter = trainer.start_iter = trainer.max_iter = max_iter
    with EventStorage(max_iter) as trainer.storage:
        trainer.before_train()
        trainer.after_train()


def _hooks(
    cfg: DictConfig,
    model: nn.Module,
    ema: ModelEMA | None,
    checkpointer: Checkpointer,
    resume: bool,
    signals: StopSignals,
) -> list[HookBase]:
    """In this order: the time is taken first, what others have put to the log is written last."""
    train = cfg.train
    names = dataset_class_names(cfg)
    evaluation = build_evaluation(cfg)  # once, and now: its errors must not wait for hours
    device = next(model.parameters()).device
    saving = dict(train.checkpointer)
    best_metric = saving.pop("best_metric", None)
    saver = SaveHook(checkpointer, signals, device, **saving)
    models = _models_to_evaluate(cfg, model, ema)
    return [
        d2_hooks.IterationTimer(),
        d2_hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
        *([] if ema is None else [EMAUpdater(ema, model)]),
        *build_hooks(cfg),  # before what they change is saved and what they say is written
        saver,
        EvalHook(
            train.eval_period,
            lambda: _evaluate(models, evaluation, names, train.device),
            saver,
            device,
            best_metric,
            Path(train.output_dir) / METRICS_FILE,
        ),
        *reporting_hooks(cfg, device, images_per_step(cfg), resume),
    ]


def _load(
    cfg: DictConfig, checkpointer: Checkpointer, trainer: Trainer, resume: bool
) -> tuple[int, dict[str, Any]]:
    """Load the checkpoint to start from.

    Returns:
        The iteration to start with, the same on all ranks, and what the checkpoint holds besides.
    """
    start_iter = 0
    if resume:
        rest = checkpointer.load_newest()
        start_iter = trainer.iter + 1
        if start_iter > cfg.train.max_iter:
            raise ValueError(
                f"the last checkpoint of `train.output_dir` (={cfg.train.output_dir!r}) has taken "
                f"{start_iter} steps, but `train.max_iter` is {cfg.train.max_iter}; raise it, or "
                "choose another train.output_dir"
            )
    else:
        rest = checkpointer.load(cfg.train.init_checkpoint, checkpointables=[], strict=False)
    everywhere = comm.all_gather(start_iter)
    if len(set(everywhere)) > 1:
        raise ValueError(
            f"the processes would start at different iterations {everywhere}; every machine needs "
            f"the same checkpoints in `train.output_dir` (={cfg.train.output_dir!r})"
        )
    return start_iter, rest
