"""Writing files so that a reader never meets half of one."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path to write to; it becomes `path` when the block ends without an error.

    The temporary file lies beside `path` (a rename must not cross file systems) and keeps its
    suffix (writers pick their format by it). After an error it is removed and `path`, if it was
    there before, is as it was. Missing parent folders are made. (Of a process that is killed, by
    SIGKILL or a SIGTERM that it does not handle, the folder `.stem.*` stays; it may be deleted.)
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}.") as folder:
        temporary = Path(folder) / path.name
        yield temporary
        os.replace(temporary, path)
