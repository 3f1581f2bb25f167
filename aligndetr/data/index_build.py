"""A COCO json of any size, checked and turned into an index, in memory that stays bounded.

The json is read once, entry by entry, its lists in whatever order. Annotations go to a file in
the order of the json. Once all images are known they are dealt out to as many files as it takes
for each to fit in memory, by ranges of images; each of those is sorted and becomes a part of the
index. What is kept in memory grows with the images alone (some 200 bytes each), not with the
annotations; the files for the time of the building take about twice the index's size.

The index is an Arrow file with one row per image, in the order of the image ids:

    image        large_binary  JSON: [file_name, height, width, id]
    annotations  large_binary  JSON: [[bbox, iscrowd, category_id], …], with the segmentation as
                               fourth where there is one
    has_objects  bool          whether an annotation of it can be trained on

Annotations of an image are read all or not at all, so they are one piece of text and not a column
per field: one page of the file instead of a dozen, and numbers keep the json's types. The file's
metadata has, under b"aligndetr", a JSON object: `IndexInfo`.
"""

import ast
import dataclasses
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .checks import (
    BOX_PROBLEMS,
    FIELDS,
    MAX_EXAMPLES,
    NUM_DROPPED,
    DatasetError,
    check_box,
    check_categories,
    check_entry,
    check_lists,
    classify_boxes,
    describe,
    repeated_id_error,
)
from .json_stream import JsonReader

CHUNK_BYTES = 32 << 20
"""About how many bytes of entries are in memory at once, in each step."""

MAX_PARTS = 200
"""At most so many files are open at once; a larger index is built in larger parts."""

METADATA_KEY = b"aligndetr"
INDEX_SCHEMA = pa.schema(
    [
        ("image", pa.large_binary()),
        ("annotations", pa.large_binary()),
        ("has_objects", pa.bool_()),
    ]
)
_ANNOTATIONS = pa.schema(
    [
        ("ids", pa.binary()),  # Python literals: id, image_id
        ("image", pa.int64()),  # hash of image_id; hashes find, the ids themselves decide
        ("category", pa.int32()),  # position in _Content.first_uses
        ("crowd", pa.bool_()),
        *((side, pa.float64()) for side in ("x", "y", "width", "height")),
        ("record", pa.binary()),
    ]
)
_PART = pa.schema([("rank", pa.int32()), ("record", pa.binary())])
_ENTRY_OVERHEAD = 300
"""Bytes that Python needs for an entry besides its texts, roughly."""

_encode = json.JSONEncoder(separators=(",", ":")).encode


@dataclass(frozen=True)
class IndexInfo:
    """What the index says about the whole json.

    Attributes:
        categories: [[id, name], …] in the order of the ids.
        num_images, num_annotations: as the json has them.
        objects_per_class: annotations that can be trained on, by label.
        box_problems: how many boxes have each of `checks.BOX_PROBLEMS`.
        box_examples: descriptions of the first of each.
    """

    categories: list[list]
    num_images: int
    num_annotations: int
    objects_per_class: list[int]
    box_problems: list[int]
    box_examples: list[list[str]]


@dataclass
class _Content:
    """What a first reading keeps of the json: in memory for images, on disk for annotations."""

    image_ids: list[int | str]
    image_sizes: np.ndarray  # (N, 2) float64, width and height
    images: Path  # JSON [file_name, height, width, id] for each image
    annotations: Path
    first_uses: dict[int, str]  # category id -> description of the first annotation that has it
    categories: list[list]
    num_annotations: int


def build_index(json_file: Path, index_file: Path, chunk_bytes: int = CHUNK_BYTES) -> None:
    """Check a COCO json and write its index, which appears whole or not at all.

    Args:
        json_file: read once.
        index_file: its folder is there and has room for temporary files.
        chunk_bytes: see `CHUNK_BYTES`.

    Raises:
        DatasetError: the file is missing, is not JSON, lacks a list or a field, is empty, repeats
            an id, or has an annotation whose category or box makes no sense.
    """
    with tempfile.TemporaryDirectory(dir=index_file.parent, prefix=".building.") as folder:
        content = _read_json(json_file, Path(folder), chunk_bytes)
        ranks = _rank_images(content, json_file)
        parts, info, has_objects = _deal_out(content, ranks, Path(folder), chunk_bytes)
        finished = Path(folder) / index_file.name
        _write_index(finished, content, ranks, parts, info, has_objects)
        os.replace(finished, index_file)


