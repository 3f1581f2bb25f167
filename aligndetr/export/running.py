"""An exported file in the place of the model: detectron2's dicts in, Instances out."""

import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.modeling import detector_postprocess
from detectron2.structures import Boxes, Instances
from torch import Tensor

from aligndetr.utils.batches import in_batches_of_one_size
from aligndetr.utils.extras import require

from .graph import MIN_PROGRAM_EDGE
from .ranking import RankingInterpreter, add_ranking_output

METADATA_FILE = "metadata.json"
Run = Callable[[Tensor], tuple[Tensor, ...]]


class RunningDetector:
    """Gives an exported file the calling convention of the model, so that the same evaluation and
    comparison take either.

    Args:
        run: images (B, 3, H, W) uint8 to boxes (B, N, 4), xyxy in pixels of the images, scores
            (B, N) and class ids (B, N); perhaps also the ranking of tokens (B, Q).
        metadata: of the file.
    """

    def __init__(self, run: Run, metadata: dict[str, str]):
        self.run = run
        self.metadata = metadata

    def __call__(self, batched_inputs: list[dict]) -> list[dict]:
        """See `AlignDETR.forward`: images of one size are one batch, and others run apart.

        Where the file gives its ranking, an image's result has "ranking" (Q,) beside "instances".
        """
        return in_batches_of_one_size(batched_inputs, self._detect)

    def _detect(self, same_size: list[dict]) -> list[dict]:
        images = torch.stack([x["image"] for x in same_size])
        size = (images.shape[-2], images.shape[-1])
        results = []
        for x, boxes, scores, class_ids, *ranking in zip(same_size, *self.run(images), strict=True):
            found = Instances(size)
            found.pred_boxes, found.scores, found.pred_classes = Boxes(boxes), scores, class_ids
            height, width = x.get("height", size[0]), x.get("width", size[1])
            result = {"instances": detector_postprocess(found, height, width)}
            results.append(result | {"ranking": ranking[0]} if ranking else result)
        return results


def load_onnx(
    path: str | os.PathLike,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    ranking: str | None = None,
) -> RunningDetector:
    """A `RunningDetector` of an ONNX file, in onnxruntime. Needs the extra `export`.

    Args:
        providers: of onnxruntime, in order of preference.
        ranking: a `ranking_name`; the detector then gives its ranking as well.
    """
    onnxruntime = require("onnxruntime", "export", "running ONNX")
    source = os.fspath(path)
    if ranking:
        content = require("onnx", "export", "ONNX").load(source)
        add_ranking_output(content, ranking)
        source = content.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(source, options, providers=list(providers))

    def run(images: Tensor) -> Any:
        outputs = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        return tuple(map(torch.from_numpy, outputs))

    return RunningDetector(run, session.get_modelmeta().custom_metadata_map)


def load_program(path: str | os.PathLike, ranking: str | None = None) -> RunningDetector:
    """A `RunningDetector` of a .pt2 file; `ranking` as of `load_onnx`."""
    metadata = {METADATA_FILE: ""}
    module = torch.export.load(path, extra_files=metadata).module()
    if ranking:
        module = RankingInterpreter(module, ranking)

    @torch.no_grad()
    def run(images: Tensor) -> Any:
        if min(images.shape[2:]) < MIN_PROGRAM_EDGE:
            height, width = images.shape[2:]
            raise ValueError(
                f"an image has {width} x {height} pixels, but a .pt2 file takes "
                f"{MIN_PROGRAM_EDGE} or more a side; enlarge it (dataset.test_short_edge), or use "
                "ONNX"
            )
        return module(images)

    return RunningDetector(run, json.loads(metadata[METADATA_FILE]))
