"""Copies of a COCO data set in the layouts that Roboflow and YOLO have."""

import json
import os
import shutil

import yaml


def write_roboflow(source, folder, val="valid"):
    """Images beside their json, and a placeholder before the classes."""
    for split, name in (("train", "train"), ("val", val)):
        shutil.copytree(source / split, folder / name)
        content = json.loads((source / "annotations" / f"instances_{split}.json").read_text())
        categories = [{**c, "supercategory": "things"} for c in content["categories"]]
        content["categories"] = [{"id": 0, "name": "things", "supercategory": "none"}, *categories]
        (folder / name / "_annotations.coco.json").write_text(json.dumps(content))
    return folder


def write_yolo(source, folder, **settings):
    """images/train, labels/train and so on, with data.yaml."""
    for split in ("train", "val"):
        shutil.copytree(source / split, folder / "images" / split)
        content = json.loads((source / "annotations" / f"instances_{split}.json").read_text())
        ids = sorted(c["id"] for c in content["categories"])
        (folder / "labels" / split).mkdir(parents=True)
        for image in content["images"]:
            lines = []
            for a in content["annotations"]:
                if a["image_id"] == image["id"] and not a["iscrowd"]:
                    x, y, w, h = a["bbox"]
                    width, height = image["width"], image["height"]
                    numbers = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
                    lines.append(" ".join(map(repr, (ids.index(a["category_id"]), *numbers))))
            stem = os.path.splitext(image["file_name"])[0]
            (folder / "labels" / split / f"{stem}.txt").write_text("\n".join(lines) + "\n")
    names = [c["name"] for c in sorted(content["categories"], key=lambda c: c["id"])]
    data = {"train": "images/train", "val": "images/val", "names": names} | settings
    (folder / "data.yaml").write_text(yaml.safe_dump(data))
    return folder
