"""What a config of mmdetection says of the model, read as text: nothing in it is run."""

import ast
from typing import Any

MAX_CONFIG_CHARS = 1_000_000

ALIGN_DETR = {
    "positional_encoding": {"temperature": 10000, "offset": -0.5, "normalize": True},
    "backbone": {"style": "pytorch"},
}
"""Of projects/AlignDETR/configs, as far as it bears on what the model computes."""

DINO = {
    "positional_encoding": {"temperature": 20, "offset": 0.0, "normalize": True},
    "backbone": {"style": "pytorch"},
}
"""Of configs/dino. (Its `improved` variants have AlignDETR's embedding; their config says so.)"""

RGB_MEAN, RGB_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


def model_settings(text: str | None, published: dict) -> tuple[dict[str, Any], dict[str, Any]]:
    """Our config keys and values for a model of mmdetection.

    Args:
        text: its config as Python source; None, or a text without `model`, takes `published`.
        published: the model's dict in its published config.

    Returns:
        Settings that change what the model computes, and those of its training alone.
    """
    model = _model_of(text) or published
    position = _dict(model, "positional_encoding")
    images = _dict(model, "data_preprocessor")
    settings = {
        "model.position_embedding.temperature": position.get("temperature", 10000),
        "model.position_embedding.offset": position.get("offset", 0.0),
        "model.position_embedding.normalize": position.get("normalize", False),
        "model.pixel_mean": images.get("mean", RGB_MEAN),
        "model.pixel_std": images.get("std", RGB_STD),
        "model.backbone.stages.stride_in_1x1": _dict(model, "backbone").get("style") == "caffe",
    }
    if images.get("bgr_to_rgb") is False:
        splits = ("train", "test")
        settings |= {f"dataloader.{split}.mapper.img_format": "BGR" for split in splits}
    return settings, _training_settings(_dict(model, "bbox_head"))


def _training_settings(head: dict) -> dict[str, Any]:
    repeats = head.get("all_layers_num_gt_repeat")
    settings = {"match_num": match_num(repeats)} if isinstance(repeats, list) else {}
    settings |= {name: head[name] for name in ("alpha", "gamma", "tau") if name in head}
    return {f"model.criterion.{name}": value for name, value in settings.items()}


def match_num(all_layers_num_gt_repeat: list[int]) -> list[int]:
    """Our `match_num` for their `all_layers_num_gt_repeat`.

    There the decoder's layers come first and the encoder last; here the encoder's proposals come
    first, then the layers.
    """
    *layers, encoder = all_layers_num_gt_repeat
    return [encoder, *layers]


def all_layers_num_gt_repeat(match_num: list[int]) -> list[int]:
    """Their `all_layers_num_gt_repeat` for our `match_num`; see there."""
    encoder, *layers = match_num
    return [*layers, encoder]


def _model_of(text: str | None) -> dict | None:
    """The value of the last `model = dict(...)` in the source, its literals only."""
    if text is None or len(text) > MAX_CONFIG_CHARS:
        return None
    try:
        found = [
            _literal(statement.value)
            for statement in ast.parse(text).body
            if isinstance(statement, ast.Assign)
            and any(isinstance(x, ast.Name) and x.id == "model" for x in statement.targets)
        ]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return found[-1] if found and isinstance(found[-1], dict) else None


def _literal(node: ast.AST) -> Any:
    """The value of a literal or of `dict(name=literal, ...)`; None for anything else."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        return {word.arg: _literal(word.value) for word in node.keywords if word.arg}
    if isinstance(node, ast.Dict):
        keys = [key.value for key in node.keys if isinstance(key, ast.Constant)]
        if len(keys) == len(node.keys):
            return dict(zip(keys, map(_literal, node.values), strict=True))
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_literal(item) for item in node.elts]
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        return None


def _dict(model: dict, key: str) -> dict:
    value = model.get(key)
    return value if isinstance(value, dict) else {}


def cfg_options(model: dict[str, Any]) -> list[str]:
    """What must follow `--cfg-options` so that mmdetection's AlignDETR is a model of ours.

    Args:
        model: `model` of our config, as plain values.

    Returns:
        `KEY=VALUE` words for the keys in which the model differs from their published config.
    """
    position, transformer = _dict(model, "position_embedding"), _dict(model, "transformer")
    theirs = {
        "num_queries": (model.get("num_queries"), 900),
        "bbox_head.num_classes": (model.get("num_classes"), 80),
        "positional_encoding.temperature": (position.get("temperature", 10000), 10000),
        "positional_encoding.offset": (position.get("offset", 0.0), -0.5),
        "encoder.num_layers": (_dict(transformer, "encoder").get("num_layers"), 6),
        "decoder.num_layers": (_dict(transformer, "decoder").get("num_layers"), 6),
        "data_preprocessor.mean": (model.get("pixel_mean"), RGB_MEAN),
        "data_preprocessor.std": (model.get("pixel_std"), RGB_STD),
        "test_cfg.max_per_img": (model.get("select_box_nums_for_evaluation"), 300),
    }
    repeats = _dict(model, "criterion").get("match_num")
    if isinstance(repeats, list):
        published = [2, 2, 2, 2, 2, 1, 2]
        repeats = all_layers_num_gt_repeat(repeats)
        theirs["bbox_head.all_layers_num_gt_repeat"] = (repeats, published)
    return [
        f"model.{key}={str(ours).replace(' ', '')}"
        for key, (ours, published) in theirs.items()
        if ours is not None and ours != published
    ]


SIZES = {
    "embed_dim": 256,
    "neck.num_outs": 4,
    "backbone.stages.depth": 50,
    "transformer.encoder.num_heads": 8,
    "transformer.encoder.feedforward_dim": 2048,
}
"""Of the published model; where ours has others, more than `cfg_options` must change there."""


def other_sizes(model: dict[str, Any]) -> list[str]:
    """`KEY=VALUE` for the sizes of `model` (as of `cfg_options`) that the published one has not."""
    found = {key: _select(model, key) for key in SIZES}
    return [f"{key}={value}" for key, value in found.items() if value not in (SIZES[key], None)]


def _select(model: dict[str, Any], key: str) -> Any:
    *parents, last = key.split(".")
    for parent in parents:
        model = _dict(model, parent)
    return model.get(last)
