"""Using a trained detector, and looking at what it finds."""

from .detections import Detection, Detections
from .drawing import DrawnBoxes, SheetRow, draw_boxes, draw_sheet
from .files import find_inputs, predict_files
from .images import ImageError, load_image
from .predictions import write_predictions
from .predictor import Predictor
from .videos import VideoError

__all__ = [
    "Detection",
    "Detections",
    "DrawnBoxes",
    "ImageError",
    "Predictor",
    "SheetRow",
    "VideoError",
    "draw_boxes",
    "draw_sheet",
    "find_inputs",
    "load_image",
    "predict_files",
    "write_predictions",
]