# ---------------------------------------------------------------------------------------------
# reading the json


def _read_json(json_file: Path, folder: Path, chunk_bytes: int) -> _Content:
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


def _read_lists(reader: JsonReader, json_file: Path, folder: Path, chunk_bytes: int) -> _Content:
    if reader.peek() != "{":
        kind = "list" if reader.peek() == "[" else None
        value = reader.skip_value() if kind else reader.value()
        reader.end()
        raise DatasetError(
            f"{str(json_file)!r} is not a COCO json: it holds a {kind or type(value).__name__}, "
            f"expected an object with {list(FIELDS)}"
        )
    content = _Content([], np.empty(0), folder / "images", folder / "annotations", {}, [], 0)
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


def _read_categories(content: _Content, entries: Iterator, json_file: Path, _: int) -> int:
    names = {}
    for category in entries:
        if category["id"] in names:
            raise repeated_id_error(category["id"], "categories", json_file)
        names[category["id"]] = category["name"]
    content.categories = [[number, names[number]] for number in sorted(names)]
    return len(names)


def _read_images(content: _Content, entries: Iterator, json_file: Path, chunk_bytes: int) -> int:
    """Also raises for an id that stands twice."""
    sizes, seen = [], set()
    with _Spill(content.images, pa.schema([("record", pa.binary())]), chunk_bytes) as spill:
        for image in entries:
            image_id = image["id"]
            if image_id in seen:
                raise repeated_id_error(image_id, "images", json_file)
            seen.add(image_id)
            content.image_ids.append(image_id)
            sizes.append((image["width"], image["height"]))
            record = [image["file_name"], image["height"], image["width"], image_id]
            spill.add(_encode(record).encode())
            if len(sizes) == 10_000:  # tuples of Python numbers are large
                content.image_sizes = _extend_sizes(content.image_sizes, sizes)
                sizes.clear()
    content.image_sizes = _extend_sizes(content.image_sizes, sizes)
    return len(content.image_ids)


def _extend_sizes(known: np.ndarray, more: list[tuple]) -> np.ndarray:
    more = np.array(more, dtype=np.float64).reshape(-1, 2)
    return np.concatenate([known.reshape(-1, 2), more])


def _read_annotations(
    content: _Content, entries: Iterator, json_file: Path, chunk_bytes: int
) -> int:
    """Also raises for a bad box and for an id that stands twice."""
    first_uses = content.first_uses
    codes: dict[int, int] = {}
    hashes = []
    with (
        _Spill(content.annotations, _ANNOTATIONS, chunk_bytes) as spill,
        open(content.annotations.with_suffix(".ids"), "wb") as ids_file,
    ):
        for annotation in entries:
            check_box(annotation, json_file)
            own_id, image_id = annotation["id"], annotation["image_id"]
            category_id, box = annotation["category_id"], annotation["bbox"]
            code = codes.get(category_id)
            if code is None:
                code = codes[category_id] = len(codes)
                first_uses[category_id] = describe(own_id, image_id)
            crowd = bool(annotation.get("iscrowd") or annotation.get("ignore"))
            segmentation = annotation.get("segmentation")
            # Python writes finite numbers as JSON does, in half the time of its encoder.
            record = f"{box},{crowd:d},{category_id:d}"
            if segmentation:
                record += f",{_encode(segmentation)}"
            ids = f"{own_id!r},{image_id!r}".encode()
            record = f"[{record}]".encode()
            spill.add(ids, hash(image_id), code, crowd, *box, record)
            hashes.append(hash(own_id))
            content.num_annotations += 1
            if len(hashes) == 100_000:
                np.array(hashes, dtype=np.int64).tofile(ids_file)
                hashes.clear()
        np.array(hashes, dtype=np.int64).tofile(ids_file)
    _check_annotation_ids(content, json_file)
    return content.num_annotations


