"""COCO jsons made of other annotations: written once, and anew when these have changed."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from aligndetr.utils.files import atomic_path

from .index_files import delete_json, first_writable, index_folders, is_long_ago, last_use

FORMAT = "v2"
"""Part of what a name is made of: another way of converting gets other names."""

logger = logging.getLogger(__name__)


def converted_json(
    root: Path, name: str, sources: Iterable[Path], convert: Callable[[], dict[str, Any]]
) -> Path:
    """The COCO json made by `convert` from `sources` as they are now.

    It lies in `.aligndetr` in `root` or, where nothing can be written, in the cache folder of the
    user. Its name changes with the paths, sizes and times of the sources, so no content has to be
    read to see that it is up to date. Processes that convert at the same time write the same.
    Writing one deletes those of earlier states, with their indexes, `index_files.KEPT_DAYS`
    after their last use.

    Args:
        root: of the data set.
        name: how the file's name begins.
        sources: all files that the content depends on.
        convert: makes the content.
    """
    digest = hashlib.sha256(os.fsencode(f"{FORMAT}\0{root}"))
    for path in sources:
        digest.update(os.fsencode(f"\0{path}\0{state_of(path)}"))
    # In the cache folder lie jsons of other data sets, too.
    own = f"{name}-{hashlib.sha256(os.fsencode(root)).hexdigest()[:8]}"
    file_name = f"{own}-{digest.hexdigest()[:16]}.json"
    folders = index_folders(root / file_name)
    for folder in folders:
        if (folder / file_name).is_file():
            return folder / file_name
    content = convert()
    path = first_writable(folders) / file_name
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content), encoding="utf-8")
    logger.info("%s, read as COCO: %s", root, path)
    _delete_earlier(path, f"{name if path.parent == folders[0] else own}-*.json")
    return path


def _delete_earlier(path: Path, pattern: str) -> None:
    """Those beside `path` whose names match and that no training may still need."""
    for other in path.parent.glob(pattern):
        if other != path and is_long_ago(last_use(other)):
            delete_json(other)


def state_of(path: Path) -> tuple[int, int]:
    """Size and time of change; of a file that is not there, two zeros."""
    try:
        stat = path.stat()
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns
