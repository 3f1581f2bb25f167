"""The folder of a run, and a checkpoint, as things to evaluate."""

import contextlib
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from detectron2.config import instantiate
from detectron2.engine import default_argument_parser
from detectron2.evaluation import DatasetEvaluators
from omegaconf import DictConfig

from aligndetr.checkpoint import local_checkpoint, read_checkpoint
from aligndetr.config import CONFIG_FILE, apply_overrides, load_config
from aligndetr.engine import check_run, load_trained
from aligndetr.evaluation import AlignmentEvaluator, COCOEvaluator, evaluate
from aligndetr.evaluation.alignment import Alignment
from aligndetr.evaluation.box_ap import COCO_MAX_DETECTIONS
from aligndetr.inference.restoring import choose_device, find_config
from aligndetr.layers import set_default_backend

from .evaluations import (
    RESULTS_FILE,
    Evaluation,
    data_of_config,
    max_detections_of,
    read_evaluation,
)

logger = logging.getLogger(__name__)


def evaluation_of_run(
    folder: str | os.PathLike,
    ground_truth: str | os.PathLike | None = None,
    image_root: str | os.PathLike | None = None,
) -> Evaluation:
    """The last evaluation that a run has written.

    Args:
        folder: a `train.output_dir`, with coco_instances_results.json and config.yaml.
        ground_truth, image_root: in place of what the config names; with the former, the config
            may be missing.

    Raises:
        FileNotFoundError: the folder has no results, or no config where one is needed.
        ValueError: see `read_evaluation`; or the config's data are not there.
    """
    folder = Path(folder)
    results = folder / RESULTS_FILE
    if not results.is_file():
        raise FileNotFoundError(
            f"{str(folder)!r} has no {RESULTS_FILE}: name the output_dir of a run that has been "
            "evaluated, or a checkpoint"
        )
    name = folder.name or str(folder)
    if ground_truth is None:
        cfg = load_config(folder / CONFIG_FILE)
        ground_truth, found_root = data_of_config(cfg)
        image_root = image_root or found_root
        limit = max_detections_of(cfg)
    else:
        limit = _limit_beside(folder)
    return read_evaluation(name, results, ground_truth, image_root, limit)


def _limit_beside(folder: Path) -> int:
    """`max_detections_of` a folder's config, as far as there is one that can be read."""
    try:
        return max_detections_of(load_config(folder / CONFIG_FILE))
    except FileNotFoundError:
        return COCO_MAX_DETECTIONS
    except ValueError as error:  # of classes that only its .py file may name, for example
        logger.warning(
            "%d detections of an image and class count; what the run counted is not known: %s",
            COCO_MAX_DETECTIONS,
            error,
        )
        return COCO_MAX_DETECTIONS


def config_of_checkpoint(
    path: str | os.PathLike,
    config_file: str | os.PathLike | None = None,
    overrides: Iterable[str] = (),
    device: str | None = None,
) -> DictConfig:
    """The config to evaluate a checkpoint with, checked and complete.

    Args:
        config_file: default: the config in the checkpoint, else config.yaml beside it.
        overrides: `key=value`.
        device: default: the GPU if there is one, else the CPU.

    Raises:
        ValueError, FileNotFoundError: see `check_run`.
    """
    path = local_checkpoint(os.fspath(path))
    cfg = load_config(config_file) if config_file else find_config(read_checkpoint(path), path)
    cfg = apply_overrides(cfg, overrides)
    cfg.train.init_checkpoint = path
    cfg.train.device = str(choose_device(device))
    check_run(cfg, default_argument_parser().parse_args(["--eval-only"]))
    return cfg


def evaluate_layers(cfg: DictConfig, output_dir: str | os.PathLike) -> Mapping[str, Alignment]:
    """Run a checkpoint over its test data.

    coco_instances_results.json and alignment.json are written to `output_dir`. Of a model with
    averaged weights, as `cfg.train.model_ema` says, these are evaluated.

    Returns:
        The alignment of every layer; of the detections for a model without `all_layers`.
    """
    set_default_backend(cfg.train.get("ms_deform_attn", "auto"), cfg.train.device)
    *_, model = load_trained(cfg).values()
    model.to(cfg.train.device)
    name = instantiate(cfg.dataloader.evaluator.dataset_name)
    alignment = AlignmentEvaluator(name, output_dir=str(output_dir))
    limit = max_detections_of(cfg)
    boxes = COCOEvaluator(name, output_dir=str(output_dir), max_dets_per_image=limit)
    all_layers = getattr(model, "all_layers", contextlib.nullcontext)
    with all_layers():
        evaluate(model, instantiate(cfg.dataloader.test), DatasetEvaluators([boxes, alignment]))
    return alignment.layers