def _check_annotation_ids(content: _Content, json_file: Path) -> None:
    """Raise if an annotation id stands twice. Sorted in a file: a set would outgrow the memory."""
    ids_file = content.annotations.with_suffix(".ids")
    if not content.num_annotations:
        return
    hashes = np.memmap(ids_file, dtype=np.int64, mode="r+")
    hashes.sort()
    step = 1_000_000
    repeated = [
        block[1:][block[1:] == block[:-1]]
        for block in (hashes[i : i + step + 1] for i in range(0, len(hashes), step))
    ]
    suspects = np.unique(np.concatenate(repeated)).tolist()
    del hashes
    ids_file.unlink()
    if not suspects:
        return
    suspects, seen = set(suspects), set()
    for batch in _batches(content.annotations):
        for text in batch["ids"].to_pylist():
            own_id, _ = ast.literal_eval(text.decode())
            if hash(own_id) in suspects:
                if own_id in seen:
                    raise repeated_id_error(own_id, "annotations", json_file)
                seen.add(own_id)


# ---------------------------------------------------------------------------------------------
# images in the order of their ids, annotations with their images


@dataclass
class _Ranks:
    """The place of each image in the order of the ids, and how to find it from an image id."""

    order: np.ndarray  # (N,) position in the json of the i-th image by id
    sizes: np.ndarray  # (N + 1, 2) in that order; the last is NaN, for images nobody lists
    sorted_hashes: np.ndarray  # (N,) int64
    rank_of_hash: np.ndarray  # (N,) int32

    def find(self, hashes: np.ndarray) -> np.ndarray:
        """(M,) ranks of the images with these hashes of their ids, -1 where there is none."""
        place = np.searchsorted(self.sorted_hashes, hashes)
        place = np.minimum(place, len(self.sorted_hashes) - 1)
        return np.where(self.sorted_hashes[place] == hashes, self.rank_of_hash[place], -1)


def _rank_images(content: _Content, json_file: Path) -> _Ranks:
    ids = content.image_ids
    try:
        order = np.array(sorted(range(len(ids)), key=ids.__getitem__), dtype=np.int32)
    except TypeError:
        raise DatasetError(
            f"the images of {str(json_file)!r} have numbers and texts as ids, which have no "
            "common order; use one of the two"
        ) from None
    hashes = np.fromiter((hash(ids[i]) for i in order), np.int64, len(ids))
    by_hash = np.argsort(hashes).astype(np.int32)
    # A size that is NaN in the json makes no box wrong.
    sizes = np.where(np.isnan(content.image_sizes), np.inf, content.image_sizes)[order]
    sizes = np.concatenate([sizes, np.full((1, 2), np.nan)])
    ids.clear()  # the largest thing in memory, and of no more use
    return _Ranks(order, sizes, hashes[by_hash], by_hash)


def _deal_out(
    content: _Content, ranks: _Ranks, folder: Path, chunk_bytes: int
) -> tuple[list[tuple[int, int, Path]], IndexInfo, np.ndarray]:
    """Write the annotations worth keeping to one file per range of images.

    Returns:
        (first rank, end, file) of each range; what there is to say of the whole; and (N,) bool,
        which images have an object to train on.
    """
    bounds = _split_evenly(content, ranks, chunk_bytes)
    num_images = len(ranks.order)
    has_objects = np.zeros(num_images, dtype=bool)
    objects = np.zeros(len(content.first_uses), dtype=np.int64)
    counts = [0] * len(BOX_PROBLEMS)
    examples: list[list[str]] = [[] for _ in BOX_PROBLEMS]
    files = [folder / f"part{i}" for i in range(len(bounds) - 1)]
    writers = [pa.ipc.new_file(str(file), _PART) for file in files]
    for batch in _batches(content.annotations):
        rank = ranks.find(batch["image"].to_numpy())
        boxes = np.stack([batch[s].to_numpy() for s in ("x", "y", "width", "height")], axis=1)
        problems = classify_boxes(boxes, ranks.sizes[rank])
        for problem in range(len(BOX_PROBLEMS)):
            found = np.flatnonzero(problems == problem)
            counts[problem] += len(found)
            wanted = found[: MAX_EXAMPLES - len(examples[problem])]
            examples[problem] += [_describe_row(batch, row) for row in wanted.tolist()]
        kept = problems >= NUM_DROPPED
        trained_on = kept & ~batch["crowd"].to_numpy(zero_copy_only=False)
        objects += np.bincount(batch["category"].to_numpy()[trained_on], minlength=len(objects))
        has_objects[rank[trained_on]] = True
        part_of = np.where(kept, np.searchsorted(bounds, rank, side="right") - 1, -1)
        for part in np.unique(part_of[kept]).tolist():
            rows = np.flatnonzero(part_of == part)
            columns = [pa.array(rank[rows], pa.int32()), batch["record"].take(pa.array(rows))]
            writers[part].write_batch(pa.record_batch(columns, schema=_PART))
    for writer in writers:
        writer.close()
    per_category = dict(zip(content.first_uses, objects.tolist(), strict=True))
    info = IndexInfo(
        categories=content.categories,
        num_images=num_images,
        num_annotations=content.num_annotations,
        objects_per_class=[per_category.get(number, 0) for number, _ in content.categories],
        box_problems=counts,
        box_examples=examples,
    )
    return list(zip(bounds[:-1].tolist(), bounds[1:].tolist(), files)), info, has_objects


