"""What the tools do: from a run, a checkpoint or results to files, and to a few lines to print."""

import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from detectron2.utils.logger import setup_logger
from tabulate import tabulate

from aligndetr.evaluation.alignment_evaluator import SUMMARY_FILE
from aligndetr.evaluation.alignment_summary import summarise_alignment
from aligndetr.evaluation.bootstrap import METRICS
from aligndetr.utils.files import atomic_path
from aligndetr.utils.html import shown
from aligndetr.utils.numbers import without_nan

from .charts import alignment_chart
from .compare import compare_runs, read_runs, write_comparison
from .evaluations import RESULTS_FILE, data_of_config, max_detections_of, read_evaluation
from .report import REPORT_FILE, write_report
from .runs import config_of_checkpoint, evaluate_layers, evaluation_of_run

CHART_FILE = "alignment.png"
LAYER_COLUMNS = {
    "name": "layer",
    "pearson": "r",
    "spearman": "rank r",
    "pearson_all": "r, all",
    "calibration_error": "calibration error",
    "best_regressed_recall_1": "best-regressed recall, N",
    "best_regressed_recall_2": "2N",
    "best_iou": "best IoU",
    "assigned_iou": "assigned IoU",
}


def report_of(
    source: str | os.PathLike,
    *,
    ground_truth: str | os.PathLike | None = None,
    images: str | os.PathLike | None = None,
    output: str | os.PathLike | None = None,
    config_file: str | os.PathLike | None = None,
    device: str | None = None,
    opts: Iterable[str] = (),
) -> str:
    """Write the report of a run's folder, of COCO results (`.json`) or of a checkpoint.

    Args:
        ground_truth, images: in place of what the config names; results need the first.
        output: folder; default: the run's, that of the results, or for `folder/model.pth`
            `folder/model_report`.
        config_file, device, opts: of a checkpoint, see `config_of_checkpoint`.

    Returns:
        Lines to print.

    Raises:
        ValueError, OSError: something that is named cannot be used.
    """
    source = Path(source)
    layers = None
    if source.is_dir():
        evaluation = evaluation_of_run(source, ground_truth, images)
        output = Path(output or source)
    elif source.suffix == ".json":
        if ground_truth is None:
            raise ValueError(f"results ({str(source)!r}) need the ground truth: --ground-truth")
        evaluation = read_evaluation(source.stem, source, ground_truth, images)
        output = Path(output or source.parent)
    else:
        _log_to_the_terminal()
        cfg = config_of_checkpoint(source, config_file, opts, device)
        output = Path(output or source.with_name(f"{source.stem}_report"))
        layers = evaluate_layers(cfg, output)
        data = *data_of_config(cfg), max_detections_of(cfg)
        name = f"{source.parent.name}/{source.stem}"
        evaluation = read_evaluation(name, output / RESULTS_FILE, *data)
    content = write_report(evaluation, output, layers)
    return f"{_errors_as_text(content)}\n\nreport: {output / REPORT_FILE}"


def alignment_of(
    checkpoint: str | os.PathLike,
    *,
    output: str | os.PathLike | None = None,
    config_file: str | os.PathLike | None = None,
    device: str | None = None,
    opts: Iterable[str] = (),
) -> str:
    """Measure the alignment of a checkpoint's layers; writes alignment.json and alignment.png.

    Args and errors as of `report_of`. Returns lines to print.
    """
    _log_to_the_terminal()
    checkpoint = Path(checkpoint)
    cfg = config_of_checkpoint(checkpoint, config_file, opts, device)
    folder = Path(output or checkpoint.with_name(f"{checkpoint.stem}_report"))
    layers = evaluate_layers(cfg, folder)
    summary = without_nan(summarise_alignment(layers, ()))
    with atomic_path(folder / CHART_FILE) as temporary:
        alignment_chart(layers, summary).savefig(temporary, dpi=100)
    rows = [[row[key] for key in LAYER_COLUMNS] for row in summary["layers"]]
    table = tabulate(rows, list(LAYER_COLUMNS.values()), floatfmt=".3f", tablefmt="pipe")
    return f"{table}\n\n{folder / CHART_FILE}, {folder / SUMMARY_FILE}"


def comparison_of(
    runs: Sequence[str | os.PathLike],
    *,
    ground_truth: str | os.PathLike | None = None,
    output: str | os.PathLike = ".",
    resamples: int = 1000,
) -> str:
    """Compare the folders of runs with the first; writes compare.html and compare.json.

    Args:
        ground_truth: in place of what the configs name.
        output: folder.
        resamples: of the images, for the confidence of the differences.

    Returns:
        Lines to print.

    Raises:
        ValueError, OSError: see `read_runs` and `compare_runs`.
    """
    read = read_runs(runs, ground_truth)
    content = compare_runs(read, resamples)
    path = write_comparison(read, content, output)
    rows = [_ap_row(run, None) for run in content["runs"][:1]]
    rows += [_ap_row(*pair) for pair in zip(content["runs"][1:], content["differences"])]
    table = tabulate(rows, ["run", *METRICS], tablefmt="pipe", disable_numparse=True)
    return f"{table}\n\nkeys of the configs that differ: {len(content['config'])}\n{path}"


def _ap_row(run: dict[str, Any], difference: dict[str, Any] | None) -> list[str]:
    """The name, and for each metric as in 10.47 +0.52 [-0.10, 1.20]."""
    row = [run["name"]]
    for name in METRICS:
        text = shown(run["metrics"][name], 2)
        if difference is not None and difference[name]["value"] is not None:
            value, low, high = (difference[name][part] for part in ("value", "low", "high"))
            text += f" {value:+.2f} [{low:.2f}, {high:.2f}]"
        row.append(text)
    return row


def _errors_as_text(content: dict[str, Any]) -> str:
    errors = content["errors"]
    rows = [[kind["name"], kind["count"], kind["gain"]] for kind in errors["kinds"]]
    header = ["error", "count", "gain in AP50"]
    table = tabulate(rows, header, floatfmt=".2f", tablefmt="pipe")
    metrics = content["metrics"]
    return f"AP {shown(metrics['AP'], 2)}, AP50 {shown(metrics['AP50'], 2)}\n\n{table}"


def _log_to_the_terminal() -> None:
    for name in ("detectron2", "aligndetr"):
        if not logging.getLogger(name).handlers:  # of a training in this process, as in a notebook
            setup_logger(name=name)
