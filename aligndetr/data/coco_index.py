"""The index of a COCO json: mapped into memory, shared by ranks and workers."""

import contextlib
import json
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from .checks import DatasetError
from .index_build import INDEX_SCHEMA, METADATA_KEY, IndexInfo

RELEASE_EVERY = 128
"""After so many rows read, pages of the index no longer count as memory of this process."""


class BadIndexError(ValueError):
    """A file that is not, or no longer, an index."""


class CocoIndex:
    """An index, mapped: opening it takes milliseconds and no memory, whatever its size.

    Opening sets the file's time of change, by which `index_files` knows that it is used.

    Args:
        path: written by `build_index`.

    Attributes:
        info: what it says of the whole json.

    Raises:
        BadIndexError: the file is damaged, cut off, or something else.
        FileNotFoundError: it does not exist.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            with open(path, "rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            reader = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(self._map)))
            self.info = IndexInfo(**json.loads(reader.schema.metadata[METADATA_KEY]))
            batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
            for batch in batches:
                batch.validate()  # that its buffers are as long as its arrays say
        except (ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise BadIndexError(f"{str(path)!r} is not an index: {error}") from error
        self._ends = np.cumsum([batch.num_rows for batch in batches])
        if not reader.schema.equals(INDEX_SCHEMA) or len(self) != self.info.num_images:
            raise BadIndexError(f"{str(path)!r} is not an index of {self.info.num_images} images")
        self._flags = {
            name: pa.chunked_array([batch[name] for batch in batches], pa.bool_())
            for name in ("has_objects", "lying")
        }
        self._texts = {
            name: [_views(batch[name]) for batch in batches] for name in ("image", "annotations")
        }
        self._reads = 0
        with contextlib.suppress(OSError):  # of somebody else's data
            os.utime(path)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def image(self, row: int) -> list[Any]:
        """[file_name, height, width, id] of the image at `row`."""
        return self._decode("image", row)

    def annotations(self, row: int) -> list[list]:
        """[bbox, iscrowd, category_id] of each annotation of the image at `row`, and segmentation.

        bbox is [x, y, width, height] in pixels, category_id the json's.
        """
        return self._decode("annotations", row)

    def images(self) -> Iterator[dict[str, Any]]:
        """`file_name` and `id` of all images."""
        for file_name, _, _, image_id in map(self.image, range(len(self))):
            yield {"file_name": file_name, "id": image_id}

    def _decode(self, column: str, row: int) -> list[Any]:
        """Raises DatasetError where the file is damaged."""
        batch = int(np.searchsorted(self._ends, row, side="right"))
        offsets, data = self._texts[column][batch]
        row_in_batch = row - int(self._ends[batch]) + len(offsets) - 1
        text = bytes(data[offsets[row_in_batch] : offsets[row_in_batch + 1]])
        self._release_pages()
        try:
            return json.loads(text)
        except ValueError as error:
            raise DatasetError(
                f"the index {str(self.path)!r} is damaged at row {row}; delete it, the next start "
                "builds it anew"
            ) from error

    def rows_with_objects(self) -> np.ndarray:
        """(N,) int32, rows of the images that have an object to train on."""
        return np.flatnonzero(self._flags["has_objects"].to_numpy()).astype(np.int32)

    def orientations(self) -> np.ndarray:
        """(N,) bool: the image is wider than high."""
        return self._flags["lying"].to_numpy()

    def _release_pages(self) -> None:
        # They stay in the system's cache, shared by all processes. Without this, a process that
        # has read the whole index would be as large as the index.
        self._reads += 1
        if self._reads % RELEASE_EVERY == 0 and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


def _views(column: pa.Array) -> tuple[np.ndarray, memoryview]:
    """(N + 1,) offsets and the bytes. Slices of a memoryview end in bounds, even if the file's
    offsets are damaged; Arrow trusts them."""
    _, offsets, data = column.buffers()
    offsets = np.frombuffer(offsets, np.int64)[column.offset : column.offset + len(column) + 1]
    return offsets, memoryview(data)
