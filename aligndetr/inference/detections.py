"""What a detector found in one image, ready to be counted, written, drawn or handed on."""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, overload

import numpy as np
from PIL import Image

from aligndetr.utils.extras import require
from aligndetr.utils.files import atomic_path

from .drawing import DrawnBoxes, draw_boxes
from .images import MAX_TILED_PIXELS, ImageLike, load_image, shrink


class Detection(NamedTuple):
    """One object: box (x0, y0, x1, y1) in pixels of the original image, score, class id, name."""

    box: tuple[float, float, float, float]
    score: float
    class_id: int
    name: str


@dataclass(frozen=True, eq=False)
class Detections:
    """N objects found in one image, the most certain first.

    `len()` counts them, iteration gives a `Detection` each, and indexing by a slice, a mask or
    indices gives `Detections` again: `found[found.scores > 0.5]`.

    Attributes:
        boxes: (N, 4) float32, xyxy in pixels of the original image (after its EXIF rotation).
        scores: (N,) float32 in [0, 1].
        class_ids: (N,) int64, from 0.
        class_names: of all classes that the model knows; class id i is `class_names[i]`.
        image_size: (height, width) of the original image.
        source: the image as it was given. A file is read again to draw on it.
        max_pixels: as of the Predictor.
    """

    boxes: np.ndarray
    scores: np.ndarray
    class_ids: np.ndarray
    class_names: Sequence[str]
    image_size: tuple[int, int]
    source: ImageLike
    max_pixels: int

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Detection]:
        values = (self.boxes.tolist(), self.scores.tolist(), self.class_ids.tolist(), self.names)
        for box, score, class_id, name in zip(*values, strict=True):
            yield Detection(tuple(box), score, class_id, name)

    @overload
    def __getitem__(self, key: int | np.integer) -> Detection: ...

    @overload
    def __getitem__(self, key: slice | np.ndarray | Sequence) -> "Detections": ...

    def __getitem__(self, key: Any) -> "Detection | Detections":
        if isinstance(key, (int, np.integer)):
            return list(self)[key]
        fields = {name: getattr(self, name)[key] for name in ("boxes", "scores", "class_ids")}
        return replace(self, **fields)

    def __repr__(self) -> str:
        height, width = self.image_size
        names, counts = np.unique(np.array(self.names, dtype=str), return_counts=True)
        found = ", ".join(f"{count} {name}" for name, count in zip(names, counts))
        return f"Detections({found or 'nothing'}; image of {width} x {height} pixels)"

    @property
    def names(self) -> list[str]:
        """N names, one per detection."""
        class_ids: list[int] = self.class_ids.tolist()
        return [self.class_names[class_id] for class_id in class_ids]

    @property
    def file_name(self) -> str | None:
        """Of the image, as it was given; None for an image that was in memory."""
        return os.fspath(self.source) if isinstance(self.source, (str, os.PathLike)) else None

    def to_coco(
        self, image_id: Any = None, category_ids: Sequence[int] | None = None
    ) -> list[dict[str, Any]]:
        """COCO's results: per detection a dict with image_id, category_id, bbox and score.

        Args:
            image_id: of the data set; default: the file name, or 0 for an image in memory.
            category_ids: of the data set, for each class; default: the class ids, from 0.

        Returns:
            bbox is [x, y, width, height] in pixels. There is category_name besides, which
            COCO's evaluation passes over.

        Raises:
            ValueError: there are not as many `category_ids` as classes.
        """
        if category_ids is not None and len(category_ids) != len(self.class_names):
            raise ValueError(
                f"{len(category_ids)} `category_ids` for {len(self.class_names)} classes; give the "
                f"data set's id of each, in this order: {', '.join(self.class_names)}"
            )
        if image_id is None:
            image_id = 0 if self.file_name is None else self.file_name
        category_ids = range(len(self.class_names)) if category_ids is None else category_ids
        # In float32, as the evaluation computes it.
        bboxes = np.concatenate([self.boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]], axis=1)
        return [
            {
                "image_id": image_id,
                "category_id": int(category_ids[class_id]),
                "category_name": self.class_names[class_id],
                "bbox": bbox,
                "score": score,
            }
            for bbox, score, class_id in zip(
                bboxes.tolist(), self.scores.tolist(), self.class_ids.tolist(), strict=True
            )
        ]

    def to_supervision(self) -> Any:
        """`supervision.Detections`, names under `data["class_name"]`. Needs the extra `predict`."""
        supervision = require("supervision", "predict", "to_supervision()")
        return supervision.Detections(
            xyxy=self.boxes.copy(),
            confidence=self.scores.copy(),
            class_id=self.class_ids.copy(),
            data={"class_name": np.array(self.names, dtype=str)},
        )

    def to_pandas(self) -> Any:
        """A DataFrame with xmin, ymin, xmax, ymax (pixels), score, class_id and name. Needs the
        extra `predict`."""
        pandas = require("pandas", "predict", "to_pandas()")
        columns = dict(zip(("xmin", "ymin", "xmax", "ymax"), self.boxes.T))
        columns |= {"score": self.scores, "class_id": self.class_ids}
        return pandas.DataFrame(columns).assign(name=np.array(self.names, dtype=object))

    def plot(self) -> Image.Image:
        """The image with boxes, names and scores, the most certain on top; lines and text are
        thicker in larger images. The image itself is not drawn on. One of more than `max_pixels`,
        which was predicted in tiles, is drawn at a half of its size, or a third, and so on."""
        whole = load_image(self.source, max(self.max_pixels, MAX_TILED_PIXELS), keep_mode=True)
        factor = math.ceil(math.sqrt(whole.width * whole.height / self.max_pixels))
        image = np.asarray(shrink(whole, factor))
        order = range(len(self) - 1, -1, -1)
        names, scores = self.names, self.scores.tolist()
        drawn = DrawnBoxes(
            boxes=self.boxes[::-1] / factor,
            class_ids=self.class_ids[::-1].tolist(),
            captions=[f"{names[i]} {scores[i]:.2f}" for i in order],
            crowd=[False] * len(self),
        )
        return draw_boxes(image, drawn, line_width=max(2, round(max(image.shape) / 500)))

    def save(self, path: str | os.PathLike) -> None:
        """Write `plot()` to a file, whose suffix says the format; complete or not at all.

        Raises:
            ValueError: no image format has such a suffix.
            OSError: it cannot be written there.
        """
        suffix = os.path.splitext(path)[1].lower()
        if Image.registered_extensions().get(suffix) not in Image.SAVE:
            raise ValueError(f"{str(path)!r} must end in .png, .jpg or another image format")
        picture = self.plot()
        try:
            with atomic_path(path) as temporary:
                picture.save(temporary)
        except OSError as error:
            raise OSError(f"{str(path)!r} cannot be written: {error.strerror or error}") from error
