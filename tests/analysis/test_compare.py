"""Runs side by side: what is written, what the numbers are, what is refused."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from PIL import Image

from aligndetr.analysis import compare_runs, comparison_of, read_runs, report
from aligndetr.analysis.compare import comparison_chart, config_differences
from aligndetr.utils.html import look_up, shown
from tests.analysis.reports import BOX, CAT, Cells, config_yaml, write_data

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def runs(tmp_path):
    """Two runs on the same data: the second's detections are one more, and its rate is higher."""
    _, results, _ = write_data(tmp_path / "data")
    found = json.loads(results.read_text())
    more = {"image_id": 3, "category_id": CAT, "bbox": BOX, "score": 0.85}
    for name, rate, detections, ap in (("a", 0.1, found, 10.0), ("b", 0.2, [*found, more], 20.0)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "coco_instances_results.json").write_text(json.dumps(detections))
        (folder / "config.yaml").write_text(
            f"optimizer: {{lr: {rate}}}\ntrain: {{output_dir: {folder}, seed: 1}}\n"
            + config_yaml(tmp_path / "data")
        )
        lines = [{"iteration": 9, "total_loss": 3.0}, {"iteration": 9, "bbox/AP": ap}]
        (folder / "metrics.json").write_text("".join(json.dumps(x) + "\n" for x in lines))
    return tmp_path / "a", tmp_path / "b"


def test_numbers(runs):
    content = compare_runs(read_runs(runs), num_resamples=20)
    ap50 = [run["metrics"]["AP50"] for run in content["runs"]]
    # Of three cats the first run finds one (34 of 101 recalls) and the second two (67) before
    # anything is wrong; dogs have AP 0.
    assert ap50 == pytest.approx([100 * 34 / 101 / 2, 100 * 67 / 101 / 2])
    (found,) = content["differences"]
    assert found["AP50"]["value"] == pytest.approx(ap50[1] - ap50[0])
    assert 0 <= found["AP50"]["low"] <= found["AP50"]["high"]
    assert found["AP50"]["p_better"] > 0.5
    assert content["config"] == [{"key": "optimizer.lr", "values": ["0.1", "0.2"]}]


def test_page_and_json_say_the_same(runs, tmp_path):
    printed = comparison_of(runs, output=tmp_path / "out", resamples=20)
    assert "| b     | " in printed
    assert "keys of the configs that differ: 1" in printed
    content = json.loads((tmp_path / "out" / "compare.json").read_text())
    text = (tmp_path / "out" / "compare.html").read_text()
    cells = Cells(text)
    assert len(cells.numbers) == 2 * 3 + 3 * 4
    for key, digits, number in cells.numbers:
        assert number == shown(look_up(content, key), int(digits))
    assert all(address.startswith("data:image/") for address in cells.addresses)
    assert "<td>optimizer.lr<td>0.1<td>0.2" in text


def test_curves_lie_over_each_other(runs):
    ap, _, loss = comparison_chart(read_runs(runs)).axes
    assert [(line.get_label(), *line.get_ydata()) for line in ap.lines] == [("a", 10), ("b", 20)]
    assert [line.get_ydata().tolist() for line in loss.lines] == [[3.0], [3.0]]


def test_a_run_that_was_not_evaluated_is_compared_as_far_as_it_can_be(runs):
    (runs[1] / "coco_instances_results.json").unlink()
    content = compare_runs(read_runs(runs), num_resamples=5)
    assert content["differences"] == [None]
    assert content["runs"][1]["metrics"]["AP"] is None
    assert [row["key"] for row in content["config"]] == ["optimizer.lr"]
    comparison_of(runs, output=runs[0] / "out", resamples=5)
    page = (runs[0] / "out" / "compare.html").read_text()
    assert "<td>b<td>one of the two was not evaluated" in page


def test_keys_that_only_one_config_has():
    rows = config_differences([{"a": 1, "b": None, "train.output_dir": "x"}, {"b": None, "c": 2}])
    assert rows == [{"key": "a", "values": ["1", ""]}, {"key": "c", "values": ["", "2"]}]


def test_runs_of_one_name_are_told_apart_by_their_folders(runs, tmp_path):
    again = tmp_path / "again" / "a"
    again.mkdir(parents=True)
    (again / "config.yaml").write_text(OmegaConf.to_yaml({"train": {"seed": 2}}))
    assert [run.name for run in read_runs([runs[0], again])] == [str(runs[0]), str(again)]


def test_the_snippet_of_the_docs(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "as_picture", lambda figure: Image.new("L", (1, 1)))
    (tmp_path / "output").mkdir()
    for folder, name in zip(runs, ("demo", "other")):
        folder.rename(tmp_path / "output" / name)
    for name in ("instances_val.json", "results.json", "val"):
        (tmp_path / name).symlink_to(tmp_path / "data" / name)
    page = (ROOT / "docs/analysis.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", page, re.S)
    names = {}
    exec(snippet, names)  # what a reader would paste
    assert [run["name"] for run in names["content"]["runs"]] == ["demo", "other"]
    assert (tmp_path / "output/mine/report.html").is_file()


def test_what_cannot_be_compared_is_named(runs, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="needs two or more"):
        read_runs(runs[:1])
    with pytest.raises(ValueError, match="is not the folder of a run"):
        read_runs([runs[0], tmp_path / "data"])
    monkeypatch.setattr(sys, "argv", ["compare_runs.py", str(runs[0])])
    with pytest.raises(SystemExit, match="^error: 1 runs are named"):
        runpy.run_path(str(ROOT / "tools/compare_runs.py"), run_name="__main__")
