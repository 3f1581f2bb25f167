"""What a config that is data may name as `_target_`.

`instantiate` calls whatever `_target_` names, so a YAML file, or the config inside a checkpoint,
could otherwise run any code on the machine. Trusting whole packages is not enough: detectron2.data
has a function that unpickles a file, torch.nn one that imports a module by its name, and any
method can be called with `self=`. So data may build classes from a few packages, and call only the
functions listed here.
"""

import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from omegaconf import OmegaConf

CLASS_HOMES = (
    "aligndetr.criterions",
    "aligndetr.data",
    "aligndetr.evaluation",
    "aligndetr.layers",
    "aligndetr.losses",
    "aligndetr.matchers",
    "aligndetr.modeling",
    "detectron2.data",
    "detectron2.evaluation",
    "detectron2.layers",
    "detectron2.modeling",
    "detectron2.solver",
    "fvcore.common.param_scheduler",
    "projects",
    "timm.layers",
    "timm.models",
    "torch.nn",
    "torch.optim",
)
# By the place of their definition. Reading a file that the config names is all they do.
FUNCTIONS = (
    "aligndetr.data.datasets.get_detection_dataset",
    "aligndetr.data.datasets.register_dataset",
    "aligndetr.data.loaders.build_detection_test_loader",
    "aligndetr.data.loaders.build_detection_train_loader",
    "aligndetr.engine.optim.backbone_lr_factor",
    "aligndetr.engine.schedule.cosine_lr",
    "aligndetr.engine.schedule.multi_step_lr",
    "aligndetr.modeling.dilated_resnet.dilated_stages",
    "detectron2.data.build.build_detection_test_loader",
    "detectron2.data.build.build_detection_train_loader",
    "detectron2.data.build.get_detection_dataset_dicts",
    "detectron2.modeling.backbone.resnet.ResNet.make_default_stages",
    "detectron2.solver.build.get_default_optimizer_params",
    "timm.models._factory.create_model",
)
# Other names of those functions, outside the packages above.
FUNCTION_NAMES = (
    "aligndetr.engine.backbone_lr_factor",
    "aligndetr.engine.cosine_lr",
    "aligndetr.engine.multi_step_lr",
    "aligndetr.engine.optim.backbone_lr_factor",
    "aligndetr.engine.schedule.cosine_lr",
    "aligndetr.engine.schedule.multi_step_lr",
    "timm.create_model",
)
# Code of projects is the user's own, functions included.
FUNCTION_HOMES = ("projects",)
# Hands what it is given to another library's registry, which knows more than detectors.
REFUSED = ("detectron2.modeling.mmdet_wrapper",)
# Arguments that make an allowed target load a pickle, by the package of the target. `cfg` is the
# other door of detectron2's @configurable: with it, all other arguments come from that config.
REFUSED_ARGUMENTS = {
    "detectron2": ("cfg", "proposal_files"),
    "timm": ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay"),
}

_NAME = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)+", re.ASCII)
_NODE_REFERENCE = re.compile(r"\$\{[\w.\[\]-]+\}")


def check_targets(cfg: Any, root: str = "") -> None:
    """Refuse a data config that could run anything but the building blocks of a detector.

    Every `_target_`, wherever it stands, is checked by its name before anything is imported, and
    once more as the object it resolves to: where that object was defined counts, so a name that
    reaches `os.system` through the imports of an allowed module is refused. Interpolations may
    refer to other keys (`${train.device}`), not call resolvers: `oc.create` could produce a
    `_target_` after the check, `oc.env` reads secrets.

    Args:
        cfg: DictConfig, ListConfig, or plain dicts and lists.
        root: the key at which it stands in the whole config, for messages.

    Raises:
        ValueError: names the key, its value and the remedy. Nothing has been called then.
    """
    if OmegaConf.is_config(cfg):
        cfg = OmegaConf.to_container(cfg, resolve=False)
    for key, value in walk(cfg, root):
        if isinstance(value, dict) and "_target_" in value:
            try:
                _check_call(value)
            except ValueError as error:
                where = f"{key}._target_" if key else "_target_"
                raise ValueError(
                    f"`{where}` (={value['_target_']!r}) is refused: {error}. A YAML config, a "
                    "config inside a checkpoint and an override are data; what data may build "
                    "stands in aligndetr/config/allow_list.py. Anything else belongs in a .py "
                    "config, or in a module of your own under projects/."
                ) from error
        elif isinstance(value, str) and has_resolver(value):
            raise ValueError(
                f"`{key}` (={value!r}) is refused: data may refer to other keys, as in "
                "${train.device}, but not call resolvers. Write the value itself."
            )


def walk(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """All nodes of nested dicts and lists with their dotted keys, each before its children."""
    yield key, value
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    else:
        return
    for name, child in items:
        yield from walk(child, f"{key}.{name}" if key else str(name))


def has_resolver(text: str) -> bool:
    """Whether `text` holds an interpolation that is more than a reference to another key."""
    return "${" in _NODE_REFERENCE.sub("", text)


def _check_call(call: dict) -> None:
    """Raise ValueError with the reason if the `_target_` of `call` or an argument is refused."""
    name = call["_target_"]
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError("it must be the dotted name of a public class or function, as text")
    if not _is_under(name, CLASS_HOMES + FUNCTION_NAMES):
        raise ValueError("its name is not on the allow-list")
    target = _resolve(name)
    home = f"{target.__module__}.{target.__qualname__}"
    if inspect.isclass(target):
        allowed = _is_under(home, CLASS_HOMES)
    else:
        allowed = home in FUNCTIONS or _is_under(home, FUNCTION_HOMES)
    if not allowed or _is_under(home, REFUSED):
        raise ValueError(f"it is {home}, which is not on the allow-list")
    _check_arguments(home, call)


def _check_arguments(home: str, call: dict) -> None:
    package = home.partition(".")[0]
    refused = sorted(set(call) & set(REFUSED_ARGUMENTS.get(package, ())))
    if refused:
        raise ValueError(f"with {refused} it could load a file that runs code")
    # "hf-hub:user/model" and "local-dir:..." load weights that the author of the config chose.
    if package == "timm" and re.search(r"[:$]", str(call.get("model_name", ""))):
        raise ValueError(f"`model_name` (={call['model_name']!r}) must be a plain model name")


def _resolve(name: str) -> Callable:
    """The class or function called `name`, without stepping into a module of another package.

    Submodules go before attributes, in the order of detectron2's `locate`, which `instantiate`
    uses: both must find the same object.
    """
    first, *rest = name.split(".")
    path, obj = first, _import_submodule(first)
    if obj is None:
        raise ValueError(f"{first} is not installed")
    for part in rest:
        path = f"{path}.{part}"
        submodule = _import_submodule(path) if isinstance(obj, ModuleType) else None
        if submodule is not None:
            obj = submodule
            continue
        obj = getattr(obj, part, None)
        if obj is None:
            own = "; start in the folder that holds your projects/, or put it on PYTHONPATH"
            raise ValueError(f"{path} does not exist{own if first == 'projects' else ''}")
        if isinstance(obj, ModuleType):
            raise ValueError(f"{path} is the module {obj.__name__}, imported from elsewhere")
    if not (inspect.isclass(obj) or inspect.isfunction(obj)):
        raise ValueError("it is neither a class nor a function")
    return obj


def _import_submodule(path: str) -> ModuleType | None:
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name != path:  # it exists, but needs something that is not installed
            raise ValueError(f"{path} cannot be imported: {error}") from error
        return None


def _is_under(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)
