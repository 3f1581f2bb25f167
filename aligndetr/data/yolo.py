"""Data sets in YOLO's layout as COCO jsons.

`data.yaml` says where the images of a split are and what the classes are called. The labels of
`images/a/b.jpg` are in `labels/a/b.txt`, one object per line, its numbers as fractions of the
image's width and height:

    class x_center y_center width height          a box
    class x1 y1 x2 y2 x3 y3 …                     a polygon, whose box is taken

An image without a label file has no objects. Pictures are counted from 1 in the order of their
paths; category ids are YOLO's class numbers.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aligndetr.utils.safe_yaml import load_yaml, read_yaml_text

from .checks import DatasetError, check_images_exist
from .converted import converted_json
from .image_paths import is_inside
from .image_reading import open_image
from .jpeg import ORIENTATION

YAML_NAME = "data.yaml"
IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
MAX_TEXT = 64 << 20
"""Bytes of a label file or of a list of images."""

TOLERANCE = 1e-3
"""By how much a fraction may leave [0, 1]; more means that it is none."""


def yolo_as_coco(root: Path, split: str) -> tuple[Path, Path]:
    """The split of a YOLO data set as a COCO json, and the folder that its file names start from.

    That is the one folder of the split, which may be a link, or `root` where there are several or
    a list of files. Nothing outside of `root` is read but through that link.

    Args:
        root: absolute; holds data.yaml.
        split: "train" or "val".

    Raises:
        DatasetError: names the file and line: data.yaml lacks something, no image is there, one
            cannot be read, or a label is not as above.
    """
    settings = _read_settings(root / YAML_NAME)
    names = _class_names(settings, root / YAML_NAME)
    folder, images = _find_images(root, settings, split)
    check_images_exist(
        ({"file_name": str(image.relative_to(folder)), "id": str(image)} for image in images),
        folder,
    )
    labels = [_label_file(image, root) for image in images]

    def convert() -> dict[str, Any]:
        content: dict[str, Any] = {"images": [], "annotations": []}
        content["categories"] = [{"id": i, "name": name} for i, name in enumerate(names)]
        for image_id, (image, label_file) in enumerate(zip(images, labels, strict=True), start=1):
            width, height = _image_size(image)
            file_name = str(image.relative_to(folder))
            content["images"].append(
                {"id": image_id, "file_name": file_name, "width": width, "height": height}
            )
            for annotation in _read_labels(label_file, len(names), width, height):
                number = len(content["annotations"]) + 1
                content["annotations"].append({"id": number, "image_id": image_id} | annotation)
        return content

    sources = [root / YAML_NAME, *images, *labels]
    return converted_json(root, f"yolo_{split}", sources, convert), folder


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = load_yaml(read_yaml_text(path))
    except ValueError as error:
        raise DatasetError(f"{str(path)!r} is not YAML: {error}") from error
    if not isinstance(settings, dict):
        raise DatasetError(f"{str(path)!r} must hold keys and values: train, val and names")
    if "kpt_shape" in settings:
        raise DatasetError(
            f"{str(path)!r} has `kpt_shape` (={settings['kpt_shape']!r}): its labels are poses, "
            "whose numbers would be taken for polygons; export the data as boxes (detection)"
        )
    return settings


def _class_names(settings: dict[str, Any], path: Path) -> list[str]:
    names = settings.get("names")
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise DatasetError(
                f"`names` in {str(path)!r} has the numbers {list(names)}; number the classes from 0"
            )
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DatasetError(f"{str(path)!r} has no `names`: a list of the classes' names")
    if settings.get("nc", len(names)) != len(names):
        raise DatasetError(
            f"{str(path)!r} says nc={settings['nc']}, but lists {len(names)} names; correct one"
        )
    return [str(name) for name in names]


def _find_images(root: Path, settings: dict[str, Any], split: str) -> tuple[Path, list[Path]]:
    """The folder of the images, and their absolute paths in order, each once."""
    yaml_file = str(root / YAML_NAME)
    places = settings.get(split) or (settings.get("valid") if split == "val" else None)
    if not places:
        raise DatasetError(
            f"{yaml_file!r} does not say where the {split} images are; add `{split}`"
        )
    base = settings.get("path")
    resolved = [
        _resolve(root, base, str(place), yaml_file)
        for place in (places if isinstance(places, list) else [places])
    ]
    folder = resolved[0] if len(resolved) == 1 and resolved[0].is_dir() else root
    found = {image for place in resolved for image in _images_at(place, root)}
    if not found:
        raise DatasetError(f"there is no image in {places!r}, the `{split}` of {yaml_file!r}")
    return folder, sorted(found)


def _resolve(root: Path, base: Any, place: str, yaml_file: str) -> Path:
    """Where data.yaml means: from its `path`, or from itself if the data have been moved.

    Roboflow writes `../train/images` for a folder beside data.yaml.
    """
    bases = [*([root / str(base)] if base else []), root]
    inside = Path(*[part for part in Path(place).parts if part not in ("..", "/")])
    choices = [b / place for b in bases] + [root / inside]
    # No `..`, but links stay: labels lie beside them.
    choices = [Path(os.path.abspath(path)) for path in choices]
    for path in choices:
        if path.is_relative_to(root) and path.exists():
            return path
    raise DatasetError(
        f"{yaml_file!r} names {place!r}, but none of {sorted({str(p) for p in choices})} exists in "
        f"{str(root)!r}; all that data.yaml names must lie beside it or below"
    )


def _images_at(place: Path, root: Path) -> Iterator[Path]:
    """Of a folder, with all below it, or of a text file that lists them."""
    if place.is_dir():
        yield from _images_below(place)
        return
    for line in _read_text(place).splitlines():
        if line.strip():
            image = Path(os.path.abspath(place.parent / line.strip()))
            if not image.is_relative_to(root):
                raise DatasetError(
                    f"{str(place)!r} lists {str(image)!r}, which is outside of {str(root)!r}"
                )
            yield image


def _images_below(place: Path) -> Iterator[Path]:
    """Raises for a link to another folder: it may lead anywhere, also round in circles."""
    for folder, subfolders, names in os.walk(place):
        for path in (Path(folder, name) for name in subfolders):
            if path.is_symlink():
                raise DatasetError(
                    f"{str(path)!r} is a link to a folder, behind which no image is looked for; "
                    "name that folder in data.yaml, which may list several, or move it here"
                )
        paths = (Path(folder, name) for name in names)
        yield from (path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES)


def _read_text(path: Path) -> str:
    """Of a file that is no link out of its folder: an error would show its lines."""
    if not is_inside(path, os.path.realpath(path.parent)):
        raise DatasetError(f"{str(path)!r} is a link that leads out of its folder; copy the file")
    if path.stat().st_size > MAX_TEXT:
        raise DatasetError(
            f"{str(path)!r} is larger than {MAX_TEXT} bytes; this is no text of YOLO's"
        )
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{str(path)!r} is not text: {error}") from error


def _label_file(image: Path, root: Path) -> Path:
    """The last folder called images below `root` becomes labels; without one the labels lie
    beside."""
    parts = list(image.relative_to(root).with_suffix(".txt").parts)
    if "images" in parts[:-1]:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return root.joinpath(*parts)


def _image_size(path: Path) -> tuple[int, int]:
    """Width and height, turned as the EXIF orientation says, from the head of the file."""
    try:
        with open_image(path) as image:
            turned = image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
            width, height = image.size
            return (height, width) if turned else (width, height)
    except Exception as error:  # broken bytes make Pillow raise almost anything
        raise DatasetError(
            f"image {str(path)!r} cannot be read ({type(error).__name__}: {error}); replace or "
            "remove it"
        ) from error


def _read_labels(path: Path, num_classes: int, width: int, height: int) -> Iterator[dict]:
    if not path.is_file():
        return
    for number, line in enumerate(_read_text(path).splitlines(), start=1):
        if line.strip():
            try:
                yield _parse_label(line.split(), num_classes, width, height)
            except ValueError as error:
                raise DatasetError(f"{str(path)!r}, line {number} ({line!r}): {error}") from error


def _parse_label(words: list[str], num_classes: int, width: int, height: int) -> dict[str, Any]:
    """category_id, bbox, area, iscrowd, and of a polygon the segmentation, in pixels."""
    class_number, *numbers = [float(word) for word in words]
    if class_number not in range(num_classes):
        raise ValueError(f"class {words[0]} is not in 0 … {num_classes - 1}")
    if len(numbers) != 4 and (len(numbers) < 6 or len(numbers) % 2):
        raise ValueError(
            f"{len(words)} numbers; expected class x_center y_center width height, or class and "
            "the corners of a polygon"
        )
    if not all(math.isfinite(n) and -TOLERANCE <= n <= 1 + TOLERANCE for n in numbers):
        raise ValueError("coordinates must be fractions of the image's width and height")
    annotation: dict[str, Any] = {"category_id": int(class_number), "iscrowd": 0}
    if len(numbers) == 4:
        x, y, w, h = numbers
        box = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
    else:
        xs, ys = [x * width for x in numbers[::2]], [y * height for y in numbers[1::2]]
        box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
        annotation["segmentation"] = [[v for point in zip(xs, ys) for v in point]]
    return annotation | {"bbox": box, "area": box[2] * box[3]}
