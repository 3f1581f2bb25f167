"""The page: what it calls, and what a browser shows of it."""

import json
import os
import shutil
import socket
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image

from aligndetr.app import open_page
from aligndetr.app.page import (
    COLUMNS,
    KEPT_SECONDS,
    LOWEST_THRESHOLD,
    Session,
    choose,
    table_of,
)
from aligndetr.data import DetrDatasetMapper
from aligndetr.inference import Predictor
from tests.browsing import needs_browser, open_browser, watch_errors

NAMES = ["cat", "bus"]
SCORES = [0.9, 0.5, 0.2, 0.1, 0.02]
CLASSES = [1, 0, 1, 0, 1]


class Five(torch.nn.Module):
    """Finds five objects in every image, of the scores and classes above; counts the images."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.num_images = 0

    def forward(self, batch):
        self.num_images += len(batch)
        instances = Instances((batch[0]["height"], batch[0]["width"]))
        corners = torch.arange(5.0)[:, None] * 9.25
        instances.pred_boxes = Boxes(torch.cat([corners, corners, corners + 8, corners + 6.5], 1))
        instances.scores, instances.pred_classes = torch.tensor(SCORES), torch.tensor(CLASSES)
        return [{"instances": instances}]


def five_predictor():
    return Predictor(Five(), DetrDatasetMapper([], None, is_train=False), NAMES)


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    Image.fromarray(np.full((60, 80, 3), 90, np.uint8)).save(path)
    return str(path)


@pytest.fixture
def session(tmp_path):
    return Session(five_predictor(), tmp_path)


def test_an_image_is_predicted_once_and_shown_for_any_choice(session, photo):
    found, error = session.predict(photo)
    assert (len(found), error) == (4, "")  # 0.02 is below what is kept
    for threshold, classes, count in [
        (LOWEST_THRESHOLD, [], 4), (0.15, [], 3), (0.5, [], 2), (0.95, [], 0),
        (LOWEST_THRESHOLD, ["bus"], 2), (0.5, ["bus"], 1), (0.6, ["cat"], 0),
        (0.5, ["cat", "bus"], 2),
    ]:  # fmt: skip
        picture, line, rows, path = session.show(found, threshold, classes, error)
        assert picture.size == (80, 60)
        assert line.startswith(f"{count} of the 4 ")
        assert len(rows) == len(json.loads(Path(path).read_text())) == count
    assert session.predictor.model.num_images == 1


def test_the_json_holds_what_the_table_shows_as_cocos_results(session, photo):
    found, _ = session.predict(photo)
    *_, rows, path = session.show(found, 0.15, [], "")
    results = json.loads(Path(path).read_text())
    assert Path(path).name == "photo.json"
    assert results[1] == {
        "image_id": "photo.png", "category_id": 0, "category_name": "cat",
        "bbox": [9.25, 9.25, 8, 6.5], "score": 0.5,
    }  # fmt: skip
    assert rows[1] == ["cat", 0.5, 9.2, 9.2, 8, 6.5]
    assert len(rows[1]) == len(COLUMNS)
    assert rows == table_of(choose(found, 0.15, []))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_text("no picture"), "error: 'it.png' is not an image"),
        (lambda path: path.touch(), "error: 'it.png' is not an image"),
        (lambda path: path.mkdir(), "error: 'it.png' is a folder"),
        (lambda path: Image.new("I;16", (9, 9)).save(path), "more than 8 bits per channel"),
        (lambda path: Image.new("1", (99, 99)).save(path), "has 99 x 99 pixels"),
        (lambda path: Image.new("L", (9, 9)).save(path, save_all=True, format="GIF",
            append_images=[Image.new("L", (9, 9), 200)]), "has 2 frames"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_image_gets_a_line_that_says_so(make, message, session, tmp_path):
    make(tmp_path / "it.png")
    session.predictor.max_pixels = 99 * 98
    found, error = session.predict(str(tmp_path / "it.png"))
    assert found is None
    assert message in error
    assert str(tmp_path) not in error  # where the server keeps files is nobody's business
    assert session.show(found, 0.3, [], error) == (None, error, [], None)


def test_grey_cmyk_turned_and_one_pixel_images_are_predicted(session, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (30, 20)).save(tmp_path / "grey.png")
    Image.new("CMYK", (30, 20)).save(tmp_path / "cmyk.jpg")
    Image.new("RGB", (30, 20)).save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    sizes = {}
    for path in tmp_path.glob("*.*g"):
        found, error = session.predict(str(path))
        assert error == ""
        picture, *_ = session.show(found, 0.3, [], error)
        sizes[path.stem] = picture.size
    assert sizes == {"grey": (30, 20), "cmyk": (30, 20), "turned": (20, 30), "dot": (1, 1)}


def test_an_image_that_is_gone_is_asked_for_again(session, photo, tmp_path):
    found, _ = session.predict(shutil.copy(photo, tmp_path / "copy.png"))
    (tmp_path / "copy.png").unlink()
    assert "give it again" in session.show(found, 0.3, [], "")[1]


def test_json_files_of_an_hour_ago_are_removed_and_nothing_else(session, photo, tmp_path):
    found, _ = session.predict(photo)
    old, fresh = (Path(session.show(found, 0.3, [], "")[-1]) for _ in range(2))
    others = tmp_path / "others"
    others.mkdir()
    for folder in (old.parent, others):
        os.utime(folder, (0, time.time() - KEPT_SECONDS - 9))
    os.utime(fresh.parent, (0, time.time() - KEPT_SECONDS + 60))
    last = Path(session.show(found, 0.3, [], "")[-1])
    assert set(tmp_path.iterdir()) == {fresh.parent, last.parent, others}
    assert fresh.exists()


def test_no_image_is_no_error(session):
    assert session.predict(None) == (None, "")


in_a_browser = needs_browser("gradio")


@pytest.fixture(scope="module")
def served():
    """(model, address) of a page that takes uploads of up to 1 MB."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    predictor = five_predictor()
    with open_page(predictor, port=port, max_upload_mb=1) as (_, address):
        yield predictor.model, address


