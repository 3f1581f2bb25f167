"""examples/quick_look.ipynb runs from its first cell to its last, and is small in git."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from tests.data.coco_json import COCO_TINY
from tests.test_own_data import SMALL

NOTEBOOK = Path(__file__).parents[1] / "examples/quick_look.ipynb"
LARGEST = 300_000  # bytes


@pytest.fixture(scope="module")
def cells():
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


def test_every_cell_runs_on_small_data(cells, tmp_path, monkeypatch, capsys):
    """The cells as they are, with other values for those that the first one sets."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["ipykernel"])
    codes = [cell for cell in cells if cell["cell_type"] == "code"]
    names = {}
    for cell in codes:
        exec("".join(cell["source"]), names)
        if "parameters" in cell["metadata"].get("tags", []):
            assert {"data", "output", "options"} <= names.keys()
            names |= {"data": str(COCO_TINY), "output": "out", "options": [*SMALL]}
    assert len(names["found"]) == 10
    assert Image.open("out/alignment/alignment.png").width > 500
    printed = capsys.readouterr().out
    assert printed.count("Start inference") == 2  # after the training and in the alignment
    assert "train 2 images" in printed
    assert "| decoder 3 |" in printed


def test_it_is_small_and_names_no_machine(cells):
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < LARGEST
    for place in ("/work/", "/home/", "/root/", "/tmp/"):
        assert place not in text
    errors = [out for cell in cells for out in cell.get("outputs", []) if "ename" in out]
    assert errors == []


def test_its_links_lead_somewhere(cells):
    text = "\n".join("".join(cell["source"]) for cell in cells)
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert len(links) >= 4
    assert [link for link in links if not (NOTEBOOK.parent / link).exists()] == []
