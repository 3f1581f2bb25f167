"""A detector and its ONNX file, exported once."""

import pytest
import torch
from detectron2.data import transforms as T
from torch import nn

from aligndetr.data import DetrDatasetMapper
from aligndetr.export import export_model
from aligndetr.inference import Predictor
from aligndetr.layers.ms_deform_attn import functional
from tests.builders import tiny_model
from tests.data.coco_json import COCO_TINY

IMAGES = sorted(COCO_TINY.glob("*/*.jpg"))[:2]
NAMES = ["cat", "bus", "cup", "key", "fan"]
SHORT_EDGE, MAX_SIZE = 96, 128
ENCODER_LAYERS, DECODER_LAYERS = 1, 2


@pytest.fixture(scope="session")
def predictor():
    """Of a model whose detections differ in score and whose boxes move from layer to layer."""
    torch.manual_seed(0)
    model = tiny_model(encoder_layers=ENCODER_LAYERS, decoder_layers=DECODER_LAYERS)
    for class_head, box_head in zip(model.class_embed, model.bbox_embed):
        nn.init.normal_(class_head.weight, std=0.4)
        nn.init.normal_(box_head.layers[-1].weight, std=0.3)
    resize = T.ResizeShortestEdge(SHORT_EDGE, MAX_SIZE)
    return Predictor(model, DetrDatasetMapper([resize], None, is_train=False), NAMES)


@pytest.fixture(scope="session")
def onnx_file(predictor, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    lines = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(functional, "_default_backend", "embedding_bag")
        comparisons = export_model(predictor, path, IMAGES, report=lines.append)
        assert functional._default_backend == "embedding_bag"
    assert not predictor.model.training
    assert len(comparisons) == 4 * len(IMAGES)
    assert len({c.size for c in comparisons}) > 1
    assert {c.batch for c in comparisons} == {1, 2, 3}
    assert all(c.compared >= 20 * c.batch and not c.apart for c in comparisons)
    assert "ranks" in lines[0]
    assert str(path) in lines[1]
    return path
