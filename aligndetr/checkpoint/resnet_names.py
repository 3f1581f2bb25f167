"""Names of ResNet backbones: torchvision's, detectron2's own and caffe2's.

torchvision and mmdetection number stages from 1 and put norms beside convolutions (`layer1.0.bn1`);
detectron2 numbers stages from 2 and puts norms into them (`res2.0.conv1.norm`).
"""

import re
from collections.abc import Mapping

import torch
from detectron2.checkpoint.c2_model_loading import convert_basic_c2_names
from torch import Tensor

from .converted import Converted
from .name_table import NameTable

FROZEN_BN_EPS = 1e-5


def resnet_rows(theirs: str, ours: str) -> list[tuple[str, str]]:
    """Rows of a `NameTable` for torchvision's names behind a prefix, and ours behind another."""
    stem, rows = "stem.conv1", [("conv1.weight", "stem.conv1.weight")]
    rows.append(("bn1.*", f"{stem}.norm.*"))
    for stage in (1, 2, 3, 4):
        block, ours_block = f"layer{stage}.#", f"res{stage + 1}.#"
        rows += [
            (f"{block}.bn#.*", f"{ours_block}.conv#.norm.*"),
            (f"{block}.conv#.weight", f"{ours_block}.conv#.weight"),
            (f"{block}.downsample.1.*", f"{ours_block}.shortcut.norm.*"),
            (f"{block}.downsample.0.weight", f"{ours_block}.shortcut.weight"),
        ]
    return [(theirs + name, ours + our_name) for name, our_name in rows]


TORCHVISION = NameTable(resnet_rows("", "backbone."))


def is_torchvision(names: set[str]) -> bool:
    return {"conv1.weight", "layer1.0.conv1.weight", "layer4.0.conv1.weight"} <= names


def is_detectron2_backbone(names: set[str]) -> bool:
    return {"stem.conv1.weight", "res2.0.conv1.weight"} <= names


def is_caffe2(names: set[str]) -> bool:
    return {"conv1_w", "res2_0_branch2a_w"} <= names


def from_torchvision(state: Mapping[str, Tensor]) -> Converted:
    """A ResNet of torchvision; its classifier is of no use here. timm's have the same names."""
    result = Converted("ResNet of torchvision", settings={_STRIDE: False})
    for name, tensor in state.items():
        our_name = None if is_counter(name) else TORCHVISION.ours(name)
        result.put(our_name, name, tensor)
        if our_name is not None:
            result.their_names[our_name] = name
    return result


def from_detectron2_backbone(state: Mapping[str, Tensor], author: str) -> Converted:
    """A bare backbone in detectron2's names, such as `torchvision/R-50.pkl` of its model zoo."""
    result = Converted("ResNet of detectron2's model zoo")
    if author == "torchvision":
        result.settings = {_STRIDE: False}
    for name, tensor in state.items():
        used = _is_backbone(name) and not is_counter(name)
        result.put(f"backbone.{name}" if used else None, name, tensor)
    return result


def from_caffe2(state: Mapping[str, Tensor]) -> Converted:
    """A ResNet of MSRA that caffe2 wrote; of a whole detector, its backbone.

    Its norms are a scale and a bias without statistics. It was trained on images in the order
    BGR, from which a mean was taken and which were not scaled, and strides in its 1x1 convolutions.
    """
    settings = {_STRIDE: True, "model.pixel_mean": [103.53, 116.28, 123.675]}
    settings |= {"model.pixel_std": [1.0, 1.0, 1.0]}
    settings |= {f"dataloader.{split}.mapper.img_format": "BGR" for split in ("train", "test")}
    result = Converted("ResNet of caffe2", settings=settings)
    names = list(state)
    for name, our_name in zip(names, convert_basic_c2_names(names), strict=True):
        used = _is_backbone(our_name) and not name.endswith("_momentum")
        result.put(f"backbone.{our_name}" if used else None, name, state[name])
    for name in [name for name in result.model if name.endswith(".norm.weight")]:
        norm, scale = name.removesuffix("weight"), result.model[name]
        # A mean of 0 and, with the eps that a frozen norm adds, a variance of 1.
        result.fill(f"{norm}running_mean", torch.zeros_like(scale))
        result.fill(f"{norm}running_var", torch.ones_like(scale) - FROZEN_BN_EPS)
    return result


def is_counter(name: str) -> bool:
    """Whether a BatchNorm counted its batches under `name`, which nothing reads."""
    return name.endswith(".num_batches_tracked")


_STRIDE = "model.backbone.stages.stride_in_1x1"


def _is_backbone(name: str) -> bool:
    return re.match(r"(stem\.conv\d|res[2-5]\.)", name) is not None
