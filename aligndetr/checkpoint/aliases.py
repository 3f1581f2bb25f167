"""Heads stand under two names in a state_dict: the model's own, and those of its decoder."""

from collections.abc import Mapping

from torch import Tensor

HEADS = ("class_embed.", "bbox_embed.")
DECODER = "transformer.decoder."


def without_aliases(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each head once, under the model's own name."""
    result = {}
    for name, tensor in state.items():
        own = name.removeprefix(DECODER)
        result[own if own.startswith(HEADS) else name] = tensor
    return result


def with_aliases(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each head under both names, as published checkpoints have them."""
    result = without_aliases(state)
    heads = [name for name in result if name.startswith(HEADS)]
    return result | {DECODER + name: result[name] for name in heads}
