"""mmdetection's AlignDETR (projects/AlignDETR) and DINO: names, and back.

All tensors have the same layout there and here: the rows of `in_proj` are query, key and value,
sampling offsets and attention weights are ordered by head, level and point, and the seventh head is
that of the encoder's proposals. Both networks see RGB. Only names differ, and in DINO the neck's
convolutions have no bias.
"""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from .aliases import without_aliases
from .converted import Converted
from .mmdet_config import ALIGN_DETR, DINO, model_settings
from .name_table import NameTable
from .resnet_names import is_counter, resnet_rows

ENCODER, DECODER = "transformer.encoder", "transformer.decoder"

TABLE = NameTable(
    [
        *resnet_rows("backbone.", "backbone."),
        ("neck.convs.#.conv.*", "neck.convs.#.conv.*"),
        ("neck.convs.#.gn.*", "neck.convs.#.norm.*"),
        ("neck.extra_convs.#.conv.*", "neck.extra_convs.#.conv.*"),
        ("neck.extra_convs.#.gn.*", "neck.extra_convs.#.norm.*"),
        ("encoder.layers.#.self_attn.*", f"{ENCODER}.layers.#.attentions.0.*"),
        ("encoder.layers.#.ffn.*", f"{ENCODER}.layers.#.ffns.0.*"),
        ("encoder.layers.#.norms.*", f"{ENCODER}.layers.#.norms.*"),
        ("decoder.layers.#.self_attn.*", f"{DECODER}.layers.#.attentions.0.*"),
        ("decoder.layers.#.cross_attn.*", f"{DECODER}.layers.#.attentions.1.*"),
        ("decoder.layers.#.ffn.*", f"{DECODER}.layers.#.ffns.0.*"),
        ("decoder.layers.#.norms.*", f"{DECODER}.layers.#.norms.*"),
        ("decoder.ref_point_head.*", f"{DECODER}.ref_point_head.*"),
        ("decoder.norm.*", f"{DECODER}.norm.*"),
        ("level_embed", "transformer.level_embeds"),
        ("query_embedding.weight", "transformer.tgt_embed.weight"),
        ("memory_trans_fc.*", "transformer.enc_output.*"),
        ("memory_trans_norm.*", "transformer.enc_output_norm.*"),
        ("bbox_head.cls_branches.#.*", "class_embed.#.*"),
        # Linear layers alternate with ReLUs there.
        ("bbox_head.reg_branches.#.0.*", "bbox_embed.#.layers.0.*"),
        ("bbox_head.reg_branches.#.2.*", "bbox_embed.#.layers.1.*"),
        ("bbox_head.reg_branches.#.4.*", "bbox_embed.#.layers.2.*"),
        ("dn_query_generator.label_embedding.weight", "label_enc.weight"),
    ]
)


def is_mmdet(names: set[str]) -> bool:
    """Whether the names are those of mmdetection's DINO, of which AlignDETR is one."""
    return {"memory_trans_fc.weight", "level_embed", "bbox_head.cls_branches.0.weight"} <= names


def from_mmdet(state: Mapping[str, Tensor], config_text: str | None) -> Converted:
    """mmdetection's AlignDETR or DINO under our names.

    Args:
        state: its state_dict.
        config_text: its config, which the checkpoints hold as Python source. Without one, the
            published config of the model counts, which the neck's biases tell apart.
    """
    has_bias = "neck.convs.0.conv.bias" in state
    result = Converted(f"{'AlignDETR' if has_bias else 'DINO'} of mmdetection")
    published = ALIGN_DETR if has_bias else DINO
    result.settings, result.training = model_settings(config_text, published)
    for name, tensor in state.items():
        our_name = None if is_counter(name) else TABLE.ours(name) or name
        result.put(our_name, name, tensor)
    for name in [name for name in result.model if _is_neck_weight(name)]:
        weight = result.model[name]
        # No bias is a bias of zero.
        result.fill(name.removesuffix("weight") + "bias", torch.zeros_like(weight[:, 0, 0, 0]))
    return result


def to_mmdet(
    state: Mapping[str, Tensor], filled: Collection[str] = frozenset()
) -> dict[str, Tensor]:
    """Our AlignDETR under the names of mmdetection's.

    Args:
        state: our state_dict; heads may stand in it once or twice.
        filled: names that `from_mmdet` added. They are left out again while they are zero.

    Raises:
        ValueError: a tensor has no counterpart there.
    """
    renamed, unknown = {}, []
    for name, tensor in without_aliases(state).items():
        if name in filled and not tensor.any():
            continue
        their_name = TABLE.theirs(name)
        if their_name is None:
            unknown.append(name)
        renamed[their_name] = tensor
    if unknown:
        raise ValueError(
            f"{len(unknown)} tensors have no name in mmdetection's AlignDETR, among them "
            f"{unknown[:3]}; only the published architecture (ResNet, ChannelMapper with "
            "GroupNorm, deformable transformer) can be converted"
        )
    return renamed


def _is_neck_weight(name: str) -> bool:
    return name.startswith("neck.") and name.endswith(".conv.weight")