@pytest.fixture(scope="module")
def browser():
    with open_browser() as browser:
        yield browser


class Visit:
    """The page in a browser without a network but this machine; collects what goes wrong."""

    STATUS = "#status textarea, #status input"

    def __init__(self, browser, address):
        self.page = browser.new_page()
        self.page.set_default_timeout(60_000)
        self.errors, self.outside = watch_errors(self.page), []
        self.page.route("**/*", self._stay_inside)
        self.page.goto(address)

    def _stay_inside(self, route):
        url = route.request.url
        if url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            route.continue_()
        else:
            self.outside.append(url)
            route.abort()

    def upload(self, path):
        self.page.set_input_files("#upload input[type=file]", path)

    def wait_for_status(self, start):
        self.page.wait_for_function(
            "([where, start]) => document.querySelector(where)?.value.startsWith(start)",
            arg=[self.STATUS, start],
        )

    def rows(self, count):
        """Of the table, once it has as many."""
        self.page.wait_for_function(
            "count => document.querySelectorAll('#table [role=row][data-index]').length == count",
            arg=count,
        )
        cells = self.page.locator("#table [role=row][data-index]").evaluate_all(
            """rows => rows.map(row => [...row.querySelectorAll('[role=gridcell]')]
                                        .map(cell => cell.innerText.trim()))"""
        )
        return [[row[0], *map(float, row[1:])] for row in cells]

    def set_threshold(self, value):
        self.page.locator("#threshold input[type=range]").evaluate(
            """(slider, value) => {
                slider.value = value;
                slider.dispatchEvent(new Event('input', {bubbles: true}));
                slider.dispatchEvent(new Event('change', {bubbles: true}));
            }""",
            value,
        )

    def download(self):
        with self.page.expect_download() as download:
            self.page.click("#download")
        return json.loads(Path(download.value.path()).read_text())


def as_rows(results):
    return [
        [r["category_name"], round(r["score"], 3), *(round(edge, 1) for edge in r["bbox"])]
        for r in results
    ]


@in_a_browser
def test_a_visit(served, browser, photo, tmp_path):
    model, address = served
    visit = Visit(browser, address)
    visit.upload(photo)
    visit.wait_for_status("2 of the 4 ")  # 0.3 is where the slider starts
    assert [row[0] for row in visit.rows(2)] == ["bus", "cat"]
    assert as_rows(visit.download()) == visit.rows(2)
    visit.page.wait_for_selector("#picture img")

    visit.set_threshold(0.15)
    visit.wait_for_status("3 of the 4 ")
    assert [row[1] for row in visit.rows(3)] == [0.9, 0.5, 0.2]
    assert as_rows(visit.download()) == visit.rows(3)

    visit.page.click("#classes input")
    visit.page.get_by_role("option", name="cat").click()
    visit.wait_for_status("1 of the 4 ")
    assert [row[0] for row in visit.rows(1)] == ["cat"]
    assert as_rows(visit.download()) == visit.rows(1)
    assert model.num_images == 1  # the model ran once

    # Nothing asked another server for anything, nothing complained.
    assert visit.outside == []
    assert visit.errors == []
    visit.page.close()


@in_a_browser
def test_a_file_that_is_no_image_is_answered_on_the_page(served, browser, photo, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    visit = Visit(browser, served[1])
    visit.upload(tmp_path / "text.png")
    visit.wait_for_status("error: 'text.png' is not an image")
    assert visit.rows(0) == []
    # And the page goes on.
    visit.page.get_by_label("Remove this file").or_(visit.page.get_by_label("Clear")).first.click()
    visit.upload(photo)
    visit.wait_for_status("2 of the 4 ")
    assert visit.errors == []
    visit.page.close()


@in_a_browser
def test_a_file_that_is_too_large_is_refused(served, browser, tmp_path):
    model, address = served
    before = model.num_images
    (tmp_path / "large.png").write_bytes(bytes(2_000_000))
    visit = Visit(browser, address)
    visit.upload(tmp_path / "large.png")
    visit.page.get_by_text("exceed the maximum allowed size").first.wait_for()
    # The browser has said so; the server says so too, to whoever asks it without one.
    answer = visit.page.request.post(
        f"{address}gradio_api/upload",
        multipart={"files": {"name": "a.png", "mimeType": "image/png", "buffer": bytes(2_000_000)}},
    )
    assert answer.status == 413
    assert model.num_images == before
    visit.page.close()


@in_a_browser
def test_a_port_in_use_is_named(served):
    port = int(served[1].rstrip("/").rsplit(":", 1)[1])
    with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1, port {port}: "):
        open_page(five_predictor(), port=port).__enter__()


def test_a_page_that_does_not_answer_says_what_may_be_wrong(monkeypatch):
    """Gradio asks its own address once; behind a proxy, or late, it advises a public link."""
    gr = pytest.importorskip("gradio")

    def launch(*args, **kwargs):
        raise ValueError("When localhost is not accessible, a shareable link must be created.")

    monkeypatch.setattr(gr.Blocks, "launch", launch)
    with pytest.raises(OSError, match=r"does not answer there: .*try again.*NO_PROXY=127\.0\.0\.1"):
        open_page(five_predictor(), port=0).__enter__()
