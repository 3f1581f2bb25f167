"""Using a trained detector, and looking at what it finds."""

from .detections import Detection, Detections
from .drawing import DrawnBoxes, SheetRow, draw_boxes, draw_sheet
from .images import ImageError, load_image
from .predictions import write_predictions
from .predictor import Predictor

__all__ = [
    "Detection",
    "Detections",
    "DrawnBoxes",
    "ImageError",
    "Predictor",
    "SheetRow",
    "draw_boxes",
    "draw_sheet",
    "load_image",
    "write_predictions",
]
