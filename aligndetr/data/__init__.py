"""Data sets, their checks, and the mapper from an image file to the model's input."""

from .checks import DatasetError, check_num_classes, check_same_classes
from .dataset_mapper import DetrDatasetMapper
from .datasets import class_names, register_dataset

__all__ = [
    "DatasetError",
    "DetrDatasetMapper",
    "check_num_classes",
    "check_same_classes",
    "class_names",
    "register_dataset",
]
