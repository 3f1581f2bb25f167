"""The formats that are read from others: sound files, how they are broken, and who reads them."""

import io
import json
import pickle
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from PIL import Image
from torch import nn

from aligndetr.checkpoint import load_weights, read_checkpoint
from aligndetr.checkpoint.safetensors_files import write_safetensors
from aligndetr.config import load_config
from aligndetr.data import DetrDatasetMapper, get_detection_dataset, register_dataset
from aligndetr.data.survey import survey_split
from aligndetr.inference.images import load_image
from aligndetr.inference.restoring import find_config
from tests.data.coco_json import COCO_TINY, make_content, write_dataset
from tests.data.layouts_on_disk import write_yolo
from tests.fuzz.mutations import mutate, mutate_safetensors, mutate_zip

DATA_FILES = Path(__file__).parents[1] / "data_files"


@dataclass(frozen=True)
class Format:
    """One kind of file.

    Attributes:
        samples: contents of sound files.
        mutations: ways of breaking one.
        read: what is done with a broken one, in a folder of its own; may raise.
    """

    samples: list[bytes]
    mutations: list[Callable[[bytes, random.Random], bytes]]
    read: Callable[[bytes, Path], None]

    def broken(self, rng: random.Random) -> bytes:
        return rng.choice(self.mutations)(rng.choice(self.samples), rng)


AS_BYTES = partial(mutate, is_text=False)
AS_TEXT = partial(mutate, is_text=True)


# ---------------------------------------------------------------------------------------------
# weights and configs


def _model() -> nn.Module:
    """The same weights each time, so that a seed of the run stands for the same files."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(5, 7))


def _content() -> dict:
    config = (
        "model: {_target_: torch.nn.Linear, in_features: 5, out_features: 7}\ntrain: {lr: 1e-4}"
    )
    return {
        "model": _model().state_dict(),
        "config": config,
        "class_names": ["tree"],
        "iteration": 3,
    }


def _saved(content: dict, **options: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def _arrays() -> dict:
    state = {name: tensor.numpy() for name, tensor in _model().state_dict().items()}
    return {"model": state, "__author__": "torchvision", "matching_heuristics": True}


def _safetensors(folder: Path) -> bytes:
    write_safetensors(folder / "sample.safetensors", _content())
    return (folder / "sample.safetensors").read_bytes()


def _read_weights(data: bytes, folder: Path, suffix: str) -> None:
    path = folder / f"weights{suffix}"
    path.write_bytes(data)
    checkpoint = read_checkpoint(str(path))
    load_weights(_model(), checkpoint, str(path), strict=False)
    if "config" in checkpoint:
        find_config(checkpoint, str(path))


def _read_config(data: bytes, folder: Path) -> None:
    (folder / "config.yaml").write_bytes(data)
    load_config(folder / "config.yaml")


# ---------------------------------------------------------------------------------------------
# data sets


def _use(split: str, **paths: str) -> None:
    """All that a start of a training reads of a data set."""
    name = register_dataset(split, **paths)
    try:
        for record in get_detection_dataset(name, filter_empty=False):
            assert record["image_id"] is not None
    finally:
        DatasetCatalog.pop(name)
        MetadataCatalog.pop(name)


def _read_json(data: bytes, folder: Path, images: Path) -> None:
    (folder / "train.json").write_bytes(data)
    survey_split("train", folder / "train.json", images, decode=False)
    _use("train", json_file=str(folder / "train.json"), image_root=str(images))


def _read_yolo(data: bytes, folder: Path, sound: Path, name: str) -> None:
    shutil.copytree(sound, folder / "yolo")
    (folder / "yolo" / name).write_bytes(data)
    _use("train", root=str(folder / "yolo"))


def _rich_content() -> dict:
    """With all that a json may hold."""
    content = make_content()
    content["info"] = {"description": "made for tests", "year": 2026}
    first, second, third = content["annotations"]
    first["segmentation"] = [[10, 4, 18, 4, 18, 10, 10, 10]]
    second["segmentation"] = {"counts": [0, 400, 400], "size": [20, 40]}
    third["ignore"] = 1
    return content


# ---------------------------------------------------------------------------------------------
# images


def _images() -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 40, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    samples = [(COCO_TINY / "val" / "000000404484.jpg").read_bytes()]
    for kind, options in (
        ("JPEG", {"exif": exif}),
        ("PNG", {"exif": exif}),
        ("PNG", {}),
        ("BMP", {}),
        ("GIF", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {}),
        ("PPM", {}),
        ("JPEG2000", {}),
    ):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, kind, **options)
        samples.append(buffer.getvalue())
    return samples


def _read_image(data: bytes, folder: Path) -> None:
    path = folder / "image.png"  # the name means nothing
    path.write_bytes(data)
    mapper = DetrDatasetMapper([T.Resize((8, 8))], None)
    for read in (
        lambda: load_image(path),
        lambda: mapper({"file_name": str(path), "width": 40, "height": 20, "annotations": []}),
    ):
        try:
            read()
        except (ValueError, OSError) as error:
            refusal = error
        else:
            refusal = None
    if refusal:
        raise refusal


def make_formats(folder: Path) -> dict[str, Format]:
    """All formats; what their readers need beside the broken file lies in `folder`."""
    coco = folder / "coco"
    for split in ("train", "val"):
        write_dataset(coco, make_content(), split)
    yolo = write_yolo(coco, folder / "yolo")
    jsons = [json.dumps(_rich_content()).encode(), json.dumps(make_content(), indent=1).encode()]
    labels = [b"0 0.5 0.5 0.1 0.2\n2 0.1 0.1 0.1 0.1\n", b"1 0.1 0.1 0.4 0.1 0.2 0.3 0.2 0.9\n"]
    data_yamls = [
        (yolo / "data.yaml").read_bytes(),
        yaml.safe_dump(
            {"path": ".", "train": ["images/train"], "nc": 3, "names": dict(enumerate("abc"))}
        ).encode(),
    ]
    configs = [
        (DATA_FILES / "reference_config.yaml").read_bytes(),
        b"train: {device: cpu, lr: 1e-4}\nmodel: {_target_: torch.nn.Linear, in_features: 5,\n"
        b"  out_features: '${train.lr}'}\nlist: &a [1, 2.5, null]\nagain: *a\n",
    ]
    zips = [_saved(_content())]
    old = [_saved(_content(), _use_new_zipfile_serialization=False)]
    pickles = [pickle.dumps(_arrays(), protocol) for protocol in (0, 2, 4, 5)]
    weights = partial(partial, _read_weights)
    return {
        ".pth": Format(zips, [AS_BYTES, mutate_zip, mutate_zip], weights(suffix=".pth")),
        ".pth, old": Format(old, [AS_BYTES], weights(suffix=".pth")),
        ".pkl": Format(pickles, [AS_BYTES], weights(suffix=".pkl")),
        ".safetensors": Format(
            [_safetensors(folder)], [AS_BYTES, mutate_safetensors], weights(suffix=".safetensors")
        ),
        ".yaml": Format(configs, [AS_TEXT], _read_config),
        "COCO .json": Format(jsons, [AS_TEXT], partial(_read_json, images=coco / "train")),
        "YOLO labels": Format(
            labels, [AS_TEXT], partial(_read_yolo, sound=yolo, name="labels/train/a.txt")
        ),
        "data.yaml": Format(
            data_yamls, [AS_TEXT], partial(_read_yolo, sound=yolo, name="data.yaml")
        ),
        "images": Format(_images(), [AS_BYTES], _read_image),
    }
