"""Configs in detectron2's LazyConfig style: load, override, save, and the shared pieces.

A `.py` config is code and may do anything. A YAML config, or one inside a checkpoint, is data:
it can only build what `allow_list` lets it name.
"""

from .allow_list import check_targets
from .common.coco_schedule import ITERS_PER_EPOCH, coco_schedule
from .key_names import check_arguments
from .known_keys import check_known_keys
from .loading import load_config
from .overrides import apply_overrides
from .shared import get_config
from .yaml_io import CONFIG_FILE, config_from_yaml, config_to_yaml, save_config, saved_value

__all__ = [
    "CONFIG_FILE",
    "ITERS_PER_EPOCH",
    "apply_overrides",
    "check_arguments",
    "check_known_keys",
    "check_targets",
    "coco_schedule",
    "config_from_yaml",
    "config_to_yaml",
    "get_config",
    "load_config",
    "save_config",
    "saved_value",
]
