"""The report: its numbers are those of the json, and it needs nothing but itself."""

import json
import shutil

import pytest
from PIL import Image

from aligndetr.analysis import read_evaluation, report, write_report
from aligndetr.analysis.charts import alignment_chart, confusion_chart, curve_chart, error_chart
from aligndetr.analysis.numbers import analyse
from aligndetr.utils.html import look_up, shown
from tests.analysis.reports import Cells, write_data
from tests.browsing import needs_browser, open_browser, watch_errors

# Of each picture: its pixels across, whether it has an area on the page, and what a copy of it
# holds.
PICTURES = """() => [...document.images].map(image => {
    const canvas = document.createElement("canvas");
    canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
    const drawing = canvas.getContext("2d");
    drawing.drawImage(image, 0, 0);
    const data = drawing.getImageData(0, 0, canvas.width, canvas.height).data;
    const tones = new Set();
    for (let i = 0; i < data.length; i += 4) tones.add(data[i]);
    const area = image.getBoundingClientRect();
    return {name: image.alt, decoded: image.naturalWidth, tones: tones.size,
            shown: area.width > 50 && area.height > 20 && image.checkVisibility()};
})"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def evaluation(data):
    truth, results, images = data
    return read_evaluation("run <1>", results, truth, images)


@pytest.fixture(scope="module")
def written(evaluation, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    content = write_report(evaluation, folder)
    return content, folder / "report.html", folder / "report.json"


def test_json_holds_what_is_returned(written):
    content, _, numbers = written
    assert json.loads(numbers.read_text()) == content


def test_every_number_of_the_page_is_that_of_the_json(written):
    _, page, numbers = written
    content = json.loads(numbers.read_text())
    cells = Cells(page.read_text()).numbers
    assert len(cells) > 100
    for key, digits, text in cells:
        assert text == shown(look_up(content, key), int(digits)), key
    keys = {key for key, *_ in cells}
    for part in ("metrics.AP", "classes.1.AP", "errors.kinds.5.gain", "operating_point.score",
                 "alignment.layers.0.pearson", "sizes.1.objects"):  # fmt: skip
        assert part in keys


def test_numbers_by_hand(written):
    content, _, _ = written
    assert [content[key] for key in ("images", "objects", "detections")] == [3, 4, 6]
    counts = {kind["name"]: kind["count"] for kind in content["errors"]["kinds"]}
    assert counts == dict.fromkeys(counts, 1)  # one of each
    # Cats: the first detection is right, 1 of 3 found: 34 of 101 recalls. Dogs: 0.
    assert content["errors"]["AP50"] == pytest.approx(100 * 34 / 101 / 2)
    assert content["metrics"]["AP50"] == pytest.approx(content["errors"]["AP50"])
    assert [row["objects"] for row in content["classes"]] == [3, 1]
    assert content["classes"][0]["AP50"] == pytest.approx(100 * 34 / 101)
    assert content["operating_point"]["score"] == 0.9
    # At 0.9 the first detection is all there is.
    assert content["confusion"]["matrix"] == [[1, 0, 2], [0, 0, 1], [0, 0, 0]]
    names = [row["file_name"] for row in content["image_quality"]]
    assert names == ["b & <b>.png", "c.png", "a.png"]
    assert content["metrics"]["APl"] is None


def test_charts_show_the_numbers_of_the_json(written, evaluation):
    content, _, _ = written
    bars = error_chart(content["errors"]).axes[0].patches
    assert [bar.get_width() for bar in bars] == [k["gain"] for k in content["errors"]["kinds"]]
    lines = curve_chart(content["curves"], content["classes"]).axes[0].lines
    assert lines[0].get_ydata().tolist() == content["curves"]["0.50"]
    texts = [t.get_text() for t in confusion_chart(content["confusion"]).axes[0].texts]
    assert texts == [str(n) for row in content["confusion"]["matrix"] for n in row]
    _, _, layers = analyse(evaluation)
    drawn = alignment_chart(layers, content["alignment"]).axes
    bins = next(axes for axes in drawn if axes.get_title().startswith("calibration"))
    expected = [iou or 0.0 for iou in content["alignment"]["calibration"]["mean_ious"]]
    assert [bar.get_height() for bar in bins.patches] == expected


def test_the_page_has_its_pictures_inside_and_names_are_escaped(written):
    text = written[1].read_text()
    addresses = Cells(text).addresses
    assert len(addresses) == 4 + 3  # charts, and each image once
    assert all(address.startswith("data:image/") for address in addresses)
    assert "http" not in text
    assert "cat &lt;&amp;&gt;" in text
    assert "cat <&>" not in text
    assert "b &amp; &lt;b&gt;.png" in text


@needs_browser()
def test_a_browser_shows_it_without_a_network(written):
    content, file, _ = written
    with open_browser() as browser:
        page = browser.new_context(offline=True).new_page()
        errors, asked = watch_errors(page), []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(file.as_uri(), wait_until="load")
        cells = Cells(page.content()).numbers
        seen = page.evaluate(PICTURES)
    assert errors == []
    assert [url for url in asked if not url.startswith("data:")] == [file.as_uri()]
    assert ["metrics.AP50", "1", shown(content["metrics"]["AP50"], 1)] in cells
    assert len(seen) == 4 + 3
    for picture in seen:
        assert picture["decoded"] > 100, picture["name"]
        assert picture["shown"], picture["name"]
        assert picture["tones"] > 1, picture["name"]  # not one even surface


@pytest.fixture
def no_charts(monkeypatch):
    monkeypatch.setattr(report, "as_picture", lambda figure: Image.new("L", (1, 1)))


def test_a_missing_image_is_named_and_the_rest_goes_on(data, tmp_path, no_charts):
    truth, results, images = data
    copy = shutil.copytree(images, tmp_path / "val")
    (copy / "c.png").unlink()
    write_report(read_evaluation("x", results, truth, copy), tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert len(Cells(text).addresses) == 4 + 2
    assert "<p>c.png: " in text


def test_without_images_the_numbers_remain(data, written, tmp_path, no_charts):
    truth, results, _ = data
    content = write_report(read_evaluation("run <1>", results, truth), tmp_path)
    assert content == written[0]
    assert "not at hand" in (tmp_path / "report.html").read_text()
