"""Training past images that cannot be read: another takes their place, and they are counted.

`ReplaceCorruptImages` works where images are mapped, perhaps in a worker process; it notes in the
sample which images it has left out. `CorruptImages` takes these notes out of the batches, in the
process that trains.
"""

import json
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detectron2.utils import comm

from aligndetr.utils.files import atomic_path

from .checks import DatasetError
from .records import Records

logger = logging.getLogger(__name__)

NOTE = "corrupt_images"  # key of a sample
REPORT_FILE = "corrupt_images.json"
MAX_TRIES = 20


class CorruptImageError(DatasetError):
    """One image is missing, broken, of another size than its annotations say, or too deep."""


class ReplaceCorruptImages:
    """A mapper around another, which maps a random image in place of one that is corrupt.

    Random is Python's global generator, which the loader seeds for each draw: the image that
    takes the place is the same in whichever process, and when a run is resumed.

    Args:
        mapper: dict to sample, a dict too; raises CorruptImageError.
        dataset: of the mapper's dicts.
    """

    def __init__(self, mapper: Callable[[dict], Any], dataset: Records):
        self.mapper = mapper
        self.dataset = dataset

    def __call__(self, dataset_dict: dict[str, Any]) -> Any:
        """The sample; if it is not of `dataset_dict`, with a note of the images left out.

        Raises:
            DatasetError: `MAX_TRIES` images one after another are corrupt.
        """
        notes: list[dict[str, Any]] = []
        while True:
            try:
                sample = self.mapper(dataset_dict)
            except CorruptImageError as error:
                notes.append(self._note(dataset_dict, error))
                if len(notes) == MAX_TRIES:
                    raise DatasetError(
                        f"{MAX_TRIES} images drawn one after another cannot be used; is the image "
                        f"folder there? The last: {error}"
                    ) from error
                dataset_dict = self.dataset[random.randrange(len(self.dataset))]
            else:
                return {**sample, NOTE: notes} if notes else sample

    def _note(self, dataset_dict: dict[str, Any], error: CorruptImageError) -> dict[str, Any]:
        return {
            "image_id": dataset_dict.get("image_id"),
            "file_name": str(dataset_dict.get("file_name")),
            "error": str(error),
            "images": len(self.dataset),
        }


class CorruptImages:
    """Which images were left out so far, each counted once; ends the run if they are too many.

    Args:
        max_share: of the data set's images; more end the run.
        folder: of corrupt_images.json, the list; None: not written.
    """

    def __init__(self, max_share: float = 0.05, folder: str | None = None):
        self.max_share = max_share
        self.folder = folder
        self.found: dict[str, dict[str, Any]] = {}  # by file name
        self._new: list[dict[str, Any]] = []

    def take_notes(self, batch: list[dict[str, Any]]) -> None:
        """Remember the notes of a batch and take them out of it."""
        for sample in batch:
            self._new += sample.pop(NOTE, ())

    def share(self) -> None:
        """Tell the other ranks, the log and the list what is new. A collective.

        Raises:
            DatasetError: on all ranks, if it is more than `max_share`.
        """
        gathered = [note for notes in comm.all_gather(self._new) for note in notes]
        self._new = []
        new = {n["file_name"]: n for n in gathered if n["file_name"] not in self.found}
        if not new:
            return
        self.found |= new
        num_images = max(note["images"] for note in new.values())
        if comm.is_main_process():
            for note in new.values():
                logger.warning("Left out and replaced by another: %s", note["error"])
            logger.warning("%s", self.summary())
            self._write()
        if len(self.found) > self.max_share * num_images:
            raise DatasetError(
                f"{len(self.found)} of {num_images} training images cannot be used, more than "
                f"`train.max_corrupt_share` (={self.max_share}) allows. Mend the files, or allow "
                f"more. The last: {gathered[-1]['error']}"
            )

    def summary(self) -> str:
        names = list(self.found)
        more = f" and {len(names) - 10} more" if len(names) > 10 else ""
        where = f"; all in {Path(self.folder) / REPORT_FILE}" if self.folder else ""
        images = "image" if len(names) == 1 else "images"
        return f"{len(names)} corrupt {images} so far: {', '.join(names[:10])}{more}{where}"

    def _write(self) -> None:
        if self.folder is None:
            return
        notes = [
            {key: note[key] for key in ("image_id", "file_name", "error")}
            for note in self.found.values()
        ]
        path = Path(self.folder) / REPORT_FILE
        try:
            with atomic_path(path) as temporary:
                temporary.write_text(json.dumps(notes, indent=1) + "\n", encoding="utf-8")
        except OSError as error:  # a full disk must not end the run
            logger.warning("could not write %s: %s", path, error)

    def state_dict(self) -> dict[str, list]:
        return {"found": list(self.found.values())}

    def load_state_dict(self, state: dict[str, list]) -> None:
        self.found = {note["file_name"]: note for note in state["found"]}
