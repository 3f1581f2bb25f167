"""Writing a detector as an ONNX file."""

import os

from torch import nn

from aligndetr.utils.extras import require

from .graph import to_onnx
from .half import to_half


def write_onnx(
    model: nn.Module, path: str | os.PathLike, metadata: dict[str, str], half: bool = False
) -> None:
    """Write `model`, weights included, as one ONNX file.

    Args:
        model: see `to_onnx`.
        metadata: becomes the file's `metadata_props`.
        half: weights in float16, see `to_half`.
    """
    onnx = require("onnx", "export", "ONNX")
    content = onnx.load_from_string(to_onnx(model))
    if half:
        content = to_half(content)
    onnx.helper.set_model_props(content, metadata)
    content.producer_name, content.producer_version = "aligndetr", metadata["aligndetr_version"]
    onnx.checker.check_model(content)
    onnx.save(content, os.fspath(path))
