"""Every shipped config, made small: it builds, trains a step, evaluates an image, and its YAML
builds the same model."""

from pathlib import Path

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.modeling.backbone.resnet import BasicBlock

from aligndetr.config import check_targets, config_from_yaml, config_to_yaml, load_config
from aligndetr.engine import build_optimizer
from tests.builders import random_batch

PROJECTS = Path(__file__).parents[2] / "projects"
CONFIGS = PROJECTS / "aligndetr/configs"
# These differ in schedule and criterion alone, from one that is in the default suite.
ALIKE = ("aligndetr_k=2_r50_4scale_24ep", "aligndetr_k=2_r50_4scale_36ep", "finetune",
         "aligndetr_k=2_r50_4scale_tau_3_12ep", "aligndetr_k=2_r50_4scale_tau_3_24ep",
         "r50_1_dino", "r50_2_ia_bce", "r50_3_mixed_matching", "r50_4_rank_weights", "demo_1_dino",
         "demo_2_ia_bce", "demo_3_mixed_matching", "demo_4_rank_weights",
         "aligndetr_k=2_r101_4scale_12ep", "aligndetr_k=2_r50_4scale_12ep",
         "aligndetr_k=2_swin_b_4scale_12ep", "aligndetr_k=2_swin_l_4scale_12ep",
         "align_dab_detr_r50_dc5_50ep", "align_dab_detr_demo")  # fmt: skip
NO_EXPERIMENTS = {"base", "aligndetr_r50", "align_dab_detr_r50"}
NEED_TIMM = ("swin", "vitdet", "convnext")
PATHS = sorted(
    path for path in PROJECTS.glob("*/configs/**/*.py") if path.stem not in NO_EXPERIMENTS
)
SLOW = [pytest.mark.slow]
every_config = pytest.mark.parametrize(
    "path",
    [pytest.param(p, id=p.stem, marks=SLOW if p.stem in ALIKE else []) for p in PATHS],
)
BACKBONES = sorted(CONFIGS.glob("backbones/*.py"))


def config_of(path):
    if any(name in path.stem for name in NEED_TIMM):
        pytest.importorskip("timm")
    cfg = load_config(path)
    cfg.train.device = "cpu"
    cfg.model.num_queries, cfg.model.num_classes = 20, 5
    if cfg.model.transformer.get("num_hybrid_queries"):
        cfg.model.transformer.num_hybrid_queries = 10
    for part in ("encoder", "decoder"):
        cfg.model.transformer[part].update(num_layers=1, feedforward_dim=64)
    criterion = cfg.model.criterion
    criterion.match_num = [criterion.match_num[0], criterion.match_num[-1]]
    return cfg


def shrink_backbone(model):
    backbone = model.backbone
    if "stages" in backbone and "depth" in backbone.stages:
        widths = [8, 8, 16, 32, 64]
        backbone.stem.out_channels = widths[0]
        if "neck" in model:
            model.neck.input_shapes = None
        backbone.stages = [
            [L(BasicBlock)(in_channels=a, out_channels=b, stride=1 + (a != b), norm="FrozenBN")]
            for a, b in zip(widths, widths[1:])
        ]
    elif "net" in backbone:
        backbone.net.update(
            embed_dim=32, depth=2, num_heads=2, window_size=2, window_block_indexes=[0]
        )
    elif "depths" in backbone:
        backbone.update(depths=[1, 1, 1, 1], embed_dim=8 * backbone.num_heads[0])
    elif "model_name" in backbone:
        backbone.model_name = "test_convnext"


def train_a_step(cfg, batch):
    model = instantiate(cfg.model)
    optimizer = build_optimizer(cfg, model)
    before = [p.detach().clone() for p in model.parameters()]
    losses = model.train()(batch)
    sum(losses.values()).backward()
    optimizer.step()
    assert all(loss.isfinite() for loss in losses.values())
    lost = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert lost == []
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    return model


def evaluate(model, batch):
    with torch.no_grad():
        (result,) = model.eval()(batch)
    instances = result["instances"]
    assert len(instances) > 0
    assert instances.scores.isfinite().all()
    assert instances.pred_boxes.tensor.max() <= 90


@every_config
def test_builds_trains_evaluates_and_saves(path):
    cfg = config_of(path)
    shrink_backbone(cfg.model)
    batch = random_batch([(70, 90)], [2])  # of no stride a multiple
    model = train_a_step(cfg, batch)
    evaluate(model, batch)
    loaded = config_from_yaml(config_to_yaml(cfg))
    check_targets(loaded)
    again = instantiate(loaded.model)
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    assert shapes == {name: value.shape for name, value in again.state_dict().items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [*BACKBONES, *sorted(PROJECTS.glob("align_dab_detr/configs/*_50ep.py"))],
    ids=lambda path: path.stem,
)
def test_backbone_of_full_size(path):
    cfg = config_of(path)
    batch = random_batch([(70, 90)], [2])
    evaluate(train_a_step(cfg, batch), batch)


@pytest.mark.parametrize("path", BACKBONES, ids=lambda path: path.stem)
def test_a_backbone_is_a_few_lines(path):
    text = path.read_text()
    assert f"--config-file projects/aligndetr/configs/backbones/{path.name}" in text
    assert len(text.splitlines()) <= 40
