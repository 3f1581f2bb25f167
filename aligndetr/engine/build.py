"""From config to objects: model, DDP, optimizer, evaluation."""

import functools
import inspect
import logging
from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.engine import HookBase
from detectron2.evaluation import DatasetEvaluator
from detectron2.layers import NaiveSyncBatchNorm
from detectron2.utils import comm
from omegaconf import DictConfig, ListConfig
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from .ema import ModelEMA
from .length import images_per_step
from .optim import scale_learning_rate
from .setup import FAST_DEV_RUN_IMAGES

logger = logging.getLogger(__name__)


def build_model(cfg: DictConfig) -> nn.Module:
    """`cfg.model` on `cfg.train.device`, with its initial weights."""
    model = instantiate(cfg.model).to(cfg.train.device)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    logger.info("%s: %d parameters, and %d frozen", type(model).__name__, trained, frozen)
    return model


def build_model_ema(cfg: DictConfig, model: nn.Module) -> ModelEMA | None:
    """Averaged weights as `cfg.train.model_ema` says; None if that is not enabled."""
    settings = cfg.train.model_ema
    return ModelEMA(model, settings.decay, settings.device) if settings.enabled else None


def build_optimizer(cfg: DictConfig, model: nn.Module) -> Optimizer:
    """`cfg.optimizer` for a model that is not wrapped yet; `cfg` itself stays plain.

    With `cfg.train.auto_scale_lr` its rates follow the images per step.
    """
    params = instantiate({**_arguments(cfg.optimizer.params), "model": model})
    optimizer = instantiate({**_arguments(cfg.optimizer), "params": params})
    for group in optimizer.param_groups:
        for key, value in group.items():
            if isinstance(value, ListConfig):  # `betas`; a checkpoint holds plain values
                group[key] = tuple(value)
    if cfg.train.get("auto_scale_lr"):
        scale_learning_rate(optimizer, images_per_step(cfg))
    return optimizer


def build_hooks(cfg: DictConfig) -> list[HookBase]:
    """The user's own hooks, `cfg.train.hooks`.

    Raises:
        ValueError: one of them builds something that is no hook.
    """
    hooks = list(instantiate(cfg.train.hooks))
    for index, hook in enumerate(hooks):
        if not isinstance(hook, HookBase):
            raise ValueError(
                f"`train.hooks[{index}]` builds a {type(hook).__name__}; every entry must be a "
                "LazyCall of a class that inherits detectron2.engine.HookBase"
            )
    return hooks


def create_ddp_model(
    model: nn.Module, *, fp16_compression: bool = False, **kwargs: Any
) -> nn.Module:
    """Wrap a model by DistributedDataParallel if there are several processes.

    detectron2's function of this name passes `device_ids`, which DDP refuses for the CPU.

    Args:
        model: on its device.
        fp16_compression: send gradients as float16.
        kwargs: of DistributedDataParallel (`broadcast_buffers`, `find_unused_parameters`, …).

    Raises:
        ValueError: a batch norm would collect other statistics in each process.
    """
    if comm.get_world_size() == 1:
        return model
    if not kwargs.get("broadcast_buffers", True):
        _refuse_diverging_norms(model)
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters:
        # Newer torch has renamed the argument and warns of the old name.
        kwargs["forward_sync_buffers"] = kwargs.pop("broadcast_buffers", True)
    on_gpu = next(model.parameters()).is_cuda
    device_ids = [torch.cuda.current_device()] if on_gpu else None
    ddp = DistributedDataParallel(model, device_ids=device_ids, **kwargs)
    if fp16_compression:
        ddp.register_comm_hook(state=None, hook=default_hooks.fp16_compress_hook)
    return ddp


def _refuse_diverging_norms(model: nn.Module) -> None:
    together = (nn.SyncBatchNorm, NaiveSyncBatchNorm)
    for name, module in model.named_modules():
        collects = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if collects and module.track_running_stats and not isinstance(module, together):
            raise ValueError(
                f"`{name}` is a BatchNorm, whose statistics would be others in each process, and "
                "so would what each evaluates. Freeze it (`freeze_batch_norm=True` of "
                'TimmBackbone, `norm="FrozenBN"` of ResNet), or set train.ddp.broadcast_buffers='
                "True, which takes those of the first"
            )


def without_ddp(model: nn.Module) -> nn.Module:
    """The model that `create_ddp_model` was given."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def build_evaluation(cfg: DictConfig) -> tuple[Iterable, DatasetEvaluator]:
    """Test loader and evaluator. A fast_dev_run takes the first few images, and counts no other."""
    evaluator = instantiate(cfg.dataloader.evaluator)
    if not cfg.train.fast_dev_run.enabled:
        return instantiate(cfg.dataloader.test), evaluator
    images = list(islice(instantiate(cfg.dataloader.test.dataset), FAST_DEV_RUN_IMAGES))
    loader = instantiate({**_arguments(cfg.dataloader.test), "dataset": images})
    image_ids = [image["image_id"] for image in images]
    # inference_on_dataset calls evaluate() without arguments.
    evaluator.evaluate = functools.partial(evaluator.evaluate, img_ids=image_ids)
    return loader, evaluator


def _arguments(node: DictConfig) -> dict[str, Any]:
    """The values of a node, so that one of them can be replaced by an object.

    (A config that is data refuses objects, and would be saved with them.)
    """
    return {str(key): value for key, value in node.items()}
