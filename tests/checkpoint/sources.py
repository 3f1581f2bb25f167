"""State dicts with the names and shapes of other codebases, and made-up values."""

import itertools
import math
import re
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torchvision.models import resnet50

from tests.builders import golden_json

TABLES = Path(__file__).parent / "tables"


def read_table(name: str) -> dict[str, tuple[int, ...]]:
    """Names to shapes of tests/checkpoint/tables/NAME.txt; see the head of mmdet_align_detr_r50."""
    shapes = {}
    for line in (TABLES / f"{name}.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern, *shape = line.split()
            shapes |= dict.fromkeys(_expanded(pattern), tuple(map(int, shape)))
    return shapes


def _expanded(pattern: str) -> list[str]:
    texts, braces = re.split(r"\{[^}]*\}", pattern), re.findall(r"\{([^}]*)\}", pattern)
    choices = [_choices(brace) for brace in braces]
    return [
        texts[0] + "".join(c + text for c, text in zip(chosen, texts[1:], strict=True))
        for chosen in itertools.product(*choices)
    ]


def _choices(brace: str) -> list[str]:
    if ".." in brace:
        first, last = map(int, brace.split(".."))
        return [str(number) for number in range(first, last + 1)]
    return brace.split(",")


def made_up(shapes: dict[str, tuple[int, ...]], *, rows_alike: bool = True) -> dict[str, Tensor]:
    """A value for each name, no two names and no two rows alike.

    Args:
        rows_alike: all values of a row are one value, which is stored once, so that the files of a
            ResNet-50 are small. Otherwise matrices keep a signal's size, and norms are near one.
    """
    generator, state = torch.Generator().manual_seed(0), {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
            continue
        ones = [1] * (len(shape) - 1)
        values = torch.randn(
            *(shape[:1] + tuple(ones) if rows_alike else shape), generator=generator
        )
        if len(shape) > 1:
            values = values * (shape[0] / math.prod(shape)) ** 0.5
        elif name.endswith(("running_var", "norm.weight", "_s")) or re.search(r"bn\d.weight", name):
            values = 1 + 0.1 * values.abs()
        else:
            values = 0.1 * values
        state[name] = values.expand(shape)
    return state


@cache
def align_detr_shapes() -> dict[str, tuple[int, ...]]:
    """The published AlignDETR's and detrex's; heads stand twice."""
    return {name: tuple(shape) for name, shape in golden_json("r50_4scale_keys")["keys"].items()}


def mmdet_align_detr() -> dict[str, Tensor]:
    return made_up(read_table("mmdet_align_detr_r50"))


def mmdet_dino() -> dict[str, Tensor]:
    """As AlignDETR, but the neck's convolutions have no bias (`bias="auto"` before a norm), and
    the backbone's norms are BatchNorms, which count batches."""
    shapes = {}
    for name, shape in read_table("mmdet_align_detr_r50").items():
        if not re.fullmatch(r"neck\..*\.conv\.bias", name):
            shapes[name] = shape
        if name.endswith("running_var"):
            shapes[name.replace("running_var", "num_batches_tracked")] = ()
    return made_up(shapes)


@cache
def torchvision_shapes() -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(t.shape) for name, t in resnet50(weights=None).state_dict().items()}


def torchvision_resnet() -> dict[str, Tensor]:
    return made_up(torchvision_shapes())


def detectron2_resnet() -> dict[str, Tensor]:
    """torchvision's under the names that detectron2's tools/convert-torchvision-to-d2.py gives."""
    state = {}
    for name, tensor in torchvision_resnet().items():
        if "layer" not in name:
            name = f"stem.{name}"
        for stage in (4, 3, 2, 1):
            name = name.replace(f"layer{stage}", f"res{stage + 1}")
        name = re.sub(r"bn(\d)", r"conv\1.norm", name)
        name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        state[name] = tensor
    return state


def caffe2_resnet() -> dict[str, Tensor]:
    return made_up(read_table("caffe2_r50"))
