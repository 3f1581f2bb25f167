"""Boxes on images, with class and score, legible on small tiles and in crowded scenes.

Texts may be in Latin, Greek or Cyrillic letters; Chinese, Japanese and Korean ones become empty
boxes.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from aligndetr.utils.files import atomic_path

Color = tuple[int, int, int]
Rectangle = tuple[float, float, float, float]  # left, top, right, bottom

# Okabe and Ito's palette for colour-blind readers without black, in an order that stands out
# from vegetation and asphalt (https://jfly.uni-koeln.de/color/).
PALETTE: list[Color] = [
    (240, 228, 66),
    (86, 180, 233),
    (230, 159, 0),
    (204, 121, 167),
    (0, 158, 115),
    (213, 94, 0),
    (0, 114, 178),
]
CROWD_COLOR: Color = (170, 170, 170)
BACKGROUND: Color = (255, 255, 255)
INK: Color = (20, 20, 20)
GAP = 8


@dataclass(frozen=True)
class DrawnBoxes:
    """What to draw on one image.

    Attributes:
        boxes: (N, 4), xyxy in pixels of the image.
        class_ids: (N,) ints; they pick the colour.
        captions: N short texts; "" writes nothing.
        crowd: (N,) bools; crowd regions are grey.
    """

    boxes: np.ndarray
    class_ids: Sequence[int]
    captions: Sequence[str]
    crowd: Sequence[bool]

    def __post_init__(self):
        lengths = {len(self.boxes), len(self.class_ids), len(self.captions), len(self.crowd)}
        if len(lengths) != 1:
            raise ValueError(
                f"got {len(self.boxes)} boxes, {len(self.class_ids)} class ids, "
                f"{len(self.captions)} captions and {len(self.crowd)} crowd flags; "
                "expected one of each per box"
            )


def draw_boxes(
    image: np.ndarray, drawn: DrawnBoxes, scale: float = 1.0, line_width: int = 2
) -> Image.Image:
    """Draw boxes on an enlarged copy of an image.

    Captions are put where they cover no other one, or as little of others as can be.

    Args:
        image: (H, W, 3) uint8, RGB.
        scale: pixels of the result per pixel of the image; lines and text are as thick whatever
            the scale, so that small objects stay visible.
        line_width: of frames, in pixels of the result; the text is six times as high.

    Returns:
        An RGB image of about (H * scale, W * scale).
    """
    height, width = image.shape[:2]
    size = max(1, round(width * scale)), max(1, round(height * scale))
    canvas = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(canvas)
    boxes = np.asarray(drawn.boxes, dtype=float).reshape(-1, 4) * scale
    colors = [
        CROWD_COLOR if crowd else PALETTE[class_id % len(PALETTE)]
        for class_id, crowd in zip(drawn.class_ids, drawn.crowd)
    ]
    for box, color in zip(boxes, colors):
        _draw_frame(pen, box, color, line_width)
    # All texts after all frames: no frame may cross a text.
    taken: list[Rectangle] = []
    for box, color, caption in zip(boxes, colors, drawn.captions):
        if caption:
            taken.append(_draw_caption(pen, size, box, color, caption, 6 * line_width, taken))
    return canvas


def _draw_frame(pen: ImageDraw.ImageDraw, box: np.ndarray, color: Color, width: int) -> None:
    left, top, right, bottom = box
    if right < left or bottom < top:
        raise ValueError(f"cannot draw box {box.tolist()}; expected xyxy with x0 <= x1, y0 <= y1")
    # A dark rim on both sides keeps the frame visible on a ground of its own colour.
    for outset, rim in ((1, INK), (-width, INK), *((-inset, color) for inset in range(width))):
        outer = (left - outset, top - outset, right + outset, bottom + outset)
        if outer[0] <= outer[2] and outer[1] <= outer[3]:
            pen.rectangle(outer, outline=rim)


def _draw_caption(
    pen: ImageDraw.ImageDraw,
    size: tuple[int, int],
    box: np.ndarray,
    color: Color,
    caption: str,
    font_size: int,
    taken: Sequence[Rectangle],
) -> Rectangle:
    """Returns where it stands."""
    font = _font(font_size)
    text_left, text_top, text_right, text_bottom = pen.textbbox((0, 0), caption, font=font)
    width, height = text_right - text_left + 4, text_bottom - text_top + 4
    x, y = place_caption(box, width, height, size, taken)
    pen.rectangle((x, y, x + width - 1, y + height - 1), fill=color)
    pen.text((x + 2 - text_left, y + 2 - text_top), caption, font=font, fill=INK)
    return x, y, x + width, y + height


def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib: Pillow's own knows the letters of English only."""
    path = os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return ImageFont.truetype(path, size)


