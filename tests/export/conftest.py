"""A detector and its ONNX file, exported once."""

import pytest
import torch
from detectron2.data import transforms as T
from torch import nn

from aligndetr.data import DetrDatasetMapper
from aligndetr.export import export_model
from aligndetr.inference import Predictor
from aligndetr.layers.ms_deform_attn import functional
from tests.builders import golden_tiny_model
from tests.data.coco_json import COCO_TINY

IMAGES = sorted(COCO_TINY.glob("*/*.jpg"))[:2]
NAMES = ["cat", "bus", "cup", "key", "fan"]
SHORT_EDGE, MAX_SIZE = 96, 128


@pytest.fixture(scope="session")
def predictor():
    torch.manual_seed(0)
    model = golden_tiny_model()
    for head in model.class_embed:  # scores that differ from each other
        nn.init.normal_(head.weight, std=0.4)
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
    assert "width x height" in lines[0]
    assert str(path) in lines[1]
    return path
