"""A COCO json of any size, checked and turned into an index, in memory that stays bounded.

The json is read once, and its annotations go to a file in the order of the json (`coco_reading`).
Once all images are known they are dealt out to as many files as it takes for each to fit in
memory, by ranges of images; each of those is sorted and becomes a part of the index. Meanwhile
the files take a few times the index's size.

The index is an Arrow file with one row per image, in the order of the image ids:

    image        large_binary  JSON: [file_name, height, width, id]
    annotations  large_binary  JSON: [[bbox, iscrowd, category_id], …], with the segmentation as
                               fourth where there is one
    has_objects  bool          whether an annotation of it can be trained on
    lying        bool          whether it is wider than high

Annotations of an image are read all or not at all, so they are one piece of text and not a column
per field: one page of the file instead of a dozen, and numbers keep the json's types. The file's
metadata has, under b"aligndetr", a JSON object: `IndexInfo`.
"""

import ast
import dataclasses
import json
import os
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .checks import (
    BOX_PROBLEMS,
    MAX_EXAMPLES,
    NUM_DROPPED,
    DatasetError,
    classify_boxes,
    describe,
)
from .coco_reading import (
    ENTRY_OVERHEAD,
    CocoContent,
    batches,
    id_key,
    open_arrow,
    read_coco_json,
)

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
        ("lying", pa.bool_()),
    ]
)
_PART = pa.schema([("rank", pa.int32()), ("record", pa.binary())])


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


def build_index(json_file: Path, index_file: Path, chunk_bytes: int = CHUNK_BYTES) -> None:
    """Check a COCO json and write its index, which appears whole or not at all.

    Args:
        json_file: read once.
        index_file: its folder is there and has room for temporary files.
        chunk_bytes: see `CHUNK_BYTES`.

    Raises:
        DatasetError: see `read_coco_json`; or ids of images of two types.
    """
    with tempfile.TemporaryDirectory(dir=index_file.parent, prefix=".building.") as folder:
        content = read_coco_json(json_file, Path(folder), chunk_bytes)
        ranks = _rank_images(content, json_file)
        tally = _Tally(content, len(ranks.order))
        parts = _deal_out(content, ranks, tally, Path(folder), chunk_bytes)
        finished = Path(folder) / index_file.name
        _write_index(finished, content.images, ranks, tally, parts)
        os.replace(finished, index_file)


# ---------------------------------------------------------------------------------------------
# images in the order of their ids, annotations with their images


@dataclass
class _Ranks:
    """The place of each image in the order of the ids, and how to find it from an image id."""

    order: np.ndarray  # (N,) position in the json of the i-th image by id
    sizes: np.ndarray  # (N + 1, 2) in that order; the last is NaN, for images nobody lists
    sorted_keys: np.ndarray  # (N,) int64, see `id_key`
    rank_of_key: np.ndarray  # (N,) int32

    def find(self, keys: np.ndarray) -> np.ndarray:
        """(M,) ranks of the images whose ids have these keys, -1 where there is none."""
        place = np.searchsorted(self.sorted_keys, keys)
        place = np.minimum(place, len(self.sorted_keys) - 1)
        return np.where(self.sorted_keys[place] == keys, self.rank_of_key[place], -1)


def _rank_images(content: CocoContent, json_file: Path) -> _Ranks:
    ids = content.image_ids
    try:
        order = np.array(sorted(range(len(ids)), key=ids.__getitem__), dtype=np.int32)
    except TypeError:
        raise DatasetError(
            f"the images of {str(json_file)!r} have numbers and texts as ids, which have no "
            "common order; use one of the two"
        ) from None
    keys = np.fromiter((id_key(ids[i]) for i in order), np.int64, len(ids))
    by_key = np.argsort(keys).astype(np.int32)
    sizes = np.concatenate([content.image_sizes[order], np.full((1, 2), np.nan)])
    ids.clear()  # the largest thing in memory, and of no more use
    return _Ranks(order, sizes, keys[by_key], by_key)


class _Tally:
    """Counts what `IndexInfo` says of the annotations."""

    def __init__(self, content: CocoContent, num_images: int):
        self.has_objects = np.zeros(num_images, dtype=bool)
        self._content = content
        self._objects = np.zeros(len(content.first_uses), dtype=np.int64)
        self._problems = [0] * len(BOX_PROBLEMS)
        self._examples: list[list[str]] = [[] for _ in BOX_PROBLEMS]

    def add(self, batch: pa.RecordBatch, rank: np.ndarray, problems: np.ndarray) -> None:
        """Some annotations, the ranks of their images, and what `classify_boxes` says."""
        for problem, examples in enumerate(self._examples):
            found = np.flatnonzero(problems == problem)
            self._problems[problem] += len(found)
            wanted = found[: MAX_EXAMPLES - len(examples)].tolist()
            examples += [_describe_row(batch, row) for row in wanted]
        trained_on = (problems >= NUM_DROPPED) & ~_column(batch, "crowd")
        codes = _column(batch, "category")[trained_on]
        self._objects += np.bincount(codes, minlength=len(self._objects))
        self.has_objects[rank[trained_on]] = True

    def info(self) -> IndexInfo:
        categories = self._content.categories
        objects = dict(zip(self._content.first_uses, self._objects.tolist(), strict=True))
        return IndexInfo(
            categories=categories,
            num_images=len(self.has_objects),
            num_annotations=self._content.num_annotations,
            objects_per_class=[objects.get(number, 0) for number, _ in categories],
            box_problems=self._problems,
            box_examples=self._examples,
        )


