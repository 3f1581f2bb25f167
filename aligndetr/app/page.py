"""The page: an image in, then boxes, table and json for the threshold and classes chosen.

It talks to nobody but the browser that shows it: no share link, no analytics, no fonts or scripts
from other servers, so it works without a network.
"""

import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from aligndetr.inference import Detections, Predictor
from aligndetr.utils.extras import require

# Read when Gradio is imported, which then reports to nobody.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

LOWEST_THRESHOLD = 0.05
"""Less certain detections are not kept, so the slider ends there."""

COLUMNS = ("class", "score", "x", "y", "width", "height")
FONTS = ("system-ui", "sans-serif")
CSS = "#picture img {width: 100%; height: 100%; object-fit: contain}"
"""Small images are shown as large as there is room."""

KEPT_SECONDS = 3600
"""Uploaded images and written json files are removed after an hour."""

PREFIX = "found-"
"""How the names of our folders begin; what else lies beside them is not ours."""


def choose(found: Detections, threshold: float, classes: Sequence[str]) -> Detections:
    """Those with at least this score and of one of these classes; no class means all of them."""
    kept = found[found.scores >= threshold]
    return kept[[not classes or name in classes for name in kept.names]] if len(kept) else kept


def table_of(found: Detections) -> list[list[Any]]:
    """A row per detection: name, score, left, top, width and height in pixels, as in the json."""
    return [
        [name, round(result["score"], 3), *(round(edge, 1) for edge in result["bbox"])]
        for name, result in zip(found.names, found.to_coco(), strict=True)
    ]


def write_json(found: Detections, folder: Path) -> Path:
    """COCO's results; the image id is the file's name."""
    assert found.file_name is not None, "the page predicts files"
    stem, name = Path(found.file_name).stem, os.path.basename(found.file_name)
    _remove_old(folder)
    # A folder for each file: what another visitor downloads just now stays as it is.
    path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=folder)) / f"{stem}.json"
    path.write_text(json.dumps(found.to_coco(name)), encoding="utf-8")
    return path


def _remove_old(folder: Path) -> None:
    """What `write_json` has written more than `KEPT_SECONDS` ago. Gradio's copy goes by itself."""
    oldest = time.time() - KEPT_SECONDS
    for written in folder.glob(f"{PREFIX}*"):
        with suppress(FileNotFoundError):  # another thread was faster
            if written.stat().st_mtime < oldest:
                shutil.rmtree(written, ignore_errors=True)


class Session:
    """What the page calls: an image is predicted once, then shown as often as asked.

    Args:
        predictor: of the model.
        folder: for json files; whoever made it removes it.
        tile: as of `Predictor`.
    """

    def __init__(self, predictor: Predictor, folder: Path, tile: int | None = None):
        self.predictor = predictor
        self.folder = folder
        self.tile = tile

    def predict(self, path: str | None) -> tuple[Detections | None, str]:
        """What was found in a file, or None and what is wrong with it."""
        if path is None:
            return None, ""
        try:
            return self.predictor(path, LOWEST_THRESHOLD, tile=self.tile), ""
        except (ValueError, OSError) as error:
            return None, f"error: {str(error).replace(path, os.path.basename(path))}"

    def show(
        self, found: Detections | None, threshold: float, classes: Sequence[str], error: str
    ) -> tuple[Any, str, list[list[Any]], str | None]:
        """Picture, line of text, rows of the table, and the json's path."""
        if found is None:
            return None, error, [], None
        chosen = choose(found, threshold, classes)
        try:
            picture = chosen.plot()
        except OSError:
            return None, "error: the image is not there any more; give it again", [], None
        line = f"{len(chosen)} of the {len(found)} with a score of at least {LOWEST_THRESHOLD}"
        return picture, line, table_of(chosen), str(write_json(chosen, self.folder))


