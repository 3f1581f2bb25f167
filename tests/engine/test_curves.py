"""Curves from a metrics.json: what is read, what is drawn, what happens to odd files."""

import json
import math

import matplotlib
import pytest
from PIL import Image

from aligndetr.engine.curves import draw_curves, plot_curves, read_metrics, sum_over_layers


def training_line(iteration, **more):
    return {"iteration": iteration, "total_loss": 30.0 - iteration, "lr": 1e-3, **more}


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def drawn(figure):
    """The data of each curve, by its label."""
    lines = [line for axes in figure.axes for line in axes.lines]
    return {line.get_label(): list(map(tuple, line.get_xydata())) for line in lines}


def test_each_series_keeps_its_own_iterations(tmp_path):
    lines = [training_line(9), training_line(19), {"iteration": 19, "bbox/AP": 7.5}]
    series = read_metrics(write_lines(tmp_path / "metrics.json", lines))
    assert series["total_loss"] == ([9, 19], [21.0, 11.0])
    assert series["bbox/AP"] == ([19], [7.5])


def test_a_resumed_run_overwrites_what_it_repeats(tmp_path):
    lines = [
        training_line(9),
        training_line(19),
        training_line(29),
        training_line(19, total_loss=5),
    ]
    series = read_metrics(write_lines(tmp_path / "metrics.json", lines))
    assert series["total_loss"] == ([9, 19, 29], [21.0, 5.0, 1.0])


def test_a_last_line_cut_short_is_left_out(tmp_path):
    path = write_lines(tmp_path / "metrics.json", [training_line(9)])
    path.write_text(path.read_text() + '{"iteration": 19, "total_lo')
    assert read_metrics(path)["total_loss"] == ([9], [21.0])


@pytest.mark.parametrize("bad", ["not json", "[1, 2]", '{"total_loss": 1.0}'])
def test_any_other_bad_line_is_named(tmp_path, bad):
    path = tmp_path / "metrics.json"
    path.write_text(f"{bad}\n{json.dumps(training_line(9))}\n")
    with pytest.raises(ValueError, match="line 1 is not"):
        read_metrics(path)


def test_losses_are_summed_over_layers_only():
    series = {
        "loss_class": ([9, 19], [1.0, 2.0]),
        "loss_class_0": ([9, 19], [10.0, 20.0]),
        "loss_class_1": ([9], [100.0]),
        "loss_class_dn": ([9], [5.0]),
        "loss_class_dn_0": ([9], [50.0]),
        "loss_class_enc": ([9], [7.0]),
        "total_loss": ([9], [173.0]),
    }
    assert sum_over_layers(series) == {
        "loss_class": ([9], [111.0]),  # iteration 19 lacks a layer
        "loss_class_dn": ([9], [55.0]),
        "loss_class_enc": ([9], [7.0]),
    }


def test_the_figure_shows_losses_ap_and_learning_rate():
    figure = draw_curves(
        {
            "total_loss": ([9, 19], [30.0, 20.0]),
            "loss_giou_dn": ([9, 19], [3.0, 2.0]),
            "lr": ([9, 19], [1e-3, 1e-4]),
            "bbox/AP": ([19], [8.0]),
            "bbox/AP50": ([19], [25.0]),
            "bbox/AP-tree": ([19], [8.0]),  # a class's AP: in the table, not here
        }
    )
    losses, ap, learning_rate = figure.axes
    assert set(drawn(figure)) >= {"total", "giou_dn", "bbox/AP", "bbox/AP50"}
    assert [line.get_label() for line in ap.lines] == ["bbox/AP", "bbox/AP50"]
    assert drawn(figure)["total"] == [(9, 30), (19, 20)]
    assert list(learning_rate.lines[0].get_ydata()) == [1e-3, 1e-4]
    assert losses.get_yscale() == "log"


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [{"iteration": 0}],
        [training_line(0, total_loss=math.nan)],
        [{"iteration": 3, "lr": 0.1}],
    ],
    ids=["empty", "no keys", "nan", "no loss"],
)
def test_sparse_files_give_a_picture_all_the_same(tmp_path, lines):
    out = tmp_path / "new" / "curves.png"
    plot_curves(write_lines(tmp_path / "metrics.json", lines), out)
    assert Image.open(out).width > 500
    assert [p.name for p in out.parent.iterdir()] == ["curves.png"]


def test_a_failed_drawing_keeps_the_old_picture(tmp_path, monkeypatch):
    out = tmp_path / "curves.png"
    out.write_bytes(b"the old one")
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        plot_curves(write_lines(tmp_path / "metrics.json", [training_line(9)]), out)
    assert out.read_bytes() == b"the old one"


def test_the_users_backend_stays(tmp_path, monkeypatch):
    monkeypatch.setitem(matplotlib.rcParams, "backend", "svg")
    plot_curves(write_lines(tmp_path / "metrics.json", [training_line(9)]), tmp_path / "c.png")
    assert matplotlib.rcParams["backend"] == "svg"
    assert Image.open(tmp_path / "c.png").format == "PNG"
