"""Where the index of a COCO json lies: found, or built by one of several processes.

An index is called by the content of its json, so a json that has been copied or touched is not
indexed again. A stamp beside it says for one json and one image folder which index belongs to
them, and at which size and times of the json; while those are the same, neither the json nor the
images are read again. Both lie in `.aligndetr` beside the json or, where nothing can be written,
in `$XDG_CACHE_HOME/aligndetr` (`~/.cache/aligndetr`).
"""

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from aligndetr.utils.files import atomic_path
from aligndetr.utils.locks import lock

from .checks import DatasetError, check_images_exist
from .coco_index import BadIndexError, CocoIndex
from .index_build import build_index

FORMAT = "v3"
"""Part of each index's name: another layout, or stricter checks, get another one."""

IMAGE_SAMPLE = 64
"""How many of the images, evenly spread, are looked for at each start after the first."""

LARGE = 64 << 20
"""Bytes of a json from which on indexing takes long enough to be announced aloud."""

KEPT_DAYS = 14
"""How long what is out of date stays after its last use: the training that was started with it
opens it once more in each worker of its first evaluation."""

logger = logging.getLogger(__name__)


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
                with contextlib.suppress(OSError):  # of somebody else's data
                    os.utime(_stamp_path(folder, json_file, image_root))  # see `last_use`
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
    digest = hashlib.sha256(os.fsencode(f"{json_file}\0{image_root}")).hexdigest()[:16]
    return folder / f"{json_file.stem}-{digest}.stamp"


def _read_stamp(path: Path) -> dict[str, Any]:
    try:
        stamp = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def _write_stamp(folder: Path, json_file: Path, image_root: Path, stamp: dict[str, Any]) -> None:
    """Also deletes indexes of earlier versions of the jsons whose time is over."""
    with atomic_path(_stamp_path(folder, json_file, image_root)) as temporary:
        temporary.write_text(json.dumps(stamp))
    _delete_unused(folder)


def _delete_unused(folder: Path) -> None:
    """Delete the indexes that no stamp of `folder` names and nobody has opened for long."""
    named = {str(_read_stamp(stamp).get("index")) for stamp in folder.glob("*.stamp")}
    for index in folder.glob("v*-*.arrow"):
        if index.name not in named:
            with contextlib.suppress(OSError):  # gone already, or Windows: a process has it open
                if is_long_ago(index.stat().st_mtime):  # `CocoIndex` sets it
                    index.unlink()


def is_long_ago(last_use: float) -> bool:
    """Whether no training that was started then, in Unix time, is thought to need it still."""
    return last_use < time.time() - KEPT_DAYS * 24 * 3600


def last_use(json_file: Path) -> float:
    """When a json was written or its index last opened, whichever is later, in Unix time."""
    times = []
    for path in [json_file, *_stamps_of(json_file)]:
        with contextlib.suppress(OSError):  # another process has just deleted it
            times.append(path.stat().st_mtime)
    return max(times, default=0.0)


def delete_json(json_file: Path) -> None:
    """Delete a json that we have written, its stamps, and the indexes that are no longer used."""
    stamps = _stamps_of(json_file)
    for path in [json_file, *stamps]:
        with contextlib.suppress(OSError):
            path.unlink()
    for folder in {stamp.parent for stamp in stamps}:
        _delete_unused(folder)


def _stamps_of(json_file: Path) -> list[Path]:
    """Of a json whose name no other has."""
    folders = index_folders(json_file)
    return [stamp for folder in folders for stamp in folder.glob(f"{json_file.stem}-*.stamp")]


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
    flags = os.O_CREAT | os.O_WRONLY | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)  # not on Windows
    return os.fdopen(os.open(folder / "lock", flags, 0o666), "a")


@contextlib.contextmanager
def _locked(folder: Path, json_file: Path) -> Iterator[None]:
    """One process of this folder at a time."""
    with _open_lock(folder) as file:
        try:
            lock(
                file,
                lambda: logger.info("Another process is indexing %r; waiting", str(json_file)),
            )
        except OSError as error:  # each process builds its own then; the last rename stays
            logger.warning("%s cannot be locked: %s", folder, error)
        yield
