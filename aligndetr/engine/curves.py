"""A picture of a training run: losses, AP and learning rate over iterations."""

import json
import os
import re
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from aligndetr.utils.files import atomic_path

Series = dict[str, tuple[list[int], list[float]]]
"""By name: the iterations at which it was written, rising, and its values there."""

LAYER_NUMBER = re.compile(r"_\d+$")
AP_NAME = re.compile(r"^(?P<prefix>.*/)?(?P<name>AP|AP50|AP75)$")
KINDS = {"class": "tab:blue", "bbox": "tab:orange", "giou": "tab:green"}
SOURCES = {"": "-", "_dn": "--", "_enc": ":"}


def read_metrics(metrics_json: str | os.PathLike) -> Series:
    """Read what detectron2's JSONWriter wrote: one json object per line, each with "iteration".

    Lines may hold different keys (evaluations do). Where an iteration stands twice, as after a
    resumed run, the later line counts. A last line cut short by a killed run is left out, and so
    are values that are not numbers.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line before the last is not a json object with "iteration".
    """
    lines = Path(metrics_json).read_text(encoding="utf-8").splitlines()
    values: dict[str, dict[int, float]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            scalars = json.loads(line)
            iteration = int(scalars.pop("iteration"))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if number == len(lines):
                break
            raise ValueError(
                f"{metrics_json}, line {number} is not a json object with an `iteration`: "
                f"{line[:80]!r}. Expected the metrics.json of a training run."
            ) from error
        for name, value in scalars.items():
            if isinstance(value, (int, float)):
                values.setdefault(name, {})[iteration] = float(value)
    return {name: (sorted(v), [v[i] for i in sorted(v)]) for name, v in values.items()}


def plot_curves(metrics_json: str | os.PathLike, out_png: str | os.PathLike) -> None:
    """Draw the run whose metrics lie in `metrics_json` to `out_png`, see `draw_curves`.

    matplotlib's global backend and pyplot's state are not touched; `out_png` appears complete or
    not at all. Raises what `read_metrics` raises.
    """
    figure = draw_curves(read_metrics(metrics_json))
    with atomic_path(out_png) as temporary:
        figure.savefig(temporary, dpi=110)


def draw_curves(series: Series) -> Figure:
    """Three panels over iterations: losses, AP, learning rate.

    Losses of one kind are summed over the decoder's layers: `loss_class`, `loss_class_0`, ... are
    one curve. A panel for which `series` has nothing says so.
    """
    figure = Figure(figsize=(10, 11), layout="constrained")
    panels = figure.subplots(3, 1, sharex=True, height_ratios=[3, 2, 1])
    for axes, plot in zip(panels, (_plot_losses, _plot_ap, _plot_learning_rate), strict=True):
        plot(axes, series)
        axes.grid(alpha=0.3)
        axes.tick_params(labelbottom=True)
        if not axes.lines:
            axes.text(0.5, 0.5, "nothing recorded", transform=axes.transAxes, ha="center")
    panels[-1].set_xlabel("iteration")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def sum_over_layers(series: Series) -> Series:
    """Add up losses whose names differ by a layer number only, under the name without it.

    `loss_class_dn`, `loss_class_dn_0`, ... become `loss_class_dn`. An iteration at which one of
    them is missing is left out.
    """
    groups: dict[str, list[dict[int, float]]] = {}
    for name, (iterations, values) in series.items():
        if name.startswith("loss"):
            group = groups.setdefault(LAYER_NUMBER.sub("", name), [])
            group.append(dict(zip(iterations, values)))
    summed = {}
    for name, parts in groups.items():
        common = sorted(set.intersection(*(set(part) for part in parts)))
        summed[name] = (common, [sum(part[i] for part in parts) for i in common])
    return summed


def _plot_losses(axes: Axes, series: Series) -> None:
    if "total_loss" in series:
        axes.plot(*series["total_loss"], color="black", linewidth=2, label="total")
    for name, (iterations, values) in sorted(sum_over_layers(series).items()):
        kind, source = _kind_and_source(name)
        style = {"color": KINDS.get(kind), "linestyle": SOURCES.get(source, "-.")}
        axes.plot(iterations, values, linewidth=1.2, label=name.removeprefix("loss_"), **style)
    positive = [v for line in axes.lines for v in np.asarray(line.get_ydata()) if v > 0]
    if positive:
        axes.set_yscale("log")
    axes.set_title("Losses (weighted, summed over layers; median over the log window)")
    if axes.lines:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)


def _kind_and_source(name: str) -> tuple[str, str]:
    """`loss_class_dn` -> ("class", "_dn")."""
    stem = name.removeprefix("loss_")
    kind, underscore, source = stem.partition("_")
    return kind, underscore + source


def _plot_ap(axes: Axes, series: Series) -> None:
    found = {name: AP_NAME.match(name) for name in series}
    for name, match in sorted(found.items()):
        if match is not None:
            iterations, values = series[name]
            width = 2.0 if match["name"] == "AP" else 1.2
            axes.plot(iterations, values, marker="o", linewidth=width, label=name)
            if values:
                axes.annotate(
                    f"{values[-1]:.1f}",
                    (iterations[-1], values[-1]),
                    xytext=(6, 0),
                    textcoords="offset points",
                    va="center",
                )
    axes.set_ylim(bottom=0)
    axes.set_title("AP on the evaluated data (percent)")
    if axes.lines:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)


def _plot_learning_rate(axes: Axes, series: Series) -> None:
    if "lr" in series:
        axes.plot(*series["lr"], color="black")
    axes.set_ylim(bottom=0)
    axes.set_title("Learning rate")