def build_page(session: Session) -> Any:
    """The page as a `gradio.Blocks`.

    Raises:
        MissingExtraError: Gradio is not installed.
    """
    gr = _gradio()
    with gr.Blocks(
        title="AlignDETR",
        analytics_enabled=False,
        delete_cache=(KEPT_SECONDS, KEPT_SECONDS),
    ) as page:
        found, error = gr.State(), gr.State("")
        with gr.Row():
            with gr.Column(scale=1):
                upload = gr.File(label="Image", type="filepath", elem_id="upload")
                threshold = gr.Slider(
                    LOWEST_THRESHOLD, 1, 0.3, step=0.01, label="Score", elem_id="threshold"
                )
                classes = gr.Dropdown(
                    list(session.predictor.class_names),
                    value=[],
                    multiselect=True,
                    label="Classes (none: all)",
                    elem_id="classes",
                )
                status = gr.Textbox(label="Found", interactive=False, elem_id="status")
                download = gr.DownloadButton("Download json", elem_id="download")
            with gr.Column(scale=2):
                picture = gr.Image(
                    label="Objects",
                    format="png",
                    height=480,
                    interactive=False,
                    buttons=["fullscreen"],
                    elem_id="picture",
                )
                table = gr.Dataframe(
                    headers=list(COLUMNS),
                    datatype=["str", *["number"] * (len(COLUMNS) - 1)],
                    interactive=False,
                    label="Detections (pixels of the image)",
                    elem_id="table",
                )
        choice, shown = [found, threshold, classes, error], [picture, status, table, download]
        private = {"api_visibility": "private", "show_progress": "minimal"}
        upload.change(session.predict, upload, [found, error], **private).then(
            session.show,
            choice,
            shown,
            trigger_mode="multiple",  # else a second file, given meanwhile, would not be shown
            **private,
        )
        gr.on(
            [threshold.change, classes.change],
            session.show,
            choice,
            shown,
            trigger_mode="always_last",  # of a slider on its way, only where it comes to rest
            api_visibility="private",
            show_progress="hidden",
        )
    return page


@contextmanager
def open_page(
    predictor: Predictor,
    host: str = "127.0.0.1",
    port: int = 7860,
    max_upload_mb: int = 50,
    tile: int | None = None,
) -> Iterator[tuple[Any, str]]:
    """Serve the page until the block ends; gives the `gradio.Blocks` and the address.

    Args:
        predictor: of the model.
        host: address to listen on; the default is reached from this machine alone.
        port: to listen on.
        max_upload_mb: larger files are refused while they come in.
        tile: as of `Predictor`, for all images.

    Raises:
        MissingExtraError: Gradio is not installed.
        OSError: the port is in use, `host` is no address of this machine, or the page does not
            answer there.
    """
    _gradio()  # its absence is the first thing to say
    _check_address(host, port)
    with tempfile.TemporaryDirectory(prefix="aligndetr-page-") as folder:
        page = build_page(Session(predictor, Path(folder), tile))
        try:
            yield page, _launch(page, host, port, max_upload_mb)
        finally:
            page.close(verbose=False)


def _launch(page: Any, host: str, port: int, max_upload_mb: int) -> str:
    """Start the server; gives its address."""
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            max_file_size=f"{max_upload_mb}mb",
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            ssr_mode=False,
            run_history=False,
            enable_monitoring=False,
            footer_links=[],
            theme=_gradio().themes.Default(font=FONTS, font_mono=("monospace",)),
            css=CSS,
        )
    except ValueError as error:
        if "is not accessible" not in str(error):
            raise
        raise OSError(  # Gradio's advice is a public link
            f"the page was started on {host}, port {port}, but does not answer there: a busy "
            f"machine may do so once (try again), and so does a proxy (set NO_PROXY={host})"
        ) from error
    return address


def _check_address(host: str, port: int) -> None:
    """Gradio's own errors would name its environment variables."""
    try:
        with socket.create_server((host, port)):
            pass
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"cannot listen on {host}, port {port}: {reason}") from error


def _gradio() -> Any:
    return require("gradio", "app", "the page")
