"""The table at the start of a run: what is about to be trained, on what, for how long."""

from collections.abc import Iterable

import torch
from detectron2.config import instantiate
from detectron2.utils import comm
from omegaconf import DictConfig, OmegaConf
from tabulate import tabulate
from torch import nn

from .length import images_per_step
from .setup import dataset_class_names


def run_table(cfg: DictConfig, model: nn.Module, train_loader: Iterable) -> str:
    """The table, as lines of text.

    Args:
        cfg: as `setup` leaves it.
        model: not wrapped by DDP.
        train_loader: without an attribute `dataset`, numbers of images and epochs are unknown.
    """
    train = cfg.train
    train_data = getattr(train_loader, "dataset", None)
    train_images = None if train_data is None else len(train_data)
    batch = images_per_step(cfg)
    rows = {
        "model": model_size(model),
        "parameters": parameter_counts(model),
        "train data": images_in(cfg, "train", train_images),
        "test data": images_in(cfg, "test", test_images(cfg)),
        "classes": len(dataset_class_names(cfg)) or "unknown",
        "batch": describe_batch(cfg, batch),
        "schedule": schedule(train.max_iter, batch, train_images),
        "evaluation every": period(train.eval_period, batch, train_images),
        "checkpoint every": period(train.checkpointer.period, batch, train_images),
        "precision": f"{train.amp.dtype} where safe (amp)" if train.amp.enabled else "float32",
        "devices": devices(train.device),
        "expected time": "known after 50 iterations; a line of the log will say it",
        "output": train.output_dir,
    }
    return tabulate(rows.items(), tablefmt="simple_outline")


def model_size(model: nn.Module) -> str:
    """`AlignDETR, 4,532,101 parameters, 17 MiB`: size of parameters and buffers in memory."""
    tensors = [*model.parameters(), *model.buffers()]
    size = sum(t.numel() * t.element_size() for t in tensors) / 2**20
    count = sum(p.numel() for p in model.parameters())
    return f"{type(model).__name__}, {count:,} parameters, {size:.3g} MiB"


def parameter_counts(model: nn.Module) -> str:
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    return f"{trained:,} trained, {frozen:,} frozen"


def test_images(cfg: DictConfig) -> int | None:
    data = OmegaConf.select(cfg, "dataloader.test.dataset")
    return None if data is None else len(instantiate(data))


def images_in(cfg: DictConfig, loader: str, count: int | None) -> str:
    if count is None:
        return "unknown"
    names = instantiate(OmegaConf.select(cfg, f"dataloader.{loader}.dataset.names"))
    names = [names] if isinstance(names, str) else names or []
    return f"{count:,} images ({', '.join(names)})" if names else f"{count:,} images"


def describe_batch(cfg: DictConfig, batch: int) -> str:
    world_size, steps = comm.get_world_size(), cfg.train.get("grad_accum_steps", 1)
    each = batch // steps // world_size
    accumulated = f" x {steps} accumulated" if steps > 1 else ""
    return f"{batch} images = {world_size} processes x {each}{accumulated}"


def schedule(max_iter: int, batch: int, train_images: int | None) -> str:
    return f"{max_iter:,} iterations{epochs(max_iter, batch, train_images)}"


def period(iterations: int, batch: int, train_images: int | None) -> str:
    if not iterations:
        return "end of training only"
    return f"{iterations:,} iterations{epochs(iterations, batch, train_images)}"


def epochs(iterations: int, batch: int, train_images: int | None) -> str:
    return f" = {iterations * batch / train_images:.3g} epochs" if train_images else ""


def devices(device: str) -> str:
    where = torch.device(device)
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else where.type
    threads = f", {torch.get_num_threads()} threads each" if where.type == "cpu" else ""
    return f"{comm.get_world_size()} x {name}{threads}"
