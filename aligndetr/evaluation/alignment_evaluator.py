"""The evaluator of alignment: what a model predicts, layer by layer, against the ground truth."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from aligndetr.utils.files import atomic_path
from aligndetr.utils.numbers import without_nan

from .alignment import Alignment
from .alignment_summary import summarise_alignment
from .box_ap import GroundTruth
from .detections import GatheredDetections
from .objects import ImageObjects, objects_by_image

logger = logging.getLogger(__name__)

SUMMARY_FILE = "alignment.json"
Candidates = tuple[np.ndarray, np.ndarray, np.ndarray]


class AlignmentEvaluator(DatasetEvaluator):
    """Score against IoU, calibration, and recall of best regressed samples (docs/alignment.md).

    A model that gives "layers" (`with model.all_layers():`) is measured at the encoder's proposals
    and after every decoder layer, each query with its class of the highest score. Of any other,
    its detections are the candidates.

    Args:
        dataset_name: registered, with `json_file`, `thing_classes` and
            `thing_dataset_id_to_contiguous_id` as metadata.
        distributed: gather what all ranks have measured; only the main process has results.
        output_dir: where "alignment.json" goes, with all numbers; None: nowhere.

    After `evaluate`, `layers` holds the pairs behind the numbers and `summary` all of these.
    """

    def __init__(self, dataset_name: str, distributed: bool = True, output_dir: str | None = None):
        self._metadata = MetadataCatalog.get(dataset_name)
        if not hasattr(self._metadata, "json_file"):
            raise ValueError(
                f"{dataset_name!r} has no `json_file` in its metadata, so there are no objects to "
                "compare with; name a data set in COCO format"
            )
        self._distributed = distributed
        self._output_dir = output_dir
        self._objects: list[ImageObjects] = []
        self._truth: GroundTruth | None = None
        self.layers: dict[str, Alignment] = {}
        self.summary: dict[str, Any] = {}
        self.reset()

    def reset(self) -> None:
        self._parts: dict[str, list[Alignment]] = {}

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Measure a batch.

        Args:
            inputs: with "image_id", "height" and "width".
            outputs: with "instances" as of `COCOEvaluator`, or with "layers": "names" of N layers,
                "pred_logits" (N, Q, K) and "pred_boxes" (N, Q, 4), cxcywh in [0, 1].
        """
        if self._truth is None:
            self._truth = GroundTruth.from_json(
                PathManager.get_local_path(self._metadata.json_file)
            )
            self._objects = objects_by_image(self._truth)
        for image, output in zip(inputs, outputs, strict=True):
            (number,) = self._truth.numbers([image["image_id"]])
            for name, candidates in self._candidates(image, output).items():
                measured = Alignment.of_image(*candidates, self._objects[number])
                self._parts.setdefault(name, []).append(measured)

    def evaluate(self, img_ids: list | None = None) -> dict[str, dict[str, float]]:  # noqa: ARG002
        """Numbers of all that was processed since the last `reset`.

        Args:
            img_ids: of a fast_dev_run; it is the processed images that count.

        Returns:
            {"alignment": {…}}: of the last layer, recalls and errors as shares in [0, 1]. {} on
            other ranks and if nothing was processed.
        """
        parts = {name: Alignment.concatenate(own) for name, own in self._parts.items()}
        gathered = comm.gather(parts, dst=0) if self._distributed else [parts]
        if not comm.is_main_process():
            return {}
        gathered = [of_rank for of_rank in gathered if of_rank]
        if not gathered:
            logger.warning("Nothing to evaluate: the model was given no image.")
            return {}
        self.layers = {
            name: Alignment.concatenate([of_rank[name] for of_rank in gathered])
            for name in gathered[0]
        }
        self.summary = summarise_alignment(self.layers, self._class_names())
        if self._output_dir:
            with atomic_path(Path(self._output_dir) / SUMMARY_FILE) as temporary:
                temporary.write_text(json.dumps(without_nan(self.summary), allow_nan=False))
        last = dict(self.summary["layers"][-1])
        del last["name"]
        return {"alignment": last}

    def _candidates(self, image: dict, output: dict) -> dict[str, Candidates]:
        """Scores, classes and boxes of each layer."""
        if "layers" not in output:
            found = GatheredDetections.of_image(image["image_id"], output["instances"])
            return {"detections": (found.scores, self._class_of(found.classes), found.boxes)}
        layers = output["layers"]
        scores, labels = layers["pred_logits"].float().sigmoid().max(dim=-1)
        boxes = layers["pred_boxes"].double().cpu().numpy()
        boxes = boxes * np.tile([image["width"], image["height"]], 2)
        boxes[..., :2] -= boxes[..., 2:] / 2
        labels = self._class_of(labels.cpu().numpy())
        return dict(zip(layers["names"], zip(scores.cpu().numpy(), labels, boxes), strict=True))

    def _class_of(self, labels: np.ndarray) -> np.ndarray:
        """From the model's labels to places among the category ids."""
        class_of = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if class_of is None:
            return labels
        assert self._truth is not None, "`process` has read it"
        order = np.empty(len(class_of), dtype=int)
        for category_id, label in class_of.items():
            order[label] = self._truth.category_ids.index(category_id)
        if labels.max(initial=0) >= len(order):
            raise ValueError(
                f"the model has a label {labels.max()}, but the data set has the labels 0 to "
                f"{len(order) - 1}; correct `num_classes` of the model"
            )
        return order[labels]

    def _class_names(self) -> list[str]:
        """In the order of the category ids."""
        assert self._truth is not None, "`process` has read it"
        names = self._metadata.get("thing_classes")
        count = len(self._truth.category_ids)
        if names is None:
            return [f"class {number}" for number in range(count)]
        sorted_names = [""] * count
        for name, place in zip(names, self._class_of(np.arange(len(names)))):
            sorted_names[place] = name
        return sorted_names
