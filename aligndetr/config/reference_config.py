"""Configs that the authors' code has saved, as configs of ours.

Their `config.yaml` names detrex's classes, holds two kinds of Python objects, and has none of the
keys that came later. What it holds is kept, by our names; what it lacks takes our defaults. Two
values that it repeats follow their source again, so that one override changes both.
"""

import logging
from typing import Any

import yaml
from omegaconf import OmegaConf

from .allow_list import walk
from .shared import get_config

logger = logging.getLogger(__name__)

SHAPE_SPEC_TAG = "tag:yaml.org,2002:python/object:detectron2.layers.shape_spec.ShapeSpec"
LAMBDA_TAG = "tag:yaml.org,2002:python/name:None.<lambda>"
LAMBDA = {"_target_": "None.<lambda>"}
"""What a function without a name is read as; `check_targets` refuses it wherever it stays."""

_SHAPE_SPEC_FIELDS = ("channels", "height", "width", "stride")
_LR_FACTOR = {"_target_": "aligndetr.engine.backbone_lr_factor", "factor": 0.1}

TARGETS = {
    "detectron2.data.build_detection_test_loader": "aligndetr.data.build_detection_test_loader",
    "detectron2.data.build_detection_train_loader": "aligndetr.data.build_detection_train_loader",
    "detectron2.data.get_detection_dataset_dicts": "aligndetr.data.get_detection_dataset",
    "detectron2.evaluation.COCOEvaluator": "aligndetr.evaluation.COCOEvaluator",
    "detectron2.modeling.ResNet": "aligndetr.modeling.ResNet",
    "detrex.data.DetrDatasetMapper": "aligndetr.data.DetrDatasetMapper",
    "detrex.layers.PositionEmbeddingSine": "aligndetr.layers.PositionEmbeddingSine",
    "detrex.modeling.ChannelMapper": "aligndetr.modeling.ChannelMapper",
}
"""Theirs, and the class or function here that does the same and knows our keys."""

# Parts are built in the order of their keys, which a saved file sorts by the alphabet: weights
# would be drawn in another order than in the authors' run.
BUILD_ORDER = (
    *("backbone", "position_embedding", "neck", "transformer"),
    *("stem", "stages", "encoder", "decoder"),
)


def add_reference_tags(loader: type[yaml.SafeLoader]) -> None:
    """Let `loader` read the two tags of the saved configs, exactly these, as plain dicts."""
    loader.add_constructor(SHAPE_SPEC_TAG, _shape_spec)
    loader.add_constructor(LAMBDA_TAG, _lambda)


def _shape_spec(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, int]:
    """The known fields; `ChannelMapper` takes a mapping for a ShapeSpec."""
    fields = loader.construct_mapping(node, deep=True)
    numbers = all(value is None or type(value) is int for value in fields.values())
    if not numbers or not set(fields) <= set(_SHAPE_SPEC_FIELDS):
        raise yaml.constructor.ConstructorError(
            None, None, f"{fields!r} is no ShapeSpec of {_SHAPE_SPEC_FIELDS}", node.start_mark
        )
    return {name: value for name, value in fields.items() if value is not None}


