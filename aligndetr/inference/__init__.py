"""Looking at what a trained detector finds."""

from .drawing import DrawnBoxes, SheetRow, draw_boxes, draw_sheet
from .predictions import write_predictions

__all__ = ["DrawnBoxes", "SheetRow", "draw_boxes", "draw_sheet", "write_predictions"]
