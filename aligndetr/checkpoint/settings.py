"""What weights need that no tensor shows: a position embedding's temperature, pixel means, strides.

A model that is built otherwise loads such weights without complaint and finds less, or nothing.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn


def _stride_in_1x1(model: Any) -> bool | None:
    block = model.backbone.res3[0]
    return block.conv1.stride[0] > 1 if hasattr(block, "conv3") else None  # bottlenecks alone


READERS: dict[str, Callable[[Any], Any]] = {
    "model.position_embedding.temperature": lambda model: model.position_embedding.temperature,
    "model.position_embedding.offset": lambda model: model.position_embedding.offset,
    "model.position_embedding.normalize": lambda model: model.position_embedding.normalize,
    "model.pixel_mean": lambda model: model.pixel_mean,
    "model.pixel_std": lambda model: model.pixel_std,
    "model.backbone.stages.stride_in_1x1": _stride_in_1x1,
}
"""Config keys, and how to see their value in a model that is built."""


def differing_settings(model: nn.Module, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `settings` that the model differs in: config key to the model's value.

    What a model of another kind has not, or only a data loader knows (the order of channels), is
    not compared.
    """
    differing = {}
    for key, value in settings.items():
        try:
            found = READERS[key](model) if key in READERS else None
        except AttributeError:
            continue
        if found is not None and not _same(found, value):
            differing[key] = found.flatten().tolist() if isinstance(found, Tensor) else found
    return differing


def as_overrides(settings: Mapping[str, Any]) -> list[str]:
    """`KEY=VALUE` words, as the command lines take them."""
    return [f"{key}={_text(value)}" for key, value in settings.items()]


def _text(value: Any) -> str:
    return str(value).replace(" ", "")


def _same(found: Any, value: Any) -> bool:
    if isinstance(found, Tensor):
        found = found.flatten().tolist()
        return (
            isinstance(value, list) and len(value) == len(found) and all(map(_same, found, value))
        )
    if isinstance(value, (int, float)) and isinstance(found, (int, float)):
        return math.isclose(found, value, rel_tol=1e-6)
    return found == value
