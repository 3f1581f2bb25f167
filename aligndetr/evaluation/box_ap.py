"""Average precision of boxes as COCO defines it: the numbers of pycocotools, from C++.

faster-coco-eval matches and counts as pycocotools does, but leaves one thing out. pycocotools
divides by the number of detections plus 2.2e-16, which changes the quotient for one detection and
for no other number. `_precision_of_one` puts that back, so that every entry of the precision table
is the same float, and not only the digits that are printed.
"""

import contextlib
import functools
import gc
import io
import json
import logging
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.evaluation.coco_evaluation import COCOevalMaxDets
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval, Params

logger = logging.getLogger(__name__)

COCO_MAX_DETECTIONS = 100
"""How many detections of an image and class count where nothing else is said."""

LEAST_MAX_DETECTIONS = 10
"""COCO's summary has the recall at 1 and 10 detections as well; the limit is the highest."""


@dataclass(frozen=True)
class GroundTruth:
    """The objects of a COCO json, without what boxes do not need.

    Images are numbered in the order of their ids: so ids may be texts, and detections of equal
    score keep the order that pycocotools gives them.
    """

    number_of: dict[Any, int]
    """From the id of an image to its number."""
    content: dict[str, list[dict]]
    """images, annotations and categories in COCO format; image ids are numbers."""
    has_annotations: bool
    """False for a test set, which can be predicted but not evaluated."""

    @classmethod
    def from_json(cls, json_file: str) -> "GroundTruth":
        """Read a COCO json, see `from_content`."""
        with open(json_file, "rb") as file:
            return cls.from_content(json.load(file), source=str(json_file))

    @classmethod
    def from_content(cls, content: dict[str, list[dict]], source: str) -> "GroundTruth":
        """From a COCO json that was read from `source`; a missing `area` is that of the box, a
        missing `iscrowd` is 0. `content` is left as it is."""
        ids = sorted(
            {image["id"] for image in content["images"]},
            key=lambda image_id: (isinstance(image_id, str), image_id),  # of both kinds: texts last
        )
        number_of = {image_id: number for number, image_id in enumerate(ids)}
        annotations = content.get("annotations", [])
        if any(annotation["id"] == 0 for annotation in annotations):
            logger.warning(
                "%r has an annotation with id 0, which COCO's evaluation never counts as found; "
                "number the annotations from 1",
                source,
            )
        return cls(
            number_of=number_of,
            content={
                "images": [{"id": number} for number in number_of.values()],
                "annotations": [
                    {
                        # Any id will do for the evaluation, as long as 0 stays what it is.
                        "id": number if annotation["id"] != 0 else 0,
                        "image_id": number_of[annotation["image_id"]],
                        "category_id": annotation["category_id"],
                        "bbox": annotation["bbox"],
                        "area": annotation.get(
                            "area", annotation["bbox"][2] * annotation["bbox"][3]
                        ),
                        "iscrowd": int(annotation.get("iscrowd", 0)),
                    }
                    for number, annotation in enumerate(annotations, start=1)
                    if annotation["image_id"] in number_of
                ],
                "categories": [{"id": category["id"]} for category in content["categories"]],
            },
            has_annotations="annotations" in content,
        )

    @functools.cached_property
    def category_ids(self) -> list[int]:
        return sorted(category["id"] for category in self.content["categories"])

    def numbers(self, image_ids: Collection | None) -> list[int]:
        """Numbers of some images (None: of all), ascending."""
        if image_ids is None:
            return list(self.number_of.values())
        unknown = [image_id for image_id in image_ids if image_id not in self.number_of]
        if unknown:
            raise ValueError(
                f"{len(unknown)} predicted images are not in the json that they are evaluated "
                f"with, for example image id {unknown[0]!r}; `dataloader.test` and "
                "`dataloader.evaluator` must name the same data set"
            )
        return sorted({self.number_of[image_id] for image_id in image_ids})


def limit_on_detections(max_dets_per_image: Any) -> int:
    """The value of a config as a limit for `evaluate_boxes`; None is COCO's.

    Raises:
        ValueError: it is no limit that can be counted by.
    """
    if max_dets_per_image is None:
        return COCO_MAX_DETECTIONS
    if type(max_dets_per_image) is not int or max_dets_per_image < LEAST_MAX_DETECTIONS:
        raise ValueError(
            f"`max_dets_per_image` (={max_dets_per_image!r}) must be a whole number from "
            f"{LEAST_MAX_DETECTIONS} on, because recall is measured at 1 and 10 detections as "
            "well; for COCO's 100 set dataloader.evaluator.max_dets_per_image=null"
        )
    return max_dets_per_image


