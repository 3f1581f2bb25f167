"""Loaders and evaluator for a COCO data set, with the reference's augmentations and batch size.

`dataset` says which images and how large. A config that imports `dataloader` must import it too,
and have `train.output_dir`, `train.device` and `train.seed`. With no path set, it is COCO 2017
under $DETECTRON2_DATASETS.
"""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from omegaconf import OmegaConf

from aligndetr.data import (
    DetrDatasetMapper,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset,
    register_dataset,
)
from aligndetr.evaluation import COCOEvaluator

dataset = OmegaConf.create(
    {
        "root": None,  # a folder in COCO's, Roboflow's or YOLO's layout, in place of the next four
        "train_json": None,  # COCO annotations to train on
        "train_images": None,  # the folder that file names in `train_json` start from
        "val_json": None,  # COCO annotations to evaluate on
        "val_images": None,  # the folder that file names in `val_json` start from
        "train_short_edges": list(range(480, 801, 32)),  # pixels; each image draws one
        "test_short_edge": 800,  # pixels of the shorter edge in evaluation
        "max_size": 1333,  # most pixels of the longer edge; the shorter then has fewer
    }
)


def _dataset(split, filter_empty):
    return L(get_detection_dataset)(
        names=L(register_dataset)(
            split=split,
            root="${dataset.root}",  # follows `dataset`
            json_file=f"${{dataset.{split}_json}}",  # follows `dataset`
            image_root=f"${{dataset.{split}_images}}",  # follows `dataset`
        ),
        filter_empty=filter_empty,
    )


def _train_resize():
    return L(T.ResizeShortestEdge)(
        short_edge_length="${dataset.train_short_edges}",
        max_size="${dataset.max_size}",
        sample_style="choice",
    )


dataloader = OmegaConf.create()

dataloader.train = L(build_detection_train_loader)(
    dataset=_dataset("train", filter_empty=True),
    mapper=L(DetrDatasetMapper)(
        augmentation=[L(T.RandomFlip)(), _train_resize()],
        augmentation_with_crop=[
            L(T.RandomFlip)(),
            L(T.ResizeShortestEdge)(short_edge_length=[400, 500, 600], sample_style="choice"),
            L(T.RandomCrop)(crop_type="absolute_range", crop_size=[384, 600]),
            _train_resize(),
        ],
        is_train=True,
        mask_on=False,
        img_format="RGB",
    ),
    total_batch_size=16,  # images of one forward pass, over all processes together
    num_workers=16,
    device="${train.device}",
    seed="${train.seed}",
)

dataloader.test = L(build_detection_test_loader)(
    dataset=_dataset("val", filter_empty=False),
    mapper=L(DetrDatasetMapper)(
        augmentation=[
            L(T.ResizeShortestEdge)(
                short_edge_length="${dataset.test_short_edge}", max_size="${dataset.max_size}"
            )
        ],
        augmentation_with_crop=None,
        is_train=False,
        mask_on=False,
        img_format="RGB",
    ),
    num_workers=4,
    device="${train.device}",
)

dataloader.evaluator = L(COCOEvaluator)(
    dataset_name="${..test.dataset.names}",  # whose ground truth the results are compared with
    output_dir="${train.output_dir}",
)
