"""Files that somebody made to do harm, each with what a user would do with it.

A case writes its files into a folder and returns the call that reads them. What they try to run
makes the file `canary`.
"""

import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from aligndetr.checkpoint import read_checkpoint
from aligndetr.config import apply_overrides, load_config
from aligndetr.data import register_dataset
from aligndetr.data.survey import survey_split
from aligndetr.inference import Predictor
from aligndetr.inference.images import load_image
from tests.data.coco_json import make_content, write_dataset, write_json
from tests.data.layouts_on_disk import write_yolo

Case = Callable[[Path, Path], Callable[[], object]]
CASES: dict[str, Case] = {}


def case(function: Case) -> Case:
    CASES[function.__name__] = function
    return function


class Runs:
    """Pickled, it asks for a command to be run."""

    def __init__(self, canary: Path):
        self.command = f"touch {canary}"

    def __reduce__(self):
        return os.system, (self.command,)


# ---------------------------------------------------------------------------------------------
# weights


def _weights(name: str, content: bytes) -> Case:
    def write(folder, canary):
        (folder / name).write_bytes(content)
        return lambda: read_checkpoint(str(folder / name))

    return write


@case
def pickle_with_os_system(folder, canary):
    (folder / "model.pkl").write_bytes(pickle.dumps({"model": {"a": Runs(canary)}}))
    return lambda: read_checkpoint(str(folder / "model.pkl"))


@case
def pickle_called_safetensors(folder, canary):
    (folder / "model.safetensors").write_bytes(pickle.dumps(Runs(canary)))
    return lambda: read_checkpoint(str(folder / "model.safetensors"))


@case
def torch_file_with_os_system(folder, canary):
    torch.save({"model": {"a": torch.ones(1)}, "hook": Runs(canary)}, folder / "model.pth")
    return lambda: Predictor.from_checkpoint(folder / "model.pth")


@case
def torch_file_of_the_old_format(folder, canary):
    content = {"model": {"a": Runs(canary)}}
    torch.save(content, folder / "model.pth", _use_new_zipfile_serialization=False)
    return lambda: read_checkpoint(str(folder / "model.pth"))


@case
def torch_file_with_a_config_that_runs(folder, canary):
    config = f"model: {{_target_: os.system, command: 'touch {canary}'}}\ndataloader: {{}}"
    torch.save({"model": {"a": torch.ones(1)}, "config": config}, folder / "model.pth")
    return lambda: Predictor.from_checkpoint(folder / "model.pth")


@case
def config_beside_a_checkpoint_that_runs(folder, canary):
    torch.save({"model": {"a": torch.ones(1)}}, folder / "model.pth")
    (folder / "config.yaml").write_text(
        f"model: !!python/object/apply:os.system ['touch {canary}']"
    )
    return lambda: Predictor.from_checkpoint(folder / "model.pth")


@case
def zip_with_a_path_upwards(folder, canary):
    with zipfile.ZipFile(folder / "model.pth", "w") as archive:
        archive.writestr(f"../{canary.name}", "x")
        archive.writestr(str(canary), "x")
    return lambda: read_checkpoint(str(folder / "model.pth"))


@case
def zip_that_unpacks_to_ten_gigabytes(folder, canary):
    with zipfile.ZipFile(folder / "model.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data.pkl", bytes(20 << 20))
    # In place of ten gigabytes, which take a minute to compress: the size is only said.
    text = (folder / "model.pth").read_bytes()
    (folder / "model.pth").write_bytes(
        text.replace(struct.pack("<I", 20 << 20), b"\xff\xff\xff\x7f")
    )
    return lambda: read_checkpoint(str(folder / "model.pth"))


def _safetensors(header: dict | bytes, length: int | None = None, data: bytes = b"1234") -> Case:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = struct.pack("<Q", len(text) if length is None else length)
    return _weights("model.safetensors", size + text + data)


