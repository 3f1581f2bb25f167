"""A small COCO data set on disk, for tests to load or to spoil."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

COCO_TINY = Path(__file__).parents[1] / "data_files" / "coco_tiny"
"""Two train images (one is grey, one has a crowd region) and one val image of COCO 2017."""


def make_content():
    """Two images of 40 x 20 pixels and three boxes; the category ids have gaps and no order."""
    return {
        "images": [
            {"id": 5, "file_name": "b.png", "width": 40, "height": 20},
            {"id": 2, "file_name": "a.png", "width": 40, "height": 20},
        ],
        "annotations": [
            {"id": 11, "image_id": 2, "category_id": 90, "bbox": [10, 4, 8, 6], "iscrowd": 0},
            {"id": 12, "image_id": 5, "category_id": 3, "bbox": [0, 0, 40, 20], "iscrowd": 0},
            {"id": 13, "image_id": 5, "category_id": 7, "bbox": [1, 2, 3, 4], "iscrowd": 1},
        ],
        "categories": [
            {"id": 90, "name": "tree"},
            {"id": 3, "name": "car"},
            {"id": 7, "name": "boat"},
        ],
    }


def write_dataset(folder, content, split="train"):
    """Write `content` and a black image for each entry in COCO layout; returns the json's path."""
    (folder / split).mkdir(parents=True, exist_ok=True)
    for image in content["images"]:
        pixels = np.zeros((image["height"], image["width"], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / split / image["file_name"])
    return write_json(folder, content, split)


def write_json(folder, content, split="train"):
    path = folder / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path
