"""Several runs side by side: curves, AP with the confidence of its differences, configs."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from aligndetr.config import CONFIG_FILE, load_config
from aligndetr.engine.curves import Series, read_metrics
from aligndetr.engine.metrics_file import METRICS_FILE
from aligndetr.evaluation.average_precision import WeightedAP
from aligndetr.evaluation.bootstrap import METRICS, ap_metrics, bootstrap_differences
from aligndetr.evaluation.matching import Matches, match_boxes
from aligndetr.utils.files import atomic_path
from aligndetr.utils.html import embedded, number_cell, page, table, text_cell
from aligndetr.utils.numbers import without_nan

from .charts import as_picture
from .evaluations import RESULTS_FILE
from .runs import evaluation_of_run

COMPARISON_FILE = "compare.html"
COMPARISON_NUMBERS = "compare.json"
NAMES_OF_A_RUN = {"train.output_dir"}
CURVES = ("bbox/AP", "bbox/AP50", "total_loss")


@dataclass(frozen=True)
class Run:
    """What a run has left in its folder, as far as it has."""

    name: str
    folder: Path
    series: Series
    """Of metrics.json; empty without one."""
    config: dict[str, Any]
    """By dotted key; empty without config.yaml."""
    matches: Matches | None
    """Of its last evaluation; None if there was none."""


def read_runs(
    folders: Sequence[str | os.PathLike], ground_truth: str | os.PathLike | None = None
) -> list[Run]:
    """Read at least two runs; detections of all are matched on the ground truth of each config.

    Args:
        folders: `train.output_dir` of each.
        ground_truth: in place of what the configs name.

    Raises:
        ValueError: fewer than two, or a folder that is not a run's.
    """
    if len(folders) < 2:
        raise ValueError(f"{len(folders)} runs are named; a comparison needs two or more")
    paths = [Path(folder) for folder in folders]
    last_parts = [path.resolve().name for path in paths]
    unique = len(set(last_parts)) == len(paths)
    names = last_parts if unique else [str(path) for path in paths]
    return [_read_run(name, path, ground_truth) for name, path in zip(names, paths)]


def compare_runs(runs: Sequence[Run], num_resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """All numbers of a comparison, the first run being what the others are compared with.

    Returns:
        "runs": name, folder and AP of each (percent); "differences": for each but the first, by
        metric value, low, high and p_better (see `Difference`), None where one of the two has no
        detections; "config": keys that differ, with a value for each run.

    Raises:
        ValueError: runs with detections were evaluated on different data.
    """
    content = {
        "resamples": num_resamples,
        "seed": seed,
        "runs": [
            {"name": run.name, "folder": str(run.folder), "metrics": _ap(run.matches)}
            for run in runs
        ],
        "differences": _differences(runs, num_resamples, seed),
        "config": config_differences([run.config for run in runs]),
    }
    return without_nan(content)


def _differences(
    runs: Sequence[Run], num_resamples: int, seed: int
) -> list[dict[str, dict[str, float]] | None]:
    first, *others = [run.matches for run in runs]
    evaluated = [matches for matches in others if matches is not None]
    if first is None or not evaluated:
        return [None] * len(others)
    found = iter(bootstrap_differences([first, *evaluated], num_resamples, seed))
    return [
        None if matches is None else {name: asdict(d) for name, d in next(found).items()}
        for matches in others
    ]


def config_differences(configs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Keys whose values are not the same in all: [{"key", "values"}], "" where there is none."""
    keys = sorted(set().union(*configs) - NAMES_OF_A_RUN)
    rows = [{"key": key, "values": [_text(c, key) for c in configs]} for key in keys]
    return [row for row in rows if len(set(row["values"])) > 1]


def write_comparison(
    runs: Sequence[Run], content: dict[str, Any], output_dir: str | os.PathLike
) -> Path:
    """Write compare.html, which needs no other file, and compare.json; returns the former."""
    folder = Path(output_dir)
    text = page("Comparison of runs", _parts(runs, content))
    with atomic_path(folder / COMPARISON_NUMBERS) as temporary:
        temporary.write_text(json.dumps(content, allow_nan=False), encoding="utf-8")
    with atomic_path(folder / COMPARISON_FILE) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return folder / COMPARISON_FILE