CASES |= {
    "safetensors_with_a_header_beyond_the_file": _safetensors({}, length=1 << 60),
    "safetensors_with_a_tensor_beyond_the_file": _safetensors(
        {"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 4 << 40]}}
    ),
    "safetensors_with_a_tensor_larger_than_its_bytes": _safetensors(
        {"a": {"dtype": "F32", "shape": [9, 9], "data_offsets": [0, 4]}}
    ),
    "safetensors_with_overlapping_tensors": _safetensors(
        {k: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for k in "ab"}
    ),
    "safetensors_with_a_negative_offset": _safetensors(
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}
    ),
    "safetensors_with_deep_json": _safetensors(b"{" + b'"a":{' * 100_000, data=b""),
    "safetensors_metadata_that_is_no_json": _safetensors(
        {
            "__metadata__": {"class_names": "[" * 100_000},
            "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        }
    ),
}


@case
def safetensors_metadata_with_a_config_that_runs(folder, canary):
    config = f"model: {{_target_: aligndetr.engine.os.system, command: 'touch {canary}'}}"
    header = {
        "__metadata__": {"config": config},
        "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
    }
    _safetensors(header)(folder, canary)
    return lambda: Predictor.from_checkpoint(folder / "model.safetensors")


@case
def folder_of_the_hub_with_a_config_that_runs(folder, canary):
    config = (
        f"model: {{_target_: torch.hub.load, repo_or_dir: '{folder}', model: x, source: local}}"
    )
    (folder / "hubconf.py").write_text(f"import os\nos.system('touch {canary}')")
    header = {
        "__metadata__": {"config": config},
        "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
    }
    _safetensors(header)(folder, canary)
    return lambda: Predictor.from_pretrained(folder)


@case
def folder_of_the_hub_with_a_pickle(folder, canary):
    (folder / "model.safetensors").write_bytes(pickle.dumps({"model": {"a": Runs(canary)}}))
    return lambda: Predictor.from_pretrained(folder)


@case
def class_names_that_are_no_names(folder, canary):
    content = {"model": {"a": torch.ones(1)}, "class_names": [[["a"] * 9] * 9] * 9}
    torch.save(content, folder / "model.pth")
    return lambda: Predictor.from_checkpoint(folder / "model.pth")


# ---------------------------------------------------------------------------------------------
# configs

YAMLS = {
    "python_object_apply": "model: !!python/object/apply:os.system ['{command}']",
    "python_object_new": "model: !!python/object/new:os.system ['{command}']",
    "python_name": "model: {{_target_: !!python/name:os.system '', command: '{command}'}}",
    "target_os_system": "model: {{_target_: os.system, command: '{command}'}}",
    "target_through_our_imports": (
        "model: {{_target_: aligndetr.engine.os.system, command: '{command}'}}"
    ),
    "target_torch_hub_load": (
        "model: {{_target_: torch.hub.load, repo_or_dir: '{folder}', model: run, source: local}}"
    ),
    "target_beside_one_of_detrex": (
        "a: {{_target_: detrex.layers.PositionEmbeddingSine, x: {{_target_: os.system, "
        "command: '{command}'}}}}"
    ),
    "target_that_detrex_imports": "a: {{_target_: detrex.data.os.system, command: '{command}'}}",
    "resolver": "a: \"${{oc.create:{{_target_: os.system, command: '{command}'}}}}\"",
    "aliases_without_end": "a: &a [1,1]\n" + "".join(
        f"{y}: &{y} [{','.join([f'*{x}'] * 9)}]\n" for x, y in zip("abcdefghij", "bcdefghijk")
    ),
    "deep": "a: " + "[" * 100_000,
    "number_without_end": "a: " + "7" * 200_000,
    "number_to_the_base_of_60": "a: " + "1:" * 100_000 + "1",
}  # fmt: skip


def _yaml(text: str) -> Case:
    def write(folder, canary):
        (folder / "hubconf.py").write_text(f"import os\nos.system('touch {canary}')")
        path = folder / "config.yaml"
        path.write_text(text.format(command=f"touch {canary}", folder=folder))
        return lambda: load_config(path)

    return write


CASES |= {f"yaml_{name}": _yaml(text) for name, text in YAMLS.items()}


@case
def override_that_runs(folder, canary):
    (folder / "config.yaml").write_text("model: {part: 1}")
    options = [f"model.part={{_target_: os.system, command: touch {canary}}}"]
    return lambda: apply_overrides(load_config(folder / "config.yaml"), options)


# ---------------------------------------------------------------------------------------------
# data sets


def _coco(folder: Path) -> Path:
    for split in ("train", "val"):
        write_dataset(folder / "coco", make_content(), split)
    return folder / "coco"


def _named(file_name: str, link_to: str | None = None) -> Case:
    """An image outside of the folder, which is there and sound."""

    def write(folder, canary):
        root = _coco(folder)
        secret = folder / "secret.png"
        (root / "train" / "b.png").rename(secret)
        if link_to:
            (root / "train" / "link").symlink_to(link_to.format(folder=folder))
        content = make_content()
        content["images"][0]["file_name"] = file_name.format(folder=folder)
        write_json(root, content)
        return lambda: register_dataset("train", root=str(root))

    return write


CASES |= {
    "image_by_a_path_upwards": _named("../../secret.png"),
    "image_by_an_absolute_path": _named("{folder}/secret.png"),
    "image_by_a_link": _named("link", "{folder}/secret.png"),
    "image_in_a_linked_folder": _named("link/secret.png", "{folder}"),
}

NESTED = 10_000_000
JSONS = {
    "nested_lists": "[" * NESTED,
    "nested_lists_in_a_list": '{"images": ' + "[" * NESTED,
    "nested_lists_in_an_entry": '{"images": [{"id": ' + "[" * NESTED,
    "nested_lists_aside": '{"info": ' + "[" * NESTED,
    "nested_objects": '{"a":' * 1_000_000,
    "number_without_end": '{"images": [{"id": 1' + "0" * 5_000_000 + "}]}",
    "text_without_end": '{"images": ["' + "x" * 5_000_000,
    "lying_size": json.dumps(
        make_content() | {"images": [{"id": 2, "file_name": "a.png", "width": 1e308, "height": 9}]}
    ),
    "size_beyond_floats": json.dumps(
        make_content()
        | {"images": [{"id": 2, "file_name": "a.png", "width": 10**400, "height": 9}]}
    ),
    "box_beyond_floats": json.dumps(
        make_content()
        | {"annotations": [{"id": 1, "image_id": 2, "category_id": 3, "bbox": [0, 0, 10**400, 1]}]}
    ),
}


def _json(text: str) -> Case:
    def write(folder, canary):
        root = _coco(folder)
        json_file = root / "annotations" / "instances_train.json"
        json_file.write_text(text)

        def read():
            _, findings = survey_split("train", json_file, root / "train")
            assert [f for f in findings if f.level == "error"]
            register_dataset("train", root=str(root))

        return read

    return write


CASES |= {f"json_of_{name}": _json(text) for name, text in JSONS.items()}


@case
def roboflow_json_of_nested_lists(folder, canary):
    (folder / "train").mkdir()
    (folder / "train" / "_annotations.coco.json").write_text("[" * NESTED)
    return lambda: register_dataset("train", root=str(folder))


def _data_yaml(text: str) -> Case:
    def write(folder, canary):
        root = write_yolo(_coco(folder), folder / "yolo")
        names = "\nnames: [car, boat, tree]\n" if "names" not in text else ""
        text_of = text.replace("COMMAND", f"touch {canary}").replace("FOLDER", str(folder))
        (root / "data.yaml").write_text(text_of + names)
        return lambda: register_dataset("train", root=str(root))

    return write


CASES |= {
    "data_yaml_that_runs": _data_yaml("train: !!python/object/apply:os.system ['COMMAND']"),
    "data_yaml_with_aliases": _data_yaml(
        YAMLS["aliases_without_end"] + "train: images/train\nnames: *k"
    ),
    "data_yaml_with_a_place_outside": _data_yaml("path: FOLDER/coco\ntrain: train"),
    "data_yaml_with_a_place_upwards": _data_yaml("train: ../coco/train"),
}

# ---------------------------------------------------------------------------------------------
# images


@case
def image_that_is_a_program(folder, canary):
    """PostScript, which Pillow would give to Ghostscript."""
    text = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%touch {canary}) (w) file\n"
    (folder / "image.jpg").write_text(text)
    return lambda: load_image(folder / "image.jpg")


@case
def image_of_more_pixels_than_memory(folder, canary):
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(buffer, "PNG")
    png = bytearray(buffer.getvalue())
    png[16:24] = struct.pack(">II", 60_000, 60_000)
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    (folder / "image.png").write_bytes(png)
    return lambda: load_image(folder / "image.png")
