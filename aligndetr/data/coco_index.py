"""The index of a COCO json: found or built, mapped into memory, shared by ranks and workers.

An index is called by the content of its json, so a json that has been copied or touched is not
indexed again. A stamp beside it says for one json and one image folder which index belongs to
them, and at which size and times of the json; while those are the same, neither the json nor the
images are read again. Both lie in `.aligndetr` beside the json or, where nothing can be written,
in `$XDG_CACHE_HOME/aligndetr` (`~/.cache/aligndetr`).
"""

import fcntl
import hashlib
import json
import logging
import mmap
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from aligndetr.utils.files import atomic_path

from .checks import DatasetError, check_images_exist
from .index_build import INDEX_SCHEMA, METADATA_KEY, IndexInfo, build_index

FORMAT = "v2"
"""Part of each index's name: another layout gets another one."""

IMAGE_SAMPLE = 64
"""How many of the images, evenly spread, are looked for at each start after the first."""

LARGE = 64 << 20
"""Bytes of a json from which on indexing takes long enough to be announced aloud."""

RELEASE_EVERY = 128
"""After so many rows read, pages of the index no longer count as memory of this process."""

logger = logging.getLogger(__name__)


class BadIndexError(ValueError):
    """A file that is not, or no longer, an index."""


class CocoIndex:
    """An index, mapped: opening it takes milliseconds and no memory, whatever its size.

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


def open_index(json_file: Path, image_root: Path) -> CocoIndex:
    """The index of a json whose checks it has passed, images included; built if there is none.

    Of several processes one builds while the others wait.

    Raises:
        DatasetError: see `build_index` and `check_images_exist`.
    """
    folders = index_folders(json_file)
    index = _find_stamped(json_file, image_root, folders)
    if index is None:
        folder = first_writable(folders)
        with _locked(folder, json_file):
            index = _find_stamped(json_file, image_root, folders)
            if index is None:
                return _find_or_build(json_file, image_root, folders, folder)
    _check_some_images(index, image_root)
    return index


def index_folders(json_file: Path) -> list[Path]:
    """Where an index of `json_file` may lie, in the order of preference."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    beside = json_file.parent
    if beside.name != ".aligndetr":  # where converted jsons lie
        beside /= ".aligndetr"
    return [beside, Path(cache) / "aligndetr"]


def _find_stamped(json_file: Path, image_root: Path, folders: list[Path]) -> CocoIndex | None:
    """The index that a stamp of the json as it is now names, if there is a sound one."""
    state = _state_of(json_file)
    for folder in folders:
        stamp = _read_stamp(_stamp_path(folder, json_file, image_root))
        name = str(stamp.get("index"))
        if stamp.get("json") == state and name.startswith(f"{FORMAT}-"):  # none of an older version
            index = _open_in(folders, name)
            if index is not None:
                return index
    return None


def _find_or_build(
    json_file: Path, image_root: Path, folders: list[Path], folder: Path
) -> CocoIndex:
    """Called by one process at a time."""
    level = logging.INFO
    state = _state_of(json_file)
    if state[0] >= LARGE:
        # When a run is checked its log is not set up yet; Python shows warnings even so.
        level = logging.WARNING
    start = time.perf_counter()
    name = f"{FORMAT}-{_sha256(json_file)}.arrow"
    index = _open_in(folders, name)
    if index is None:
        size = f"{state[0] / 2**20:.1f} MiB"
        logger.log(level, "Indexing %r (%s), once for this content", str(json_file), size)
        build_index(json_file, folder / name)
        index = CocoIndex(folder / name)
    check_images_exist(index.images(), image_root)
    if _state_of(json_file) != state:
        raise DatasetError(
            f"{str(json_file)!r} changed while it was read; start again once it is written"
        )
    _write_stamp(folder, json_file, image_root, {"json": state, "index": name})
    seconds = time.perf_counter() - start
    logger.log(level, "Index of %r: %s (%.1f s)", str(json_file), index.path, seconds)
    return index


def _check_some_images(index: CocoIndex, image_root: Path) -> None:
    """Look for all images if one of a few is missing, so that the error counts and names them."""
    rows = np.linspace(0, len(index) - 1, min(len(index), IMAGE_SAMPLE)).astype(int).tolist()
    if not all(os.path.exists(os.path.join(image_root, index.image(row)[0])) for row in rows):
        check_images_exist(index.images(), image_root)


def _views(column: pa.Array) -> tuple[np.ndarray, memoryview]:
    """(N + 1,) offsets and the bytes. Slices of a memoryview end in bounds, even if the file's
    offsets are damaged; Arrow trusts them."""
    _, offsets, data = column.buffers()
    offsets = np.frombuffer(offsets, np.int64)[column.offset : column.offset + len(column) + 1]
    return offsets, memoryview(data)


# ---------------------------------------------------------------------------------------------
# files


def _state_of(json_file: Path) -> list[int]:
    """Size, and times of the last change of content and of anything (which nobody can set)."""
    try:
        status = json_file.stat()
    except FileNotFoundError:
        raise DatasetError(f"annotation file {str(json_file)!r} does not exist") from None
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _open_in(folders: list[Path], name: str) -> CocoIndex | None:
    """The first sound index of that name."""
    for folder in folders:
        try:
            return CocoIndex(folder / name)
        except OSError:  # not there, or not ours to read
            continue
        except BadIndexError as error:
            logger.warning("%s; it is built anew", error)
    return None


def _stamp_path(folder: Path, json_file: Path, image_root: Path) -> Path:
    digest = hashlib.sha256(f"{json_file}\0{image_root}".encode()).hexdigest()[:16]
    return folder / f"{json_file.stem}-{digest}.stamp"


def _read_stamp(path: Path) -> dict[str, Any]:
    try:
        stamp = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def _write_stamp(folder: Path, json_file: Path, image_root: Path, stamp: dict[str, Any]) -> None:
    """Also deletes the index of the json's last version, unless another stamp names it."""
    path = _stamp_path(folder, json_file, image_root)
    replaced = _read_stamp(path).get("index")
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(stamp))
    in_use = {_read_stamp(other).get("index") for other in folder.glob("*.stamp")}
    if replaced and replaced not in in_use:
        (folder / Path(replaced).name).unlink(missing_ok=True)


def first_writable(folders: list[Path]) -> Path:
    """The first of the folders that files can be written to; it is made if need be."""
    reasons = []
    for folder in folders:
        try:
            if folder.is_symlink():  # of an archive, perhaps: it would choose where we write
                raise OSError(f"{str(folder)!r} is a link")
            folder.mkdir(parents=True, exist_ok=True)
            _open_lock(folder).close()
            with atomic_path(folder / ".gitignore") as temporary:
                temporary.write_text("*\n")
            return folder
        except OSError as error:
            reasons.append(str(error))
    raise DatasetError(
        f"the index of a json must be written somewhere, but {' and '.join(reasons)}; make one of "
        "the folders writable or set XDG_CACHE_HOME to one that is"
    )


def _open_lock(folder: Path) -> IO:
    """For appending; a link of that name is an OSError."""
    flags = os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW
    return os.fdopen(os.open(folder / "lock", flags, 0o666), "a")


@contextmanager
def _locked(folder: Path, json_file: Path) -> Iterator[None]:
    """One process of this folder at a time; the system ends the lock of one that dies."""
    with _open_lock(folder) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("Another process is indexing %r; waiting", str(json_file))
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:  # each process builds its own then; the last rename stays
            logger.warning("%s cannot be locked: %s", folder, error)
        yield