def _lambda(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> dict[str, str]:
    if loader.construct_scalar(node):
        raise yaml.constructor.ConstructorError(
            None, None, "a function without a name takes no value", node.start_mark
        )
    return dict(LAMBDA)


def is_reference_config(data: Any) -> bool:
    """Whether a part of it is of detrex: the authors' code has saved it."""
    return any(_target_of(value).startswith("detrex.") for _, value in walk(data))


def translate_reference_config(data: dict[str, Any]) -> dict[str, Any]:
    """A config of ours that trains the same model on the same data.

    Args:
        data: plain values, as read from YAML.

    Raises:
        ValueError: names a part that has no counterpart here, or a key of `train` that this
            engine does not know.
    """
    data = _rename(data, "")
    dataset, dataloader = _take_shared("common/data/coco.py", "dataset", "dataloader")
    data["train"] = _over(_take_shared("common/train.py", "train")[0], data.get("train"), "train")
    # Not the sizes: their augmentations have their own, so the keys of ours would do nothing.
    paths = [key for key in dataset if key.endswith(("root", "json", "images"))]
    data.setdefault("dataset", {key: dataset[key] for key in paths})
    for split, loader in _group(data, "dataloader").items():
        if split in ("train", "test") and isinstance(loader, dict):
            _complete_loader(loader, dataloader[split])
    _follow(data, ("dataloader", "evaluator"), "output_dir", "output_dir")
    _follow(data, ("model",), "device", "device")
    _complete_optimizer(_group(data, "optimizer"))
    logger.info("The config is one of the authors' code, read by the names and defaults of ours")
    return data


def _rename(value: Any, key: str) -> Any:
    """A copy with our targets."""
    if isinstance(value, list):
        return [_rename(child, f"{key}.{i}") for i, child in enumerate(value)]
    if not isinstance(value, dict):
        return value
    copy = {
        name: _rename(value[name], f"{key}.{name}".lstrip("."))
        for name in sorted(value, key=lambda n: (*BUILD_ORDER, n).index(n))
    }
    target = _target_of(value)
    if target.startswith("detrex.") and target not in TARGETS:
        raise ValueError(
            f"`{key}._target_` (={target!r}) has no counterpart here; of detrex "
            f"{[name for name in TARGETS if name.startswith('detrex.')]} have. Start from a config "
            "under projects/aligndetr/configs instead"
        )
    if target in TARGETS:
        copy["_target_"] = TARGETS[target]
    return copy


def _target_of(value: Any) -> str:
    target = value.get("_target_") if isinstance(value, dict) else None
    return target if isinstance(target, str) else ""


def _group(data: dict, key: str) -> dict:
    found = data.get(key)
    return found if isinstance(found, dict) else {}


def _take_shared(name: str, *keys: str) -> list[Any]:
    cfg = get_config(name)
    return [OmegaConf.to_container(cfg[key], resolve=False) for key in keys]


def _over(defaults: dict, theirs: Any, key: str) -> dict:
    """Their values over our defaults, group by group."""
    if not isinstance(theirs, dict):
        return defaults
    unknown = sorted(set(map(str, theirs)) - set(defaults))
    if unknown and not key.endswith((".params", ".ddp")):
        raise ValueError(
            f"`{key}` has {unknown}, which the training here does not know; take it out of the "
            f"file. It knows {sorted(defaults)}"
        )
    merged = dict(defaults)
    for name, value in theirs.items():
        old = defaults.get(name)
        merged[name] = _over(old, value, f"{key}.{name}") if isinstance(old, dict) else value
    return merged


def _complete_loader(loader: dict, ours: dict) -> None:
    for key in ("device", "seed"):
        if key in ours:
            loader.setdefault(key, ours[key])
    dataset = _group(loader, "dataset")
    names = {**ours["dataset"]["names"], "_target_": "aligndetr.data.register_dataset"}
    # `dataset.root` and the like, if one is given; else the same images of COCO.
    if dataset.get("names") == f"coco_2017_{names['split']}":
        dataset["names"] = names


def _follow(data: dict, place: tuple[str, ...], key: str, source: str) -> None:
    """Where `key` repeats the value of `train.SOURCE`, let it refer to it."""
    group = data
    for name in place:
        group = _group(group, name)
    if key in group and group[key] == data["train"].get(source):
        group[key] = f"${{train.{source}}}"


def _complete_optimizer(optimizer: dict) -> None:
    if _target_of(optimizer) == "torch.optim.AdamW":
        (ours,) = _take_shared("common/optim.py", "optimizer")
        for key in ours.keys() - {"_target_", "params"}:
            optimizer.setdefault(key, ours[key])
    params = _group(optimizer, "params")
    if params.get("lr_factor_func") == LAMBDA:
        params["lr_factor_func"] = dict(_LR_FACTOR)
        logger.warning(
            "`optimizer.params.lr_factor_func` is a function that was not saved; taken for the "
            "authors', a tenth of the learning rate in the backbone"
        )
