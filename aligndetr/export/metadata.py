"""What a file says about itself: classes, and how to make its input of an image."""

import json
from typing import Any

from detectron2.data import transforms as T
from PIL import Image

import aligndetr
from aligndetr.data import DetrDatasetMapper
from aligndetr.inference import Predictor

BOXES = "xyxy in pixels of the input image, clipped to it, some perhaps without area"
SCORES = "sigmoid probabilities, from high to low"


def describe(predictor: Predictor) -> dict[str, str]:
    """Key and value as ONNX keeps them; lists and mappings are JSON.

    Returns:
        aligndetr_version; class_names, in the order of the class ids; channel_order of the input;
        resize, the mapping of `resize_recipe`; normalisation, which the graph does; boxes and
        scores, what they mean.

    Raises:
        ValueError: the test mapper resizes in a way that `resize_recipe` cannot say.
    """
    model = predictor.model
    normalisation = {
        "done": "inside the graph",
        "mean": _numbers(model.pixel_mean),
        "std": _numbers(model.pixel_std),
    }
    return {
        "aligndetr_version": aligndetr.__version__,
        "class_names": json.dumps(list(predictor.class_names)),
        "channel_order": predictor.mapper.img_format,
        "resize": json.dumps(resize_recipe(predictor.mapper)),
        "normalisation": json.dumps(normalisation),
        "boxes": BOXES,
        "scores": SCORES,
    }


def resize_recipe(mapper: DetrDatasetMapper) -> dict[str, int | str]:
    """How the test mapper resizes.

    Returns:
        short_edge and max_size: the shorter edge becomes short_edge, or less where the longer one
        would exceed max_size; edges are rounded to the nearest pixel, half up. resampling: the
        name of Pillow's filter.
    """
    resizes = list(mapper.augmentation.augs)
    resize: Any = resizes[0] if len(resizes) == 1 else None
    if not isinstance(resize, T.ResizeShortestEdge) or len(set(resize.short_edge_length)) != 1:
        raise ValueError(
            "`dataloader.test.mapper.augmentation` must be one ResizeShortestEdge to one length, "
            f"which an exported file can describe; it is {resizes}"
        )
    if mapper.fast_resize:
        raise ValueError(
            "`dataloader.test.mapper.fast_resize` (=True) resizes by torch, which a user of the "
            "exported file cannot repeat without it; set it to False"
        )
    return {
        "short_edge": int(resize.short_edge_length[0]),
        "max_size": int(resize.max_size),
        "resampling": f"Pillow {Image.Resampling(resize.interp).name.lower()}",
    }


def _numbers(tensor) -> list[float]:
    # As they are written: the nearest float32 has more digits than anybody gave.
    return [round(value, 6) for value in tensor.flatten().tolist()]
