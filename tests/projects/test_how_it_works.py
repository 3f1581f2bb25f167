"""docs/how_it_works.md says of the real model what the real model does.

It runs on torch's meta device, which computes shapes and no numbers: 47 million parameters and an
image of 800 x 1066 take a few seconds.
"""

import math
import re
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate
from detectron2.structures import Boxes, Instances

from aligndetr.config import load_config

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/how_it_works.md").read_text(encoding="utf-8")
FIGURE = (ROOT / "docs/images/architecture.svg").read_text(encoding="utf-8")
CONFIG = ROOT / "projects/aligndetr/configs/aligndetr_k=2_r50_4scale_12ep.py"
IMAGE = torch.zeros(3, 800, 1066, dtype=torch.uint8)
BOXES = torch.tensor([[100.0, 100.0, 300.0, 400.0]]).repeat(7, 1)


def table():
    """(what, module, shapes) of each row of the page's table."""
    for what, module, shapes in re.findall(r"^\| (.+?) \| `([\w.]+)` \| (.+) \|$", PAGE, re.M):
        yield what, module, [tuple(map(int, s.split(", "))) for s in _parenthesised(shapes)]


def _parenthesised(text):
    return re.findall(r"\(([\d, ]+)\)", text)


def shapes_in(value):
    if torch.is_tensor(value):
        yield tuple(value.shape)
    elif isinstance(value, dict):
        for child in value.values():
            yield from shapes_in(child)
    elif isinstance(value, list | tuple):
        for child in value:
            yield from shapes_in(child)


class Recorder(torch.nn.Module):
    """In the criterion's place: matching needs numbers."""

    num_classes = 80

    def forward(self, outputs, targets, dn_metas):
        return {}

    def weighted(self, losses):
        return losses


@pytest.fixture(scope="module")
def cfg():
    return load_config(CONFIG)


@pytest.fixture(scope="module")
def seen(cfg):
    """Module name -> shapes of what goes in and out in a training step; and the model."""
    with torch.device("meta"):
        model = instantiate(cfg.model)
    model.criterion = Recorder()
    shapes = defaultdict(set)
    for name in {module for _, module, _ in table()}:

        def hook(module, args, kwargs, output, name=name):
            shapes[name].update(shapes_in([args, kwargs, output]))

        model.get_submodule(name).register_forward_hook(hook, with_kwargs=True)
    instances = Instances(IMAGE.shape[1:])
    instances.gt_boxes, instances.gt_classes = Boxes(BOXES), torch.arange(len(BOXES))
    model.train()([{"image": IMAGE, "instances": instances}])
    return shapes, model


def test_the_table_is_what_hooks_see(seen):
    shapes, _ = seen
    rows = list(table())
    assert len(rows) >= 14
    for what, module, claimed in rows:
        assert claimed, what
        assert set(claimed) <= shapes[module], (what, module, shapes[module])


def test_the_shapes_of_detections(seen):
    _, model = seen
    found = [tuple(x.shape) for x in model.eval().predict(IMAGE.to("meta")[None])]
    assert found == [(1, 300, 4), (1, 300), (1, 300)]
    assert "boxes (1, 300, 4), scores and classes (1, 300)" in PAGE


def test_the_figure_has_the_shapes_of_the_table():
    """Without the batch; 7 x 4 are the ground truth, 300 the detections."""
    known = {shape[1:] for _, _, shapes in table() for shape in shapes}
    known |= {(6, 1096, 256), (7, 4), (300, 4), (300,)}
    drawn = re.findall(r'class="shape[^>]*>(?:memory )?([\d ×,]+)<', FIGURE)
    shapes = [tuple(map(int, s.split("×"))) for text in drawn for s in text.split(",")]
    assert len(shapes) >= 15
    assert set(shapes) <= known


def test_the_numbers_in_the_text(cfg):
    assert sum(h * w for h, w in [(100, 134), (50, 67), (25, 34), (13, 17)]) == 17821
    groups = max(1, cfg.model.dn_number // len(BOXES))
    assert (groups, 2 * groups * len(BOXES)) == (14, 196)
    criterion = cfg.model.criterion
    assert criterion.match_num == [2] * 6 + [1]
    assert (criterion.alpha, criterion.gamma, criterion.tau) == (0.25, 2.0, 1.5)
    matcher = criterion.matcher
    assert (matcher.cost_class, matcher.cost_bbox, matcher.cost_giou) == (2, 5, 2)


def test_there_are_39_losses(cfg):
    """Of one image with one object: 6 decoder layers, the encoder, and 6 times the denoising."""
    criterion = instantiate(cfg.model.criterion)
    layer = {"pred_logits": torch.zeros(1, 8, 80), "pred_boxes": torch.full((1, 8, 4), 0.5)}
    outputs = layer | {"aux_outputs": [layer] * 5, "enc_outputs": layer}
    dn_metas = {"dn_num": 1, "single_padding": 8, "output_known_lbs_bboxes": dict(outputs)}
    targets = [{"labels": torch.tensor([3]), "boxes": torch.full((1, 4), 0.5)}]
    losses = criterion(outputs, targets, dn_metas)
    assert len(losses) == 39
    weights = {criterion.weight_of(name) for name in losses}
    assert weights == {1, 5, 2}
    # A perfect box: its matched query pays nothing but for the reference's epsilon.
    assert losses["loss_bbox"] == 0
    assert math.isclose(losses["loss_giou"], 0, abs_tol=1e-4)
