"""Heads of a two-stage decoder whose file has another number of layers."""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

LAYER = re.compile(r"transformer\.decoder\.layers\.(\d+)\.")
HEAD = re.compile(r"((?:transformer\.decoder\.)?(?:class|bbox)_embed)\.(\d+)\.(.+)")


def with_proposal_head(
    state: Mapping[str, Tensor], model_names: Iterable[str]
) -> dict[str, Tensor]:
    """`state` with the head of the encoder's proposals where the model has it.

    Of a decoder of N layers, heads 0 to N - 1 are those of its layers, and head N rates the
    encoder's tokens. By name alone, a model of 3 layers would take a fourth layer's head for
    that. Where the numbers of layers differ, the two names change places.
    """
    in_file, here = _depth(state), _depth(model_names)
    if in_file == here or not in_file or not here:
        return dict(state)
    places = {str(in_file): str(here), str(here): str(in_file)}

    def renamed(name: str) -> str:
        match = HEAD.fullmatch(name)
        return f"{match[1]}.{places.get(match[2], match[2])}.{match[3]}" if match else name

    return {renamed(name): tensor for name, tensor in state.items()}


def _depth(names: Iterable[str]) -> int:
    """Decoder layers that have weights among `names`."""
    return len({match[1] for match in map(LAYER.match, names) if match})
