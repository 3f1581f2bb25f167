"""Weight files of a backbone alone, whose names know nothing of the detector around it.

The official files of Swin and MAE, and those of timm, call a tensor `layers.0.norm1.weight` where
a detector has `backbone.layers.0.…`, `backbone.net.…` (in a feature pyramid), or
`backbone.body.layers_0.…` (a feature extractor of timm).
"""

from collections.abc import Iterable, Mapping

from torch import Tensor

MIN_SHARE = 0.5
"""Of the backbone's tensors that must be found; otherwise the file is about something else."""

PLACES = ("backbone.body.", "backbone.net.", "backbone.")


def with_backbone_names(state: Mapping[str, Tensor], own: Iterable[str]) -> dict[str, Tensor]:
    """The same tensors under the names of a model's backbone; as they are if they do not fit.

    Args:
        state: of a weight file.
        own: names of the model.
    """
    own = set(own)
    if own & state.keys():
        return dict(state)
    for place in PLACES:
        names = {_plain(name.removeprefix(place)): name for name in own if name.startswith(place)}
        found = {name: names[_plain(name)] for name in state if _plain(name) in names}
        if names and len(found) >= MIN_SHARE * len(names):
            return {found.get(name, name): tensor for name, tensor in state.items()}
    return dict(state)


def _plain(name: str) -> str:
    """timm's extractors join the first parts of a name: `stages_0.blocks` of `stages.0.blocks`."""
    return name.replace("_", ".")
