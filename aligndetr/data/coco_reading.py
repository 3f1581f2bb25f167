"""Reading a COCO json of any size: checked entry by entry, its annotations moved to a file.

The lists may come in any order, so an annotation is read before or after its image. What is kept
in memory grows with the images alone, some 200 bytes each.
"""

import ast
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from .checks import (
    FIELDS,
    DatasetError,
    check_box,
    check_categories,
    check_entry,
    check_image,
    check_lists,
    describe,
    repeated_id_error,
)
from .json_stream import JsonReader

ENTRY_OVERHEAD = 300
"""Bytes that Python needs for an entry besides its text, roughly."""

ANNOTATIONS = pa.schema(
    [
        ("ids", pa.binary()),  # Python literals: id, image_id
        ("image", pa.int64()),  # id_key of image_id
        ("category", pa.int32()),  # position in CocoContent.first_uses
        ("crowd", pa.bool_()),
        *((side, pa.float64()) for side in ("x", "y", "width", "height")),
        ("record", pa.binary()),  # JSON: [bbox, iscrowd, category_id] and the segmentation, if any
    ]
)
_IMAGES = pa.schema([("record", pa.binary())])
_BLOCK = 100_000

_encode = json.JSONEncoder(separators=(",", ":")).encode


@dataclass
class CocoContent:
    """What reading keeps of a json.

    Attributes:
        images: Arrow file, JSON [file_name, height, width, id] for each image.
        annotations: Arrow file with the columns `ANNOTATIONS`. Both in the order of the json.
        image_ids: in that order, too.
        image_sizes: (N, 2) float64, width and height.
        first_uses: for each category id in use, the description of the first annotation with it.
        categories: [[id, name], …] in the order of the ids.
    """

    images: Path
    annotations: Path
    image_ids: list[int | str] = field(default_factory=list)
    image_sizes: np.ndarray = field(default_factory=lambda: np.empty((0, 2)))
    first_uses: dict[int, str] = field(default_factory=dict)
    categories: list[list] = field(default_factory=list)
    num_annotations: int = 0


def read_coco_json(json_file: Path, folder: Path, chunk_bytes: int) -> CocoContent:
    """Read and check a COCO json; what concerns boxes in their images is left to the caller.

    Args:
        folder: where the Arrow files go; the caller deletes it, after an error too.
        chunk_bytes: about how many bytes of entries are in memory at once.

    Raises:
        DatasetError: the file is missing, is not JSON, lacks a list or a field, is empty, repeats
            an id, or has an annotation whose category or box makes no sense.
    """
    try:
        with open(json_file, "rb") as file:
            return _read_lists(JsonReader(file), json_file, folder, chunk_bytes)
    except FileNotFoundError:
        raise DatasetError(f"annotation file {str(json_file)!r} does not exist") from None
    except DatasetError:
        raise
    except (ValueError, RecursionError) as error:  # ValueError: bad syntax, or not text at all
        raise DatasetError(
            f"{str(json_file)!r} is not JSON ({error}); expected a COCO annotation file"
        ) from error


def _read_lists(reader: JsonReader, json_file: Path, folder: Path, chunk_bytes: int) -> CocoContent:
    if reader.peek() != "{":
        kind = "list" if reader.peek() == "[" else None
        value = reader.skip_value() if kind else reader.value()
        reader.end()
        raise DatasetError(
            f"{str(json_file)!r} is not a COCO json: it holds a {kind or type(value).__name__}, "
            f"expected an object with {list(FIELDS)}"
        )
    content = CocoContent(folder / "images", folder / "annotations")
    read_list = {
        "images": _read_images,
        "annotations": _read_annotations,
        "categories": _read_categories,
    }
    lists, keys = {}, []
    for key in reader.members():
        if key in lists:
            raise DatasetError(f"{str(json_file)!r} has {key!r} twice; join the two lists")
        keys.append(key)
        if key in read_list and reader.peek() == "[":
            entries = _checked(reader.items(), key, json_file)
            lists[key] = read_list[key](content, entries, json_file, chunk_bytes)
        else:
            reader.skip_value()
    reader.end()
    check_lists(lists, keys, json_file)
    check_categories(content.first_uses, [number for number, _ in content.categories], json_file)
    return content


def _checked(entries: Iterator[Any], key: str, json_file: Path) -> Iterator[dict[str, Any]]:
    for position, entry in enumerate(entries):
        check_entry(entry, key, position, json_file)
        yield entry


def _read_categories(content: CocoContent, entries: Iterator, json_file: Path, _: int) -> int:
    names = {}
    for category in entries:
        if category["id"] in names:
            raise repeated_id_error(category["id"], "categories", json_file)
        names[category["id"]] = category["name"]
    content.categories = [[number, names[number]] for number in sorted(names)]
    return len(names)


def _read_images(content: CocoContent, entries: Iterator, json_file: Path, chunk_bytes: int) -> int:
    """Also raises for an id that stands twice."""
    sizes, seen = [], set()
    with _Spill(content.images, _IMAGES, chunk_bytes) as spill:
        for image in entries:
            image_id = image["id"]
            if image_id in seen:
                raise repeated_id_error(image_id, "images", json_file)
            seen.add(image_id)
            content.image_ids.append(image_id)
            check_image(image, json_file)
            sizes.append((image["width"], image["height"]))
            record = [image["file_name"], image["height"], image["width"], image_id]
            spill.add(_encode(record).encode())
            if len(sizes) == _BLOCK:  # Python's numbers are large
                content.image_sizes = np.concatenate([content.image_sizes, sizes], dtype=float)
                sizes.clear()
    if sizes:
        content.image_sizes = np.concatenate([content.image_sizes, sizes], dtype=float)
    return len(content.image_ids)


