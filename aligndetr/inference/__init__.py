"""Using a trained detector, and looking at what it finds."""

from .detections import Detection, Detections
from .drawing import DrawnBoxes, SheetRow, draw_boxes, draw_sheet
from .files import find_inputs, predict_files
from .images import ImageError, load_image
from .predictions import write_predictions
from .predictor import Predictor
from .preprocessing import preprocessing
from .sharing import convert_checkpoint, push_to_hub, save_pretrained
from .videos import VideoError

__all__ = [
    "Detection",
    "Detections",
    "DrawnBoxes",
    "ImageError",
    "Predictor",
    "SheetRow",
    "VideoError",
    "convert_checkpoint",
    "draw_boxes",
    "draw_sheet",
    "find_inputs",
    "load_image",
    "predict_files",
    "preprocessing",
    "push_to_hub",
    "save_pretrained",
    "write_predictions",
]
