"""Small random COCO data sets with detections that are hard on an evaluation.

Boxes, areas and scores lie on coarse grids: IoUs meet the thresholds exactly, scores tie within
and across images, areas meet the limits of small, medium and large. There are crowd regions,
images and classes with nothing in them, and gaps between the ids.
"""

import json
import pickle

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm

SIZE = 160
CATEGORY_IDS = [2, 3, 11, 90]


def make_world(seed, num_images=7, max_objects=9, num_detections=40, image_ids=None):
    """(content of a COCO json, detections); a detection is (image id, label, score, xyxy)."""
    rng = np.random.default_rng(seed)
    image_ids = image_ids or [int(i) for i in rng.permutation(np.arange(1, 50))[:num_images]]
    annotations, detections = [], []
    for position, image_id in enumerate(image_ids):
        objects = _boxes(rng, 0 if position == 1 else rng.integers(1, max_objects))
        labels = rng.integers(0, 3, len(objects))  # the last class has no objects
        for box, label in zip(objects, labels, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": CATEGORY_IDS[label],
                    "bbox": box.tolist(),
                    "area": float(rng.choice([box[2] * box[3], 32.0**2, 96.0**2, 32.0**2 - 1])),
                    "iscrowd": int(rng.random() < 0.15),
                }
            )
        if position == 2:
            continue
        near = objects[rng.integers(0, len(objects), num_detections)] if len(objects) else objects
        near = near + 8 * rng.integers(-1, 2, near.shape)
        found = np.concatenate([near, _boxes(rng, num_detections)])
        found[:, 2:] = found[:, :2] + np.maximum(found[:, 2:], 0)  # some have no area
        scores = rng.integers(0, 11, len(found)) / 10
        detections += [
            (image_id, int(label), float(np.float32(score)), box.tolist())
            for label, score, box in zip(rng.integers(0, 4, len(found)), scores, found, strict=True)
        ]
    images = [{"id": i, "file_name": f"{i}.jpg", "width": SIZE, "height": SIZE} for i in image_ids]
    categories = [{"id": i, "name": f"class {i}"} for i in CATEGORY_IDS]
    return {"images": images, "annotations": annotations, "categories": categories}, detections


def coco_results(detections):
    return [
        {
            "image_id": image_id,
            "category_id": CATEGORY_IDS[label],
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "score": score,
        }
        for image_id, label, score, (x0, y0, x1, y1) in detections
    ]


def register(tmp_path, content, name=None):
    """Write the json and give detectron2 what an evaluator needs; returns the data set's name."""
    path = tmp_path / "ground_truth.json"
    path.write_text(json.dumps(content))
    name = name or f"world at {path}"
    MetadataCatalog.get(name).set(
        json_file=str(path),
        thing_classes=[category["name"] for category in content["categories"]],
        thing_dataset_id_to_contiguous_id={
            category["id"]: label for label, category in enumerate(content["categories"])
        },
    )
    return name


def model_outputs(content, detections):
    """What a loader and a model would give, image by image: ([input], [output])."""
    for image in content["images"]:
        mine = [d for d in detections if d[0] == image["id"]]
        instances = Instances(
            (SIZE, SIZE),
            pred_boxes=Boxes(torch.tensor([box for *_, box in mine]).reshape(-1, 4)),
            scores=torch.tensor([score for _, _, score, _ in mine]),
            pred_classes=torch.tensor([label for _, label, _, _ in mine], dtype=torch.long),
        )
        yield [{"image_id": image["id"]}], [{"instances": instances}]


def ranks(count, monkeypatch):
    """Be one rank after the other, the main one last: it gets what all have gathered."""
    sent = []

    def gather(part, dst):
        assert dst == 0
        sent.append(pickle.loads(pickle.dumps(part)))
        return sent

    monkeypatch.setattr(comm, "gather", gather)
    for rank in reversed(range(count)):
        monkeypatch.setattr(comm, "is_main_process", lambda rank=rank: rank == 0)
        yield rank


def _boxes(rng, count):
    """(count, 4) XYWH, multiples of 8."""
    corners = 8 * rng.integers(0, 8, (count, 2))
    return np.concatenate([corners, 8 * rng.integers(1, 13, (count, 2))], axis=1).astype(float)
