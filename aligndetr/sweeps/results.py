"""What the trainings of a sweep came to: one row per experiment, its seeds averaged."""

import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from tabulate import tabulate

from aligndetr.engine.curves import read_metrics
from aligndetr.engine.metrics_file import METRICS_FILE
from aligndetr.utils.files import atomic_path

from .grid import Run
from .picture import plot_results
from .running import ALIGNMENT_FILE, is_finished

USUAL = re.compile(r"^[^/]+/(AP|AP50|AP75)$|^alignment/(pearson|best_regressed_recall_[12])$")
"""Columns where none are asked for."""


def last_evaluation(folder: Path) -> dict[str, float]:
    """{"task/metric": value} of the last evaluation of a finished run; {} of any other.

    With alignment of its last layer as "alignment/…" where that has been measured.
    """
    if not is_finished(folder):
        return {}
    series = read_metrics(folder / METRICS_FILE)
    last = max(its[-1] for name, (its, _) in series.items() if "/" in name)
    found = {n: v[-1] for n, (its, v) in series.items() if "/" in n and its[-1] == last}
    alignment = folder / ALIGNMENT_FILE
    if alignment.exists():
        *_, layer = json.loads(alignment.read_text(encoding="utf-8"))["layers"]
        numbers = {n: v for n, v in layer.items() if isinstance(v, int | float)}
        found |= {f"alignment/{name}": float(value) for name, value in numbers.items()}
    return found


def write_results(
    runs: Sequence[Run], output: Path, failed: Mapping[str, int], metrics: Sequence[str] = ()
) -> str:
    """Write `results.json`, every run with all metrics, and `table.md` and `table.png`, which have
    the columns of `results_table`; return the table.

    Args:
        runs: all of the sweep.
        failed: exit codes by name.
        metrics: as `results_table`.
    """
    found = {run.name: last_evaluation(output / run.name) for run in runs}
    table = results_table(runs, found, failed, metrics)
    columns = _columns(found, metrics)
    if columns:
        plot_results(_by_experiment(runs, found, columns), columns, output / "table.png")
    records = [
        {
            "name": run.name,
            "experiment": run.experiment,
            "config_file": run.config_file,
            "overrides": list(run.overrides),
            "state": _state(run, found, failed),
            "metrics": {n: v if math.isfinite(v) else None for n, v in found[run.name].items()},
        }
        for run in runs
    ]
    for name, text in (("results.json", json.dumps(records, indent=2)), ("table.md", table)):
        with atomic_path(output / name) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    return table


def results_table(
    runs: Sequence[Run],
    found: Mapping[str, Mapping[str, float]],
    failed: Mapping[str, int],
    metrics: Sequence[str] = (),
) -> str:
    """A Markdown table: per experiment the mean over its finished runs, ± their sample standard
    deviation where there are several.

    Args:
        found: by name of a run, the metrics of its last evaluation.
        failed: exit codes by name.
        metrics: columns, such as "bbox/APs"; none: AP, AP50, AP75, and what was measured of
            alignment.
    """
    columns = _columns(found, metrics)
    rows = []
    for experiment, values in _by_experiment(runs, found, columns).items():
        states = [_state(run, found, failed) for run in runs if run.experiment == experiment]
        done = states.count("finished")
        number = str(done) if done == len(states) else f"{done} of {len(states)}"
        missing = sorted({state for state in states if state != "finished"})
        rows.append([experiment, ", ".join([number, *missing]), *map(mean_and_spread, values)])
    return tabulate(rows, headers=["experiment", "runs", *columns], tablefmt="pipe",
                    disable_numparse=True)  # fmt: skip


def _columns(found: Mapping[str, Mapping[str, float]], metrics: Sequence[str]) -> list[str]:
    usual = {name for of_run in found.values() for name in of_run if USUAL.match(name)}
    return [name for name in metrics if name] or sorted(usual)


def _by_experiment(
    runs: Sequence[Run], found: Mapping[str, Mapping[str, float]], columns: Sequence[str]
) -> dict[str, list[list[float]]]:
    """For each column, the finite values of the experiment's runs."""
    values = {run.experiment: [[] for _ in columns] for run in runs}
    for run in runs:
        for of_column, name in zip(values[run.experiment], columns, strict=True):
            value = found[run.name].get(name, math.nan)
            if math.isfinite(value):
                of_column.append(value)
    return values


def mean_and_spread(values: Sequence[float]) -> str:
    """ "mean ± sample standard deviation" of several values, "" of none."""
    if not values:
        return ""
    mean = f"{statistics.fmean(values):.4g}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2g}"


def _state(run: Run, found: Mapping[str, Mapping[str, float]], failed: Mapping[str, int]) -> str:
    if found[run.name]:
        return "finished"
    return f"exit code {failed[run.name]}" if run.name in failed else "not finished"
