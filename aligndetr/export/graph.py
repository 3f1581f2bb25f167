"""A detector as one graph of tensor operations, for any number and size of images."""

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

INPUT = "images"
OUTPUTS = ("boxes", "scores", "class_ids")
OPSET = 17
"""Of ONNX: GridSample is there from 16 on, LayerNormalization from 17 on."""

# Only shapes are followed, so any size does; no two are equal, so that none passes for another.
MIN_PROGRAM_EDGE = 65
"""In pixels: torch.export fixes a feature map of one row or column as such, and the fourth of four
maps (stride 64) has two from here on."""

EXAMPLE_SHAPE = (2, 3, 256, 320)


class TensorDetector(nn.Module):
    """`model.predict` as a module's forward.

    Args:
        model: has `predict`: images (B, 3, H, W) to boxes (B, N, 4), scores and classes (B, N).

    Raises:
        ValueError: it has not, or its backbone wants padded images.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        if not hasattr(model, "predict"):
            raise ValueError(
                f"{type(model).__name__} cannot be exported: it has no method `predict` from a "
                "tensor of images to boxes, scores and classes (see AlignDETR.predict)"
            )
        backbone = getattr(model, "backbone", None)
        divisor = getattr(backbone, "size_divisibility", 0)
        if divisor > 1:
            raise ValueError(
                f"a model with the backbone {type(backbone).__name__} cannot be exported: "
                f"its images are padded to multiples of {divisor} pixels, "
                "with a mask, which the exported graph does not do"
            )
        self.model: Any = model
        # Also where the model is already: torch.onnx.export puts all back to the mode of this.
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.model.predict(images)


def to_onnx(model: nn.Module) -> bytes:
    """An ONNX model of `images` (B, 3, H, W) uint8 to `boxes` (B, N, 4), `scores` (B, N) and
    `class_ids` (B, N) int64, with B, H, W and N open.

    Deformable attention is written as GridSample, its reference formulation, whatever the process
    has chosen: no other can be captured, and "auto" knows that. Made by torch's tracer: the newer
    exporter of ONNX needs minutes where this one needs seconds, for the many sizes it reasons of.

    Args:
        model: in eval mode, on the CPU.
    """
    buffer = io.BytesIO()
    axes = {INPUT: {0: "batch", 2: "height", 3: "width"}}
    axes |= {name: {0: "batch", 1: "detections"} for name in OUTPUTS}
    with _addcdiv_in_onnx(), warnings.catch_warnings():
        # Of the tracer, for each size of the model itself that a check compares.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            TensorDetector(model),
            (torch.zeros(EXAMPLE_SHAPE, dtype=torch.uint8),),
            cast(Any, buffer),  # torch's own type names files alone
            dynamo=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_axes=axes,
        )
    return buffer.getvalue()


@contextlib.contextmanager
def _addcdiv_in_onnx() -> Iterator[None]:
    """The tracer's exporter does not know a + b / c as one operation."""

    def symbolic(g, start, numerator, denominator, value=None):  # noqa: ARG001 - is 1
        return g.op("Add", start, g.op("Div", numerator, denominator))

    torch.onnx.register_custom_op_symbolic("aten::addcdiv", symbolic, OPSET)
    try:
        yield
    finally:
        torch.onnx.unregister_custom_op_symbolic("aten::addcdiv", OPSET)


def to_program(model: nn.Module) -> ExportedProgram:
    """The same as a program of `torch.export`. It takes images of `MIN_PROGRAM_EDGE` pixels a
    side or more.

    Args:
        model: in eval mode, on the CPU.
    """
    images = torch.zeros(EXAMPLE_SHAPE, dtype=torch.uint8)
    sizes = {0: Dim("batch", min=1, max=1024), 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    with torch.no_grad():
        return torch.export.export(
            TensorDetector(model), (images,), dynamic_shapes=(sizes,), strict=False
        )