def _read_annotations(
    content: CocoContent, entries: Iterator, json_file: Path, chunk_bytes: int
) -> int:
    """Also raises for a bad box and for an id that stands twice."""
    codes: dict[int, int] = {}
    keys = []
    with (
        _Spill(content.annotations, ANNOTATIONS, chunk_bytes) as spill,
        open(_ids_file(content), "wb") as ids_file,
    ):
        for annotation in entries:
            check_box(annotation, json_file)
            category_id = annotation["category_id"]
            code = codes.get(category_id)
            if code is None:
                code = codes[category_id] = len(codes)
                where = describe(annotation["id"], annotation["image_id"])
                content.first_uses[category_id] = where
            spill.add(*_row(annotation, code))
            keys.append(id_key(annotation["id"]))
            content.num_annotations += 1
            if len(keys) == _BLOCK:
                np.array(keys, dtype=np.int64).tofile(ids_file)
                keys.clear()
        np.array(keys, dtype=np.int64).tofile(ids_file)
    _check_annotation_ids(content, json_file)
    return content.num_annotations


def _row(annotation: dict[str, Any], code: int) -> tuple:
    """The values of `ANNOTATIONS`."""
    image_id, box = annotation["image_id"], annotation["bbox"]
    crowd = is_crowd(annotation)
    segmentation = annotation.get("segmentation")
    # Python writes finite numbers as JSON does, in half the time of its encoder.
    record = f"{box},{crowd:d},{annotation['category_id']:d}"
    if segmentation:
        record += f",{_encode(segmentation)}"
    ids = f"{annotation['id']!r},{image_id!r}".encode()
    return ids, id_key(image_id), code, crowd, *map(float, box), f"[{record}]".encode()


def is_crowd(annotation: dict[str, Any]) -> bool:
    """Whether training leaves it out as a region of many, or one that does not matter."""
    return bool(annotation.get("iscrowd") or annotation.get("ignore"))


def id_key(entry_id: int | str) -> int:
    """A number of 64 bits that stands for an id: a number itself, else a hash.

    Texts differ in it but for one chance in 2^64 per pair.
    """
    if type(entry_id) is int and -(1 << 63) <= entry_id < 1 << 63:
        return entry_id
    return hash((entry_id,))


def _ids_file(content: CocoContent) -> Path:
    return content.annotations.with_suffix(".ids")


def _check_annotation_ids(content: CocoContent, json_file: Path) -> None:
    """Raise if an annotation id stands twice. Sorted in a file: a set would outgrow the memory."""
    if not content.num_annotations:
        return
    keys = np.memmap(_ids_file(content), dtype=np.int64, mode="r+")
    keys.sort()
    suspects, seen = set(), set()
    for first in range(0, len(keys), _BLOCK):
        block = keys[first : first + _BLOCK + 1]
        suspects.update(block[1:][block[1:] == block[:-1]].tolist())
    if not suspects:
        return
    for batch in batches(content.annotations):
        for text in batch["ids"].to_pylist():
            own_id, _ = ast.literal_eval(text.decode())
            if id_key(own_id) in suspects:
                if own_id in seen:
                    raise repeated_id_error(own_id, "annotations", json_file)
                seen.add(own_id)


# ---------------------------------------------------------------------------------------------
# rows on disk


class _Spill:
    """Rows on their way to an Arrow file, in batches of about `chunk_bytes` of Python objects."""

    def __init__(self, path: Path, schema: pa.Schema, chunk_bytes: int):
        self._schema, self._chunk_bytes = schema, chunk_bytes
        self._file = open_arrow(path, "wb")
        self._writer = pa.ipc.new_file(self._file, schema)
        self._rows: list[tuple] = []
        self._size = 0

    def __enter__(self) -> "_Spill":
        return self

    def __exit__(self, *_: object) -> None:
        self._write()
        self._writer.close()
        self._file.close()

    def add(self, *row: Any) -> None:
        """One row; its last value is a text."""
        self._rows.append(row)
        self._size += len(row[-1]) + ENTRY_OVERHEAD
        if self._size >= self._chunk_bytes:
            self._write()

    def _write(self) -> None:
        if self._rows:
            columns = [
                pa.array(values, field.type)
                for values, field in zip(zip(*self._rows), self._schema, strict=True)
            ]
            self._writer.write_batch(pa.record_batch(columns, schema=self._schema))
        self._rows.clear()
        self._size = 0


def open_arrow(path: Path, mode: str = "rb") -> pa.OSFile:
    """A file for Arrow, by the bytes of its name: as text it would have to be UTF-8."""
    return pa.OSFile(os.fsencode(path), mode)


def batches(path: Path) -> Iterator[pa.RecordBatch]:
    """Those of an Arrow file, one in memory at a time.

    Not mapped: each page of a mapped file that has been read counts as memory of the process.
    """
    with open_arrow(path) as file:
        reader = pa.ipc.open_file(file)
        for i in range(reader.num_record_batches):
            yield reader.get_batch(i)