def _describe_row(batch: pa.RecordBatch, row: int) -> str:
    box = json.loads(batch["record"][row].as_py())[0]
    ids = ast.literal_eval(batch["ids"][row].as_py().decode())
    return f"{describe(*ids)} (bbox {box})"


def _split_evenly(content: _Content, ranks: _Ranks, chunk_bytes: int) -> np.ndarray:
    """Bounds of the ranges of images whose annotations fit in memory together: 0, …, N."""
    num_images = len(ranks.order)
    size = np.full(num_images, float(_ENTRY_OVERHEAD))
    for batch in _batches(content.annotations):
        rank = ranks.find(batch["image"].to_numpy())
        weights = pc.binary_length(batch["record"]).to_numpy() + float(_ENTRY_OVERHEAD)
        np.add.at(size, rank[rank >= 0], weights[rank >= 0])
    total = size.cumsum()
    num_parts = min(MAX_PARTS, int(np.ceil(total[-1] / chunk_bytes)))
    cuts = np.searchsorted(total, total[-1] * np.arange(1, num_parts) / num_parts)
    return np.unique(np.concatenate([[0], cuts, [num_images]]))


# ---------------------------------------------------------------------------------------------
# the index


def _write_index(
    path: Path,
    content: _Content,
    ranks: _Ranks,
    parts: list[tuple[int, int, Path]],
    info: IndexInfo,
    has_objects: np.ndarray,
) -> None:
    images = [batch["record"].cast(pa.large_binary()) for batch in _batches(content.images)]
    images = pa.chunked_array(images)
    text = json.dumps(dataclasses.asdict(info)).encode()
    schema = INDEX_SCHEMA.with_metadata({METADATA_KEY: text})
    with open(path, "wb") as file:
        with pa.ipc.new_file(file, schema) as writer:
            for first, end, part in parts:
                columns = [
                    images.take(pa.array(ranks.order[first:end])).combine_chunks(),
                    pa.array(_join_annotations(part, first, end), pa.large_binary()),
                    pa.array(has_objects[first:end]),
                ]
                writer.write_batch(pa.record_batch(columns, schema=schema))
        file.flush()
        os.fsync(file.fileno())  # else the rename may outlive a power cut that the data does not


def _join_annotations(part: Path, first: int, end: int) -> list[bytes]:
    """The annotations of each image of one range, in the order of the json."""
    batches = list(_batches(part))
    rank = np.concatenate([np.empty(0, np.int32), *(b["rank"].to_numpy() for b in batches)])
    annotations = [text for batch in batches for text in batch["record"].to_pylist()]
    order = np.argsort(rank, kind="stable")
    starts = np.searchsorted(rank, np.arange(first, end + 1), sorter=order).tolist()
    order = order.tolist()
    return [
        b"[%b]" % b",".join([annotations[i] for i in order[start:stop]])
        for start, stop in pairwise(starts)
    ]


class _Spill:
    """Rows on their way to an Arrow file, in batches of about `chunk_bytes` of Python objects."""

    def __init__(self, path: Path, schema: pa.Schema, chunk_bytes: int):
        self._schema, self._chunk_bytes = schema, chunk_bytes
        self._writer = pa.ipc.new_file(str(path), schema)
        self._rows: list[tuple] = []
        self._size = 0

    def __enter__(self) -> "_Spill":
        return self

    def __exit__(self, *_: object) -> None:
        self._write()
        self._writer.close()

    def add(self, *row: Any) -> None:
        """One row; its last value is a text."""
        self._rows.append(row)
        self._size += len(row[-1]) + _ENTRY_OVERHEAD
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


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    """Those of a temporary file, mapped and not read."""
    if not path.exists():
        return
    with pa.memory_map(str(path)) as file:
        reader = pa.ipc.open_file(file)
        for i in range(reader.num_record_batches):
            yield reader.get_batch(i)