def evaluate_boxes(
    truth: GroundTruth,
    results: list[dict[str, Any]],
    image_ids: Sequence | None = None,
    max_detections: int = COCO_MAX_DETECTIONS,
    fast: bool = True,
) -> COCOeval:
    """Evaluate detections. The summary is printed in the lines of pycocotools.

    Args:
        truth: what is there.
        results: at least one, in COCO's format (image_id, category_id, bbox in XYWH pixels,
            score), all finite if `fast`. Completed in place: afterwards `image_id` is a number.
        image_ids: count these images only. None: all.
        max_detections: the third of the limits 1, 10, 100 on detections per image and class, not
            below `LEAST_MAX_DETECTIONS`.
        fast: False leaves the work to pycocotools.

    Returns:
        With `stats` (12,), and in `eval` "precision" (T, R, K, A, M) and "recall" (T, K, A, M):
        10 IoU thresholds, 101 recall thresholds, classes by id, areas (all, small, medium, large)
        and the limits on detections.

    Raises:
        ValueError: an image that `truth` does not have.
    """
    assert max_detections >= LEAST_MAX_DETECTIONS, max_detections
    params = Params(iouType="bbox")
    params.maxDets = [1, LEAST_MAX_DETECTIONS, max_detections]
    params.catIds = truth.category_ids
    params.imgIds = truth.numbers(image_ids)
    truth.numbers({result["image_id"] for result in results})
    for number, result in enumerate(results, start=1):
        result["id"] = number
        result["image_id"] = truth.number_of[result["image_id"]]
        result["area"] = result["bbox"][2] * result["bbox"][3]
        result["iscrowd"] = 0

    summary = COCOevalMaxDets(iouType="bbox")
    summary.params = params
    run = _run_fast if fast and faster_coco_eval() else _run_pycocotools
    summary.eval = run(truth, {**truth.content, "annotations": results}, params)
    summary.summarize()
    return summary


@functools.cache
def faster_coco_eval() -> Any:
    """The module of that name, or None where it cannot be imported; said once."""
    try:
        import faster_coco_eval
    except ImportError as error:
        logger.info(
            "Evaluating with pycocotools, which is slow (pip install faster-coco-eval): %s", error
        )
        return None
    return faster_coco_eval


@contextlib.contextmanager
def paused_gc() -> Iterator[None]:
    """No garbage collection: it would visit the millions of dicts of a data set over and over."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _run_pycocotools(truth: GroundTruth, found: dict, params: Params) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):
        coco_gt, coco_dt = COCO(), COCO()
        contents: Any = (truth.content, found)  # not as narrow as the stub has them
        for coco, content in zip((coco_gt, coco_dt), contents):
            coco.dataset = content
            coco.createIndex()
        official = COCOeval(coco_gt, coco_dt, "bbox")
        official.params = params
        official.evaluate()
        official.accumulate()
    return official.eval


def _run_fast(truth: GroundTruth, found: dict, params: Params) -> dict[str, np.ndarray]:
    faster = faster_coco_eval()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Found annotation id 0")  # GroundTruth has said so
        coco_gt, coco_dt = faster.COCO(truth.content), faster.COCO(found)
    evaluation = faster.COCOeval_faster(coco_gt, coco_dt, "bbox")
    num_objects = _count_objects(truth, params)
    # 2^(1-b) is the one power of two that lies above 1/n and not above 2/n.
    exponents = np.frexp(np.maximum(num_objects - 1, 0))[1]
    probes = 2.0 ** (1 - np.arange(exponents.max() + 1))
    for name in ("imgIds", "catIds", "maxDets"):
        setattr(evaluation.params, name, getattr(params, name))
    evaluation.params.recThrs = np.concatenate([params.recThrs, probes])
    with paused_gc():
        evaluation.evaluate()
        evaluation.accumulate()
    precision, probed = np.split(evaluation.eval["precision"], [len(params.recThrs)], axis=1)
    at_two = np.take_along_axis(probed, exponents[None, None, :, :, None], axis=1)
    return {
        "precision": _precision_of_one(precision, at_two),
        "recall": evaluation.eval["recall"],
    }


def _count_objects(truth: GroundTruth, params: Params) -> np.ndarray:
    """(K, A): how many objects of a class and an area there are to be found, crowd left out."""
    objects = [a for a in truth.content["annotations"] if not a["iscrowd"]]
    classes = np.searchsorted(params.catIds, [a["category_id"] for a in objects])
    area = np.array([a["area"] for a in objects])
    counted = np.isin([a["image_id"] for a in objects], params.imgIds)
    return np.stack(
        [
            np.bincount(
                classes[counted & (area >= low) & (area <= high)], minlength=len(params.catIds)
            )
            for low, high in params.areaRng
        ],
        axis=1,
    )


def _precision_of_one(precision: np.ndarray, at_two: np.ndarray) -> np.ndarray:
    """1 / (1 + 2.2e-16) where a precision of 1 rests on a single detection.

    Args:
        precision: (T, R, K, A, M), -1 where there is nothing to find.
        at_two: (T, 1, K, A, M), the precision where the second object is found: 1 if two right
            detections come first, less or 0 otherwise.
    """
    return np.where((precision == 1) & (at_two != 1), 1 / (1 + np.spacing(1)), precision)
