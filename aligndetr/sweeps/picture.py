"""A picture of a sweep: what each run came to, by metric, and the mean of each experiment."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from aligndetr.utils.files import atomic_path


def plot_results(
    values: Mapping[str, Sequence[Sequence[float]]], columns: Sequence[str], png: Path
) -> None:
    """Draw as `draw_results` to a file, which appears complete or not at all."""
    with atomic_path(png) as temporary:
        draw_results(values, columns).savefig(temporary, format="png", dpi=120)


def draw_results(values: Mapping[str, Sequence[Sequence[float]]], columns: Sequence[str]) -> Figure:
    """A panel for each metric, in it a line for each experiment: dots are runs, the bar their mean.

    Args:
        values: by experiment, for each of `columns`, the values of its finished runs.
        columns: names of metrics, "bbox/AP"; at least one.
    """
    experiments = list(values)
    names = max(map(len, experiments), default=0)
    figure = Figure(
        figsize=(0.08 * names + 1.9 * len(columns) + 0.4, 0.4 * len(experiments) + 1.1),
        layout="constrained",
    )
    panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for column, (panel, name) in enumerate(zip(panels, columns)):
        for row, experiment in enumerate(experiments):
            of_runs = values[experiment][column]
            panel.plot(of_runs, [row] * len(of_runs), "o", color="tab:blue", alpha=0.6, ms=5)
            if of_runs:
                mean = sum(of_runs) / len(of_runs)
                panel.plot([mean], [row], "|", color="black", ms=18, mew=2)
        panel.set_title(name.replace("/", "\n").replace("_", " "), fontsize="small")
        panel.xaxis.set_major_locator(MaxNLocator(3))
        panel.grid(alpha=0.3)
    panels[0].set_yticks(range(len(experiments)), experiments, fontsize="small")
    panels[0].set_ylim(len(experiments) - 0.5, -0.5)  # the first on top, as in the table
    return figure
