"""metrics.json of a run that was interrupted is read as far as it is whole."""

import json

import pytest

from aligndetr.engine.metrics_file import cut_at, has_evaluation

TRAINED, EVALUATED = {"iteration": 3, "total_loss": 1.0}, {"iteration": 3, "bbox/AP": 5.0}


def write(folder, *lines):
    path = folder / "metrics.json"
    path.write_text("".join(x if isinstance(x, str) else json.dumps(x) + "\n" for x in lines))
    return path


def test_a_line_tells_of_an_evaluation(tmp_path):
    assert has_evaluation(write(tmp_path, TRAINED, EVALUATED), 4)
    assert not has_evaluation(write(tmp_path, TRAINED), 4)
    assert not has_evaluation(write(tmp_path, TRAINED, EVALUATED), 8)


def test_no_file_tells_of_none_and_is_not_cut(tmp_path):
    assert not has_evaluation(tmp_path / "metrics.json", 4)
    cut_at(tmp_path / "metrics.json", 4)
    assert list(tmp_path.iterdir()) == []


def test_lines_of_iterations_that_are_done_again_go_and_a_last_evaluation_stays(tmp_path):
    begun = {"iteration": 4, "eta_seconds": 22.9}  # written where another process had died
    path = write(tmp_path, TRAINED, EVALUATED, begun)
    cut_at(path, 4)
    kept = path.read_text()
    assert kept == json.dumps(TRAINED) + "\n" + json.dumps(EVALUATED) + "\n"

    made_up_for = json.dumps(EVALUATED | {"iteration": 4}) + "\n"
    path.write_text(kept + made_up_for + json.dumps(TRAINED | EVALUATED | {"iteration": 4}) + "\n")
    cut_at(path, 4)
    assert path.read_text() == kept + made_up_for


NOT_WHOLE = {
    "cut": '{"iteration": 3, "bb',
    "no end": json.dumps(EVALUATED),
    "no json": "{]\n",
    "no dict": "[3]\n",
    "no iteration": '{"bbox/AP": 5.0}\n',
}


@pytest.mark.parametrize("line", NOT_WHOLE.values(), ids=NOT_WHOLE)
def test_what_stands_at_and_behind_a_line_that_is_not_whole_goes(tmp_path, line):
    path = write(tmp_path, TRAINED, line, *([EVALUATED] if line.endswith("\n") else []))
    assert not has_evaluation(path, 4)
    before = path.read_text()
    cut_at(path, 4)
    assert path.read_text() == json.dumps(TRAINED) + "\n"
    assert (tmp_path / "metrics.before_4.json").read_text() == before