def comparison_chart(runs: Sequence[Run]) -> Figure:
    """Losses and AP over iterations, a colour for each run."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(CURVES)), CURVES):
        for index, run in enumerate(runs):
            for key, style in ((name, "-"), (f"ema/{name}", "--")):
                if key in run.series:
                    label = run.name + (" (EMA)" if style == "--" else "")
                    axes.plot(*run.series[key], style, color=f"C{index}", label=label)
        axes.set(title=name, xlabel="iteration")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize="small")
        else:
            axes.text(0.5, 0.5, "nothing recorded", transform=axes.transAxes, ha="center")
    return figure


def _read_run(name: str, folder: Path, ground_truth: str | os.PathLike | None) -> Run:
    files = {file: (folder / file).is_file() for file in (METRICS_FILE, CONFIG_FILE, RESULTS_FILE)}
    if not any(files.values()):
        raise ValueError(
            f"{str(folder)!r} is not the folder of a run: it has none of {', '.join(files)}"
        )
    matches = None
    if files[RESULTS_FILE]:
        evaluation = evaluation_of_run(folder, ground_truth)
        matches = match_boxes(evaluation.truth, evaluation.results, evaluation.max_detections)
    return Run(
        name=name,
        folder=folder,
        series=read_metrics(folder / METRICS_FILE) if files[METRICS_FILE] else {},
        config=_flat(load_config(folder / CONFIG_FILE)) if files[CONFIG_FILE] else {},
        matches=matches,
    )


def _flat(cfg: DictConfig) -> dict[str, Any]:
    """By dotted key, as written: `${…}` stay."""

    def walk(value: Any, key: str) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict) and value:
            for name, item in value.items():
                yield from walk(item, f"{key}.{name}" if key else str(name))
        else:
            yield key, value

    return dict(walk(OmegaConf.to_container(cfg, resolve=False), ""))


def _text(config: dict[str, Any], key: str) -> str:
    return json.dumps(config[key]) if key in config else ""


def _ap(matches: Matches | None) -> dict[str, float | None]:
    if matches is None:
        return dict.fromkeys(METRICS)
    values = ap_metrics(WeightedAP(matches), np.ones(matches.num_images))
    return dict(zip(METRICS, values.tolist(), strict=True))


def _parts(runs: Sequence[Run], content: dict[str, Any]) -> Iterator[str]:
    rows = []
    for i, run in enumerate(runs):
        row = [text_cell(run.name), text_cell(run.folder)]
        row += [number_cell(content, f"runs.{i}.metrics.{name}", 2) for name in METRICS]
        rows.append(row)
    yield table(["run", "folder", *METRICS], rows)
    yield f"<h2>Differences to {text_cell(runs[0].name).removeprefix('<td>')}</h2>"
    yield (
        f"<p>In percent points, with the middle 95 % of {content['resamples']} paired resamples of "
        "the images, and the share of them in which the run is better. What another seed of the "
        "training would change is not in it.</p>"
    )
    yield table(
        ["run", *(f"{name} {part}" for name in METRICS for part in ("diff", "low", "high", "p"))],
        list(_difference_rows(runs, content)),
    )
    picture: Image.Image = as_picture(comparison_chart(runs))
    yield f"<h2>Curves</h2>{embedded(picture)}"
    yield "<h2>What differs in the configs</h2>"
    rows = [[text_cell(row["key"]), *map(text_cell, row["values"])] for row in content["config"]]
    yield table(["key", *(run.name for run in runs)], rows) if rows else "<p>Nothing.</p>"


def _difference_rows(runs: Sequence[Run], content: dict[str, Any]) -> Iterator[list[str]]:
    for i, (run, found) in enumerate(zip(runs[1:], content["differences"])):
        if found is None:
            yield [text_cell(run.name), text_cell("one of the two was not evaluated")]
            continue
        yield [
            text_cell(run.name),
            *(
                number_cell(content, f"differences.{i}.{name}.{part}", 2)
                for name in METRICS
                for part in ("value", "low", "high", "p_better")
            ),
        ]
