"""A trained detector as one file for other runtimes: ONNX, or torch.export's."""

from .evaluating import ap_check, validation_images
from .export import FORMATS, check_output, export_model
from .metadata import describe
from .parity import Comparison, ParityError, compare, render_table
from .running import RunningDetector, load_onnx, load_program

__all__ = [
    "FORMATS",
    "Comparison",
    "ParityError",
    "RunningDetector",
    "ap_check",
    "check_output",
    "compare",
    "describe",
    "export_model",
    "load_onnx",
    "load_program",
    "render_table",
    "validation_images",
]