def _describe_row(batch: pa.RecordBatch, row: int) -> str:
    box = json.loads(batch["record"][row].as_py())[0]
    ids = ast.literal_eval(batch["ids"][row].as_py().decode())
    return f"{describe(*ids)} (bbox {box})"


def _column(batch: pa.RecordBatch, name: str) -> np.ndarray:
    return batch[name].to_numpy(zero_copy_only=False)


def _deal_out(
    content: CocoContent, ranks: _Ranks, tally: _Tally, folder: Path, chunk_bytes: int
) -> list[tuple[int, int, Path]]:
    """Write the annotations worth keeping to one file per range of images.

    Returns:
        (first rank, end, file) of each range.
    """
    bounds = _split_evenly(content, ranks, chunk_bytes)
    files = [folder / f"part{i}" for i in range(len(bounds) - 1)]
    sinks = [open_arrow(file, "wb") for file in files]
    writers = [pa.ipc.new_file(sink, _PART) for sink in sinks]
    for batch in batches(content.annotations):
        rank = ranks.find(_column(batch, "image"))
        boxes = np.stack([_column(batch, s) for s in ("x", "y", "width", "height")], axis=1)
        problems = classify_boxes(boxes, ranks.sizes[rank])
        tally.add(batch, rank, problems)
        kept = problems >= NUM_DROPPED
        part_of = np.where(kept, np.searchsorted(bounds, rank, side="right") - 1, -1)
        for part in np.unique(part_of[kept]).tolist():
            rows = np.flatnonzero(part_of == part)
            columns = [pa.array(rank[rows], pa.int32()), batch["record"].take(pa.array(rows))]
            writers[part].write_batch(pa.record_batch(columns, schema=_PART))
    for writer, sink in zip(writers, sinks, strict=True):
        writer.close()
        sink.close()
    return [(first, end, file) for (first, end), file in zip(pairwise(bounds.tolist()), files)]


def _split_evenly(content: CocoContent, ranks: _Ranks, chunk_bytes: int) -> np.ndarray:
    """Bounds of the ranges of images whose annotations fit in memory together: 0, …, N."""
    num_images = len(ranks.order)
    size = np.full(num_images, float(ENTRY_OVERHEAD))
    for batch in batches(content.annotations):
        rank = ranks.find(_column(batch, "image"))
        weights = pc.binary_length(batch["record"]).to_numpy() + ENTRY_OVERHEAD
        size += np.bincount(rank[rank >= 0], weights[rank >= 0], minlength=num_images)
    total = size.cumsum()
    num_parts = min(MAX_PARTS, int(np.ceil(total[-1] / chunk_bytes)))
    cuts = np.searchsorted(total, total[-1] * np.arange(1, num_parts) / num_parts)
    return np.unique(np.concatenate([[0], cuts, [num_images]]))


# ---------------------------------------------------------------------------------------------
# the index


def _write_index(
    path: Path,
    images_file: Path,
    ranks: _Ranks,
    tally: _Tally,
    parts: list[tuple[int, int, Path]],
) -> None:
    images = [batch["record"].cast(pa.large_binary()) for batch in batches(images_file)]
    images = pa.chunked_array(images)
    text = json.dumps(dataclasses.asdict(tally.info())).encode()
    schema = INDEX_SCHEMA.with_metadata({METADATA_KEY: text})
    with open(path, "wb") as file:
        with pa.ipc.new_file(file, schema) as writer:
            for first, end, part in parts:
                columns = [
                    images.take(pa.array(ranks.order[first:end])).combine_chunks(),
                    pa.array(_join_annotations(part, first, end), pa.large_binary()),
                    pa.array(tally.has_objects[first:end]),
                    pa.array(np.greater(*ranks.sizes[first:end].T)),
                ]
                writer.write_batch(pa.record_batch(columns, schema=schema))
        file.flush()
        os.fsync(file.fileno())  # else the rename may outlive a power cut that the data does not


def _join_annotations(part: Path, first: int, end: int) -> list[bytes]:
    """The annotations of each image of one range, in the order of the json."""
    rows = list(batches(part))
    rank = np.concatenate([np.empty(0, np.int32), *(_column(batch, "rank") for batch in rows)])
    annotations = [text for batch in rows for text in batch["record"].to_pylist()]
    order = np.argsort(rank, kind="stable")
    starts = np.searchsorted(rank, np.arange(first, end + 1), sorter=order).tolist()
    order = order.tolist()
    return [
        b"[%b]" % b",".join([annotations[i] for i in order[start:stop]])
        for start, stop in pairwise(starts)
    ]
