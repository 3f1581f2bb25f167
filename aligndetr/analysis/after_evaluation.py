"""The report of the evaluation that a run has just made: written by itself, and never its end."""

import logging
from pathlib import Path

from detectron2.utils import comm
from omegaconf import DictConfig

from .evaluations import RESULTS_FILE, data_of_config, max_detections_of, read_evaluation
from .report import REPORT_FILE, write_report

logger = logging.getLogger(__name__)


def report_of_finished_run(cfg: DictConfig, since: float) -> Path | None:
    """Write report.html and report.json beside the results, on the main process.

    Whatever keeps it from being written is a warning: a run must not fail for its report.

    Args:
        cfg: of the run; `train.report` says whether to. A fast_dev_run has none.
        since: when the run began, `time.time()`; results from before are not its own.

    Returns:
        The page; None on other ranks and where there is none.
    """
    wanted = cfg.train.report and not cfg.train.fast_dev_run.enabled
    if not wanted or not comm.is_main_process():
        return None
    try:
        return _write(cfg, since)
    except Exception as error:  # all of it comes after what the run was for
        logger.warning("No report was written: %s", error, exc_info=not _is_users(error))
        return None


def _write(cfg: DictConfig, since: float) -> Path | None:
    folder = cfg.dataloader.evaluator.get("output_dir")
    results = Path(folder or "") / RESULTS_FILE
    # A file system may keep times by the second.
    if not folder or not results.is_file() or results.stat().st_mtime < since - 1:
        logger.info("No report: the evaluator has left no %s", RESULTS_FILE)
        return None
    name = results.parent.name + (" (averaged weights)" if cfg.train.model_ema.enabled else "")
    data = *data_of_config(cfg), max_detections_of(cfg)
    write_report(read_evaluation(name, results, *data), folder)
    page = results.with_name(REPORT_FILE)
    logger.info("What AP is lost to, curves, best and worst images: %s", page)
    return page


def _is_users(error: Exception) -> bool:
    """Said in one line already, without where it happened."""
    return isinstance(error, (ValueError, OSError))
