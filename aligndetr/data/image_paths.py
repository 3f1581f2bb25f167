"""Which files a data set may name as its images: those in its image folder, and no others.

A json, or the links in an archive that somebody else has packed, could lead to any file of this
machine. The folder itself may be a link: whoever names it means what it leads to.
"""

import os
from pathlib import Path

from .errors import DatasetError


class ImageFolder:
    """The files below a folder, each folder listed once.

    On a network file system that takes a second instead of many minutes for every file.

    Args:
        root: the folder that names start from; it need not exist.
    """

    def __init__(self, root: str | os.PathLike):
        self.root = Path(root)
        self._real_root = os.path.realpath(root)
        self._is_link: dict[str, dict[str, bool]] = {}  # of the files in each folder

    def has(self, file_name: str) -> bool:
        """Whether there is such a file.

        Raises:
            DatasetError: the name leads out of the folder, by `..`, from the root of the disk, or
                by a link; or no file can be called so.
        """
        folder, name = os.path.split(file_name)
        if folder not in self._is_link:
            check_file_name(file_name)
            self._check_inside(folder, file_name)
            self._is_link[folder] = _list_folder(self.root / folder)
        is_link = self._is_link[folder].get(name)
        if is_link:
            self._check_inside(file_name, file_name)
        return is_link is not None

    def _check_inside(self, path: str, file_name: str) -> None:
        if not is_inside(self.root / path, self._real_root):
            raise DatasetError(
                f"{file_name!r} leads out of the image folder {str(self.root)!r}, to "
                f"{os.path.realpath(self.root / file_name)!r}. The images of a data set must lie "
                "in its folder, which may be a link itself: give the folder that holds them all "
                "(dataset.train_images, dataset.val_images, dataset.root), or copy them there."
            )


def check_file_name(file_name: str) -> None:
    """Raise a `DatasetError` for what no file can be called."""
    try:
        valid = bool(os.path.basename(file_name)) and b"\0" not in os.fsencode(file_name)
    except UnicodeEncodeError:  # half of a character, which JSON can hold
        valid = False
    if not valid:
        raise DatasetError(f"{file_name!r} is no name of a file; correct `file_name`")


def is_inside(path: str | os.PathLike, real_folder: str) -> bool:
    """Whether `path`, all its links followed, is `real_folder` or lies in it."""
    real = os.path.realpath(path)
    return os.path.commonpath([real, real_folder]) == real_folder


def _list_folder(folder: Path) -> dict[str, bool]:
    """The names in a folder, and whether each is a link."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry.is_symlink() for entry in entries}
    except (FileNotFoundError, NotADirectoryError):
        return {}
