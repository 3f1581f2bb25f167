"""The picture of a sweep shows every run and the mean of each experiment."""

from aligndetr.sweeps.picture import draw_results

VALUES = {"tau=1.5": [[10.0, 14.0], [0.5]], "tau=3": [[20.0], []]}


def drawn(panel, marker):
    """(value, row) of all points with this marker."""
    lines = [line for line in panel.get_lines() if line.get_marker() == marker]
    return [(x, y) for line in lines for x, y in zip(*line.get_data(), strict=True)]


def test_a_dot_for_each_run_and_a_bar_for_the_mean():
    figure = draw_results(VALUES, ["bbox/AP", "alignment/pearson"])
    ap, pearson = figure.axes
    assert drawn(ap, "o") == [(10.0, 0), (14.0, 0), (20.0, 1)]
    assert drawn(ap, "|") == [(12.0, 0), (20.0, 1)]
    assert drawn(pearson, "o") == drawn(pearson, "|") == [(0.5, 0)]
    assert ap.get_title() == "bbox\nAP"
    assert [label.get_text() for label in ap.get_yticklabels()] == list(VALUES)
    assert ap.yaxis_inverted()  # the first experiment on top, as in the table
