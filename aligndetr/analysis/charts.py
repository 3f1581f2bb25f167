"""The charts of a report, drawn from its json's content alone (but for the density of pairs)."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from PIL import Image

from aligndetr.evaluation.alignment import Alignment

MAX_CLASS_CURVES = 12
MAX_NAMED_CLASSES = 12
DENSITY_BINS = 40


def as_picture(figure: Figure, dpi: int = 90) -> Image.Image:
    """The figure in pixels; pyplot's state is not touched."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return Image.open(buffer)


def error_chart(errors: Mapping[str, Any]) -> Figure:
    """What each kind of error costs."""
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    kinds = errors["kinds"]
    gains = [kind["gain"] or 0.0 for kind in kinds]
    bars = axes.barh([kind["name"] for kind in kinds], gains, color="tab:red")
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("AP50 that its repair would gain")
    return figure


def curve_chart(curves: Mapping[str, Any], classes: Sequence[Mapping[str, Any]]) -> Figure:
    """Precision over recall: the mean over classes at three IoUs, and each class at 0.5."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    mean, single = figure.subplots(1, 2, sharey=True)
    for threshold in ("0.50", "0.75", "0.50:0.95"):
        _line(mean, curves["recall"], curves[threshold], f"IoU {threshold}")
    mean.set_title("mean over classes")
    known = [i for i, row in enumerate(classes) if row["AP50"] is not None]
    known.sort(key=lambda i: -classes[i]["AP50"])
    named = len(known) <= MAX_CLASS_CURVES
    for index in known:
        style = {"label": classes[index]["name"]} if named else {"color": "grey", "linewidth": 0.6}
        single.plot(curves["recall"], curves["classes_at_0.50"][index], **style)
    single.set_title("class by class at IoU 0.50")
    for axes in (mean, single):
        axes.set(xlabel="recall (%)", xlim=(0, 100), ylim=(0, 102))
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
    mean.set_ylabel("precision (%)")
    return figure


def confusion_chart(confusion: Mapping[str, Any]) -> Figure:
    """Rows are what is there, as shares of the row; with counts where they can be read."""
    names, matrix = confusion["names"], np.array(confusion["matrix"])
    few = len(names) <= MAX_NAMED_CLASSES + 1
    edge = 2.5 + 0.6 * len(names) if few else 9
    figure = Figure(figsize=(edge + 1, edge), layout="constrained")
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    figure.colorbar(image, ax=axes, shrink=0.7, label="share of the row")
    if few:
        for (row, column), count in np.ndenumerate(matrix):
            dark = shares[row, column] > 0.5
            axes.text(column, row, count, ha="center", va="center", color="white" if dark else "k")
    ticks = range(len(names))
    size = "medium" if few else "xx-small"
    axes.set_xticks(ticks, [*names[:-1], "nothing"], rotation=90, fontsize=size)
    axes.set_yticks(ticks, [*names[:-1], "nothing"], fontsize=size)
    axes.set(xlabel="detected", ylabel="there")
    return figure


def alignment_chart(layers: Mapping[str, Alignment], summary: Mapping[str, Any]) -> Figure:
    """Density of score and IoU (assigned pairs, all candidates), calibration, and all layers."""
    figure = Figure(figsize=(12, 9.5), layout="constrained")
    (assigned, every), (bins, by_layer) = figure.subplots(2, 2)
    *_, (name, last) = layers.items()
    matched = last.object_ious > 0
    numbers = summary["layers"][-1]
    _density(assigned, last.object_scores[matched], last.object_ious[matched])
    assigned.set_title(
        f"{name}: one candidate per object; r = {_text(numbers['pearson'])}, "
        f"rank r = {_text(numbers['spearman'])}"
    )
    _density(every, last.scores, last.nearest_iou)
    every.set_title(
        f"{name}: all candidates; r = {_text(numbers['pearson_all'])}, "
        f"rank r = {_text(numbers['spearman_all'])}"
    )
    _calibration(bins, summary["calibration"], numbers["calibration_error"])
    _layers(by_layer, summary["layers"])
    return figure


def _density(axes: Axes, scores: np.ndarray, ious: np.ndarray) -> None:
    edges = np.linspace(0, 1, DENSITY_BINS + 1)
    if len(scores):
        counts, *_ = np.histogram2d(scores, ious, bins=[edges, edges])
        norm = LogNorm() if counts.max() > 20 else None
        shown = np.where(counts > 0, counts, np.nan).T
        image = axes.pcolormesh(edges, edges, shown, norm=norm, cmap="viridis")
        axes.figure.colorbar(image, ax=axes, label="candidates")
    axes.plot([0, 1], [0, 1], color="tab:red", linewidth=0.8)
    axes.set(xlabel="score", ylabel="IoU", xlim=(0, 1), ylim=(0, 1), aspect="equal")


def _calibration(axes: Axes, bins: Mapping[str, Any], error: float | None) -> None:
    counts = np.array(bins["counts"])
    centres = (np.arange(len(counts)) + 0.5) / len(counts)
    ious = np.array(bins["mean_ious"], dtype=float)
    scores = np.array(bins["mean_scores"], dtype=float)
    axes.bar(centres, np.nan_to_num(ious), width=0.9 / len(counts), color="tab:blue", alpha=0.6)
    axes.plot(scores, scores, "_", color="tab:red", markersize=14, label="mean score")
    for centre, count, iou in zip(centres, counts, np.nan_to_num(ious)):
        if count:
            axes.annotate(f"{count}", (centre, iou), ha="center", va="bottom", fontsize=6)
    axes.set(xlabel="score", ylabel="mean IoU with the assigned object", xlim=(0, 1), ylim=(0, 1))
    axes.set_title(f"calibration, error {_text(error)} (counts on the bars)")
    axes.legend(loc="upper left", fontsize="small")


def _layers(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    names = [row["name"] for row in rows]
    for key, label in (
        ("best_regressed_recall_1", "best-regressed recall, top N"),
        ("best_regressed_recall_2", "best-regressed recall, top 2N"),
        ("best_iou", "mean best IoU"),
        ("assigned_iou", "mean assigned IoU"),
        ("pearson", "r of score and IoU, assigned"),
    ):
        values = [np.nan if row[key] is None else row[key] for row in rows]
        _line(axes, names, values, label, marker="o")
    axes.set_title("layer by layer")
    axes.set_ylim(None if axes.dataLim.y0 < 0 else 0, 1)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    axes.tick_params(axis="x", rotation=20)


def _line(axes: Axes, x: Sequence, y: Sequence, label: str, **style: Any) -> None:
    axes.plot(x, np.array(y, dtype=float), label=label, **style)


def _text(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
