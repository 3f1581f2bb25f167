"""detectron2's COCOEvaluator for boxes: the same numbers, files and tables, made faster."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2 import evaluation as detectron2_evaluation
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_json
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from aligndetr.utils.files import atomic_path

from .box_ap import GroundTruth, evaluate_boxes, limit_on_detections, paused_gc
from .detections import GatheredDetections

logger = logging.getLogger(__name__)


class COCOEvaluator(detectron2_evaluation.COCOEvaluator):
    """COCO metrics of boxes, equal to those of pycocotools to every digit.

    Differs from its base in cost only: detections are kept and gathered as arrays, the json is
    read by the main process alone, at the first evaluation, and faster-coco-eval does the work
    where it is installed. "instances_predictions.pth", which repeats the json file of results, is
    not written. Masks, keypoints and proposals are for the base.

    Args:
        dataset_name: registered, with `json_file` (or records from which one can be made, in
            `output_dir`), `thing_classes` and `thing_dataset_id_to_contiguous_id` as metadata.
        tasks: None or ("bbox",).
        distributed: gather the detections of all ranks; only the main process has results.
        output_dir: where "coco_instances_results.json" goes; None: nowhere.
        max_dets_per_image: detections that count per image and class, 10 or more. None: COCO's 100.
        use_fast_impl: False leaves the work to pycocotools.
        allow_cached_coco: trust a json that an earlier run made from a data set's records.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Iterable[str] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int | None = None,
        use_fast_impl: bool = True,
        allow_cached_coco: bool = True,
    ):
        # Not super().__init__, which reads the json; `_derive_coco_results` is what we inherit.
        if tasks is not None and tuple(tasks) != ("bbox",):
            raise ValueError(f"`tasks` (={tasks!r}) must be None or ('bbox',); {ONLY_BOXES}")
        self._max_detections = limit_on_detections(max_dets_per_image)
        self._logger = logger
        self._dataset_name = dataset_name
        self._metadata = MetadataCatalog.get(dataset_name)
        if not hasattr(self._metadata, "json_file") and output_dir is None:
            raise ValueError(
                f"{dataset_name!r} has no `json_file` in its metadata; one can be made from its "
                "records, but needs `output_dir`"
            )
        self._distributed = distributed
        self._output_dir = output_dir
        self._use_fast_impl = use_fast_impl
        self._allow_cached_coco = allow_cached_coco
        self._truth: GroundTruth | None = None
        self._parts: list[GatheredDetections] = []

    def reset(self) -> None:
        self._parts = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Keep the detections of a batch.

        Args:
            inputs: with "image_id".
            outputs: with "instances": `pred_boxes` (XYXY in pixels), `scores`, `pred_classes`.

        Raises:
            FloatingPointError: a box or score is not finite.
        """
        for image, output in zip(inputs, outputs, strict=True):
            instances = output["instances"]
            for field in ("pred_masks", "pred_keypoints"):
                if instances.has(field):
                    raise ValueError(f"the model predicts {field!r}; {ONLY_BOXES}")
            found = GatheredDetections.of_image(image["image_id"], instances)
            if not found.is_finite():
                raise FloatingPointError(
                    f"the model predicts NaN or infinity for image {image['image_id']!r} "
                    f"({image.get('file_name', 'no file name')}); its weights or its precision "
                    "are at fault, and no AP of it would mean anything"
                )
            self._parts.append(found)

    def evaluate(self, img_ids: list | None = None) -> dict[str, dict[str, float]]:
        """Metrics of all that was processed since the last `reset`.

        Args:
            img_ids: count these images only. None: all of the data set, processed or not.

        Returns:
            {"bbox": {"AP": …, "AP50": …, "AP-<class>": …}}, in percent, NaN where a metric has
            no meaning. {} on other ranks, if nothing was processed, and for a test set.

        Raises:
            ValueError: a label that is no class, or an image that the data set does not have.
        """
        detections = self._gather()
        if detections is None:
            return {}
        if not detections.image_ids:
            logger.warning("Nothing to evaluate: the model was given no image.")
            return {}
        with paused_gc():
            results = detections.to_results(self._category_ids(detections))
            if self._output_dir:
                self._write(results)
            if self._truth is None:
                self._truth = GroundTruth.from_json(self._json_file())
            if not self._truth.has_annotations:
                logger.info("%r has no annotations to evaluate with.", self._dataset_name)
                return {}
            summary = None
            if results:
                summary = evaluate_boxes(
                    self._truth, results, img_ids, self._max_detections, fast=self._use_fast_impl
                )
        names = self._metadata.get("thing_classes")
        return {"bbox": self._derive_coco_results(summary, "bbox", class_names=names)}

    def _gather(self) -> GatheredDetections | None:
        """All ranks' detections in the main process, None in the others."""
        detections = GatheredDetections.concatenate(self._parts)
        if not self._distributed:
            return detections
        parts = comm.gather(detections, dst=0)
        return GatheredDetections.concatenate(parts) if comm.is_main_process() else None

    def _category_ids(self, detections: GatheredDetections) -> Mapping[int, int] | Sequence[int]:
        """From labels to the ids of the json."""
        highest = int(detections.classes.max(initial=-1))
        class_of = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if class_of is None:
            return range(highest + 1)
        if highest >= len(class_of):
            raise ValueError(
                f"a detection has label {highest}, but {self._dataset_name!r} has the labels 0 to "
                f"{len(class_of) - 1}; correct `num_classes` of the model"
            )
        return {label: category_id for category_id, label in class_of.items()}

    def _write(self, results: list[dict[str, Any]]) -> None:
        assert self._output_dir is not None
        path = Path(self._output_dir) / "coco_instances_results.json"
        logger.info("Saving results to %s", path)
        try:
            with atomic_path(path) as temporary:
                temporary.write_text(json.dumps(results))
        except OSError as error:  # a full disk must not end a training, nor cost its metrics
            logger.error("%s COULD NOT BE WRITTEN: %s", path, error)

    def _json_file(self) -> str:
        if not hasattr(self._metadata, "json_file"):
            assert self._output_dir is not None, "checked at the start"
            path = str(Path(self._output_dir) / f"{self._dataset_name}_coco_format.json")
            convert_to_coco_json(self._dataset_name, path, allow_cached=self._allow_cached_coco)
            self._metadata.json_file = path
        return PathManager.get_local_path(self._metadata.json_file)


ONLY_BOXES = "this evaluator is for boxes, take detectron2.evaluation.COCOEvaluator for the rest"
