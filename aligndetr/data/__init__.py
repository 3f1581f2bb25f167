"""Data sets, their checks, and the mapper from an image file to the model's input."""

from .checks import DatasetError, check_num_classes, check_same_classes
from .coco_dataset import CocoDataset
from .corrupt_images import CorruptImageError, CorruptImages
from .dataset_mapper import DetrDatasetMapper
from .datasets import class_names, get_detection_dataset, register_dataset
from .loaders import build_detection_test_loader, build_detection_train_loader

__all__ = [
    "CocoDataset",
    "CorruptImageError",
    "CorruptImages",
    "DatasetError",
    "DetrDatasetMapper",
    "build_detection_test_loader",
    "build_detection_train_loader",
    "check_num_classes",
    "check_same_classes",
    "class_names",
    "get_detection_dataset",
    "register_dataset",
]
