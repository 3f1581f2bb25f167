"""Pages that need no other file: numbers in tables, pictures inside.

A cell that shows a number of a report's json says which (`data-key`), so that the two can be held
against each other.
"""

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from PIL import Image

STYLE = (
    "body{font-family:sans-serif;max-width:80em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse}td,th{padding:.2em .8em;text-align:left;vertical-align:top}"
    "td[data-key]{text-align:right;font-variant-numeric:tabular-nums}"
    "tr:nth-child(even) td{background:#f4f4f4}.error{color:#b00}.warning{color:#960}"
    "img{margin:4px;max-width:100%}figure{display:inline-block;margin:4px}figcaption{color:#555}"
)


def page(title: str, parts: Iterable[str]) -> str:
    """A whole document; `parts` are HTML."""
    head = f"<meta charset='utf-8'><title>{html.escape(title)}</title><style>{STYLE}</style>"
    return "\n".join([f"<!doctype html>{head}<h1>{html.escape(title)}</h1>", *parts])


def embedded(picture: Image.Image, caption: str = "", format: str = "png") -> str:
    """The picture inside the page, as "png" or, which is smaller for photographs, "jpeg"."""
    buffer = io.BytesIO()
    picture.save(buffer, format=format, quality=88)
    data = base64.b64encode(buffer.getvalue()).decode()
    alt = html.escape(caption, quote=True)
    image = f"<img alt='{alt}' src='data:image/{format};base64,{data}'>"
    if not caption:
        return image
    return f"<figure>{image}<figcaption>{html.escape(caption)}</figcaption></figure>"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows of cells, each "<td…>…" as `text_cell` and `number_cell` make them."""
    head = "".join(f"<th>{html.escape(name)}" for name in header)
    return f"<table><tr>{head}" + "".join(f"<tr>{''.join(row)}" for row in rows) + "</table>"


def text_cell(text: Any) -> str:
    return f"<td>{html.escape(str(text))}"


def number_cell(content: Mapping | Sequence, key: str, digits: int = 1) -> str:
    """The number at `key` ("classes.3.AP": names and positions) of a json's content."""
    return f"<td data-key='{key}' data-digits='{digits}'>{shown(look_up(content, key), digits)}"


def look_up(content: Mapping | Sequence, key: str) -> Any:
    """What lies at "classes.3.AP"."""
    for part in key.split("."):
        content = content[int(part)] if isinstance(content, Sequence) else content[part]
    return content


def shown(value: float | int | None, digits: int) -> str:
    """As a page shows a number; a dash for None and NaN."""
    if value is None or value != value:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.{digits}f}"
