"""A small data set on disk with detections of every kind of error, and what a page shows."""

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image

CAT, DOG = 3, 8
BOX, BESIDE, NOWHERE = [10, 10, 20, 20], [20, 10, 20, 20], [60, 60, 20, 20]


def write_data(folder: Path) -> tuple[Path, Path, Path]:
    """Ground truth, results and image folder: three images of 100 x 100."""
    names = ["a.png", "b & <b>.png", "c.png"]
    (folder / "val").mkdir(parents=True)
    for value, name in zip((60, 120, 180), names):
        Image.fromarray(np.full((100, 100, 3), value, np.uint8)).save(folder / "val" / name)
    truth = {
        "images": [
            {"id": i, "file_name": name, "height": 100, "width": 100}
            for i, name in enumerate(names, start=1)
        ],
        "categories": [{"id": CAT, "name": "cat <&>"}, {"id": DOG, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": CAT, "bbox": BOX},
            {"id": 2, "image_id": 2, "category_id": DOG, "bbox": BOX},
            {"id": 3, "image_id": 2, "category_id": CAT, "bbox": NOWHERE},
            {"id": 4, "image_id": 3, "category_id": CAT, "bbox": BOX},
        ],
    }
    found = [
        (1, CAT, BOX, 0.9),  # right
        (1, CAT, BOX, 0.8),  # duplicate
        (1, CAT, NOWHERE, 0.7),  # background
        (2, DOG, BESIDE, 0.6),  # localisation
        (2, DOG, NOWHERE, 0.5),  # classification
        (3, DOG, BESIDE, 0.4),  # both; the cat is missed
    ]
    results = [dict(zip(("image_id", "category_id", "bbox", "score"), row)) for row in found]
    paths = folder / "instances_val.json", folder / "results.json", folder / "val"
    paths[0].write_text(json.dumps(truth))
    paths[1].write_text(json.dumps(results))
    return paths


def config_yaml(data_folder):
    """As much of a config as says which data a run was evaluated on."""
    return f"""
dataset: {{root: null, val_json: {data_folder}/instances_val.json, val_images: {data_folder}/val}}
dataloader:
  test:
    dataset:
      names: {{_target_: aligndetr.data.register_dataset, split: val, root: null,
               json_file: '${{dataset.val_json}}', image_root: '${{dataset.val_images}}'}}
  evaluator:
    _target_: aligndetr.evaluation.COCOEvaluator
    dataset_name: '${{..test.dataset.names}}'
"""


class Cells(HTMLParser):
    """(key, digits, text) of each number, and all pictures' and links' addresses."""

    def __init__(self, text: str):
        super().__init__()
        self.numbers: list[list[str]] = []
        self.addresses: list[str] = []
        self._open = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.addresses += [attrs[name] for name in ("src", "href") if name in attrs]
        self._open = "data-key" in attrs
        if self._open:
            self.numbers.append([attrs["data-key"], attrs["data-digits"], ""])

    def handle_data(self, data):
        if self._open:
            self.numbers[-1][2] += data.strip()