def place_caption(
    box: np.ndarray,
    width: float,
    height: float,
    size: tuple[int, int],
    taken: Sequence[Rectangle],
) -> tuple[float, float]:
    """Left top corner for a caption of this width and height: the first that covers nothing of
    what is `taken`, in an image of `size` (width, height); else the first that covers the least."""
    places = _places_of_caption(box, width, height, size)
    return min(places, key=lambda place: _covered_area(place, width, height, taken))


def _places_of_caption(
    box: np.ndarray, width: float, height: float, size: tuple[int, int]
) -> list[tuple[float, float]]:
    """Left top corners in the order of preference: above the box where there is room, else inside
    it; then below it and along its sides. Never beyond the image."""
    left, top, right, bottom = box
    above = top - height if top >= height else top + 1
    corners = [
        (left - 1, above),
        (right - width, above),
        (left - 1, bottom),
        (right - width, bottom),
        (left - 1, top + 1),
        *((right + 1, y) for y in np.arange(top, bottom, height)),
        *((left - width - 1, y) for y in np.arange(top, bottom, height)),
    ]
    x_end, y_end = max(size[0] - width, 0), max(size[1] - height, 0)
    return [(min(max(x, 0), x_end), min(max(y, 0), y_end)) for x, y in corners]


def _covered_area(
    corner: tuple[float, float], width: float, height: float, taken: Sequence[Rectangle]
) -> float:
    x, y = corner
    return sum(
        max(0, min(x + width, right) - max(x, left)) * max(0, min(y + height, bottom) - max(y, top))
        for left, top, right, bottom in taken
    )


@dataclass(frozen=True)
class SheetRow:
    """One image of a sheet: its pixels, what is true and what was predicted."""

    title: str
    image: np.ndarray
    truth: DrawnBoxes
    predictions: DrawnBoxes


def draw_sheet(
    rows: Sequence[SheetRow],
    out_png: str | os.PathLike,
    heading: str,
    tile_edge: int = 400,
    columns: int = 3,
) -> None:
    """Write pairs of pictures, ground truth left and predictions right, to one file.

    Args:
        rows: the images, drawn from left to right and from top to bottom.
        out_png: where to write; appears complete or not at all.
        heading: one line at the top.
        tile_edge: pixels of the longer edge of each picture; the images are scaled to it.
        columns: pairs next to each other.

    Raises:
        ValueError: no images.
    """
    write_sheet([_draw_pair(row, tile_edge) for row in rows], out_png, heading, columns)


def write_sheet(
    pictures: Sequence[Image.Image], out_png: str | os.PathLike, heading: str, columns: int
) -> None:
    """Write pictures to one file, in rows of `columns`; args and errors as of `draw_sheet`."""
    if not pictures:
        raise ValueError("a sheet needs at least one image, got none")
    columns = min(columns, len(pictures))
    cell_width = max(picture.width for picture in pictures) + 2 * GAP
    cell_height = max(picture.height for picture in pictures) + 2 * GAP
    top = 48
    num_rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * cell_width, top + num_rows * cell_height), BACKGROUND)
    ImageDraw.Draw(sheet).text((GAP, 12), heading, font=_font(22), fill=INK)
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        sheet.paste(picture, (column * cell_width + GAP, top + row * cell_height + GAP))
    with atomic_path(out_png) as temporary:
        sheet.save(temporary)


def put_side_by_side(pictures: Sequence[Image.Image], texts: Sequence[str]) -> Image.Image:
    """Pictures from left to right, each under a line of text that is cut off at its edge."""
    text_height = 24
    width = sum(picture.width for picture in pictures) + GAP * (len(pictures) - 1)
    height = text_height + max(picture.height for picture in pictures)
    joined = Image.new("RGB", (width, height), BACKGROUND)
    font = _font(15)
    x = 0
    for picture, text in zip(pictures, texts, strict=True):
        line = Image.new("RGB", (picture.width, text_height), BACKGROUND)
        ImageDraw.Draw(line).text((0, 2), text, font=font, fill=INK)
        joined.paste(line, (x, 0))
        joined.paste(picture, (x, text_height))
        x += picture.width + GAP
    return joined


def _draw_pair(row: SheetRow, tile_edge: int) -> Image.Image:
    scale = tile_edge / max(row.image.shape[:2])
    pictures = [draw_boxes(row.image, drawn, scale) for drawn in (row.truth, row.predictions)]
    num_objects = len(row.truth.boxes) - sum(row.truth.crowd)
    texts = (f"{row.title}: {num_objects} objects", f"{len(row.predictions.boxes)} predictions")
    return put_side_by_side(pictures, texts)
