"""A val set on which a model finds much and not all: made from what it finds itself."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from aligndetr.inference import Predictor


def write_val_set(
    root: Path, predictor: Predictor, images: Sequence[Path], names: Sequence[str]
) -> None:
    """COCO's layout in `root`; its objects are a third of what is found, moved a little."""
    rng = np.random.default_rng(0)
    (root / "annotations").mkdir(parents=True)
    (root / "val").mkdir()
    content = {"images": [], "annotations": []}
    # Category ids with gaps: the labels are not the ids.
    content["categories"] = [{"id": 7 * i + 5, "name": name} for i, name in enumerate(names)]
    for image_id, path in enumerate(images, start=3):
        shutil.copy(path, root / "val" / path.name)
        found = predictor(path, score_threshold=0)
        height, width = found.image_size
        content["images"].append(
            {"id": image_id, "file_name": path.name, "height": height, "width": width}
        )
        for detection in list(found)[::3]:
            x0, y0, x1, y1 = np.array(detection.box) + rng.uniform(-3, 3, 4)
            annotation = {"bbox": [x0, y0, max(x1 - x0, 1), max(y1 - y0, 1)], "iscrowd": 0}
            annotation |= {"image_id": image_id, "category_id": 7 * detection.class_id + 5}
            content["annotations"].append(annotation | {"id": len(content["annotations"]) + 1})
    (root / "annotations" / "instances_val.json").write_text(json.dumps(content))
