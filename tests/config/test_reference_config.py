"""The config.yaml that the authors' code saves trains the same model here as our config does."""

import re
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate
from detectron2.utils.env import seed_all_rng
from omegaconf import OmegaConf

from aligndetr.config import (
    apply_overrides,
    config_from_yaml,
    config_to_yaml,
    load_config,
    save_config,
)
from aligndetr.engine import build_model, check_run
from tests.data.coco_json import COCO_TINY
from tests.engine.stand_in import arguments

ROOT = Path(__file__).parents[2]
THEIRS = ROOT / "tests/data_files/reference_config.yaml"
OURS = ROOT / "projects/aligndetr/configs/aligndetr_k=2_r50_4scale_12ep.py"

RUN = [
    "train.device=cpu",
    "train.ms_deform_attn=reference",
    "train.seed=3",
    "train.init_checkpoint=''",
    f"dataset.root={COCO_TINY}",
    "dataloader.train.total_batch_size=2",
    "dataloader.train.num_workers=0",
]
LAYERS = ["embed_dim=32", "num_heads=4", "feedforward_dim=48"]
SMALL = [
    *(f"model.transformer.{part}.{size}" for part in ("encoder", "decoder") for size in LAYERS),
    "model.transformer.encoder.num_layers=1",
    "model.transformer.decoder.num_layers=2",
    "model.criterion.match_num=[2,2,1]",
    "model.neck.out_channels=32",
    "model.neck.norm_layer.num_channels=32",
    "model.neck.norm_layer.num_groups=8",
    "model.position_embedding.num_pos_feats=16",
    "model.embed_dim=32",
    "model.num_queries=20",
    "model.dn_number=10",
    "dataloader.train.mapper.augmentation_with_crop=null",
    "dataloader.train.mapper.augmentation=[{_target_: detectron2.data.transforms.Resize,"
    " shape: [96, 128]}]",
]


def first_step(config, tmp_path, *options):
    """The weights a training starts from, and the losses of its first step by name."""
    options = [*RUN, f"train.output_dir={tmp_path / config.stem}", *options]
    cfg = apply_overrides(load_config(config), options)
    check_run(cfg, arguments())
    seed_all_rng(3)
    model = build_model(cfg).train()
    batch = next(iter(instantiate(cfg.dataloader.train)))
    losses = {name: loss.item() for name, loss in model(batch).items()}
    return model.state_dict(), losses


def assert_same_training(tmp_path, *options):
    (weights, losses), (our_weights, our_losses) = (
        first_step(config, tmp_path, *options) for config in (THEIRS, OURS)
    )
    assert list(weights) == list(our_weights)
    assert all(torch.equal(weights[name], our_weights[name]) for name in weights)
    assert len(losses) >= 15
    assert losses == our_losses


def test_same_weights_and_losses(tmp_path):
    assert_same_training(tmp_path, *SMALL)


@pytest.mark.slow
def test_same_weights_and_losses_with_r50_and_the_published_augmentations(tmp_path):
    assert_same_training(tmp_path)


def resolved(config, *keys):
    cfg = load_config(config)
    saved = config_from_yaml(config_to_yaml(cfg))  # targets as names
    nodes = [OmegaConf.select(saved, key) for key in keys]
    return [OmegaConf.to_container(node, resolve=True) for node in nodes]


def test_every_part_is_that_of_our_config_but_for_what_the_file_says():
    keys = ("model", "optimizer", "dataloader.train.mapper", "dataloader.test")
    for key, theirs, ours in zip(keys, resolved(THEIRS, *keys), resolved(OURS, *keys), strict=True):
        if key == "model":  # ours spells out defaults of the constructors
            assert ours.pop("select_box_nums_for_evaluation") == 300
            for part in (
                ours["backbone"],
                *(ours["transformer"][p] for p in ("encoder", "decoder")),
            ):
                assert part.pop("use_checkpoint") is False
        assert theirs == ours, key


def test_what_the_file_says_goes_before_our_defaults():
    cfg = load_config(THEIRS)
    assert (cfg.train.checkpointer.period, cfg.train.checkpointer.best_metric) == (1, "bbox/AP")
    assert (cfg.train.max_iter, cfg.train.log_period, cfg.train.grad_accum_steps) == (3, 1, 1)
    assert cfg.dataloader.train.total_batch_size == 2
    assert cfg.train.wandb.params.project == "detrex"
    cfg.train.output_dir = "elsewhere"
    cfg.train.device = "cpu"
    assert cfg.dataloader.evaluator.output_dir == "elsewhere"
    assert cfg.model.device == cfg.dataloader.train.device == "cpu"


def test_the_learning_rates_are_those_of_the_lost_function(caplog):
    cfg = load_config(THEIRS)
    assert "`optimizer.params.lr_factor_func` is a function that was not saved" in caplog.text
    factor = instantiate(cfg.optimizer.params.lr_factor_func)
    assert factor("backbone.res2.0.conv1.weight") == 0.1
    assert factor("transformer.level_embeds") == 1


def test_it_can_be_saved_and_loaded_as_one_of_ours(tmp_path):
    cfg = load_config(THEIRS)
    save_config(cfg, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == cfg


def test_other_data_sets_are_named_as_in_theirs():
    text = THEIRS.read_text().replace("coco_2017_train", "my_train")
    assert config_from_yaml(text).dataloader.train.dataset.names == "my_train"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("!!python/name:None.%3Clambda%3E", "!!python/name:os.system", "python/name:os.system"),
        ("!!python/name:None.%3Clambda%3E ''", "!!python/name:None.%3Clambda%3E 'x'", "no value"),
        ("python/object:detectron2", "python/object/new:detectron2", "python/object/new"),
        ("python/object:detectron2", "python/object/apply:detectron2", "python/object/apply"),
        ("shape_spec.ShapeSpec", "shape_spec.Other", "shape_spec.Other"),
        ("{channels: 512, height: null", "{channels: 512, tall: null", "is no ShapeSpec"),
        ("{channels: 512, height: null", "{channels: 512, height: [1]", "is no ShapeSpec"),
        ("tau: 1.5", "tau: !!python/name:None.%3Clambda%3E ''", r"model\.criterion\.tau"),
        ("detrex.modeling.ChannelMapper", "detrex.modeling.neck.FPN", r"model\.neck\._target_"),
        ("detrex.modeling.ChannelMapper", "detrex.os.system", "has no counterpart here"),
        ("projects.aligndetr.modeling.AlignDETR", "os.system", "not on the allow-list"),
        (
            "amp: {enabled: false}",
            "amp: {enabled: false, loss_scale: 2}",
            "`train.amp`.*loss_scale",
        ),
        ("max_iter: 3", "max_iters: 3", "`train` has .*max_iters"),
    ],
)
def test_anything_else_is_refused(old, new, message):
    text = THEIRS.read_text()
    assert old in text
    with pytest.raises(ValueError, match=f"theirs: .*{message}".replace(": .*", "(?s:: .*)")):
        config_from_yaml(text.replace(old, new), source="theirs")


def test_configs_of_ours_are_not_translated():
    """detectron2's loader stays where the file has nothing of detrex: somebody wants it."""
    text = "a: {_target_: detectron2.modeling.ResNet, stem: 1, stages: 2}"
    assert config_from_yaml(text).a._target_ == "detectron2.modeling.ResNet"
    assert not re.search("detrex", config_to_yaml(load_config(OURS)))
