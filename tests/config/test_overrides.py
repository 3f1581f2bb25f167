"""Overrides change keys that exist or arguments that are taken, and nothing else."""

from pathlib import Path

import pytest
from detectron2.config import LazyCall as L
from omegaconf import OmegaConf
from torch import nn
from torch.optim import AdamW

from aligndetr.config import apply_overrides, config_to_yaml, get_config, load_config

CONFIG = Path(__file__).parents[2] / "projects/aligndetr/configs/aligndetr_k=2_r50_4scale_12ep.py"


def make_cfg():
    cfg = OmegaConf.create(
        {
            "dataset": {"root": None, "edges": [480, 800], "short": 800},
            "model": {"criterion": {"tau": 1.5, "match_num": [2, 2, 1]}, "num_classes": 80},
        }
    )
    cfg.model.classes = "${.num_classes}"
    cfg.model.criterion.weights = "${dataset}"
    cfg.optimizer = L(AdamW)(lr=1e-4, betas=[0.9, 0.999])
    cfg.layers = [L(nn.Dropout)(p=0.1), L(nn.GroupNorm)(num_groups=32, num_channels=256)]
    cfg.train = get_config("common/train.py").train
    return cfg


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("model.criterion.match_num=[3,3,3,1]", "model.criterion.match_num", [3, 3, 3, 1]),
        ("model.criterion.tau=3", "model.criterion.tau", 3),
        ("optimizer.lr=1e-5", "optimizer.lr", 1e-5),
        ("optimizer.fused=True", "optimizer.fused", True),  # an argument that is not set yet
        ("layers.0.p=0.5", "layers.0.p", 0.5),
        ("layers[0].p=0.5", "layers.0.p", 0.5),
        ("model.criterion.match_num[2]=3", "model.criterion.match_num", [2, 2, 3]),
        ("layers.1.eps=1e-6", "layers.1.eps", 1e-6),
        ("layers.1={num_groups: 8}", "layers.1.num_channels", 256),  # merged
        ("train.amp.enabled=true", "train.amp.enabled", True),
        ("train.ddp.static_graph=True", "train.ddp.static_graph", True),
        ("train.clip_grad.params.error_if_nonfinite=True",
         "train.clip_grad.params.error_if_nonfinite", True),
        ("train.wandb.params.entity=us", "train.wandb.params.entity", "us"),
        ("train.wandb={enabled: true, params: {tags: [a]}}", "train.wandb.params.tags", ["a"]),
        ("train.init_checkpoint=", "train.init_checkpoint", ""),
        ('train.init_checkpoint=""', "train.init_checkpoint", ""),
        ("train.init_checkpoint=detectron2://A/R-50.pkl", "train.init_checkpoint",
         "detectron2://A/R-50.pkl"),
        ("train.output_dir=./output/k=2 (new), #1", "train.output_dir", "./output/k=2 (new), #1"),
        ("train.output_dir=~/ausgabe/größe", "train.output_dir", "~/ausgabe/größe"),
        ("train.output_dir=2024_01", "train.output_dir", "2024_01"),  # not the number 202401
        ("train.output_dir='a,b'", "train.output_dir", "a,b"),
        ("dataset.root=/data/coco", "dataset.root", "/data/coco"),
        ("dataset.root=2024", "dataset.root", "2024"),
        ("dataset.short=[480, 512]", "dataset.short", [480, 512]),
        ("dataset.edges=800", "dataset.edges", 800),
        ("dataset.edges=null", "dataset.edges", None),
        ("model.classes=5", "model.classes", 5),
        ("model.num_classes=${train.max_iter}", "model.classes", 90000),
    ],
)  # fmt: skip
def test_what_may_be_set_is_set(override, key, value):
    assert OmegaConf.select(apply_overrides(make_cfg(), [override]), key) == value


def test_in_place_in_order_and_nothing_else_changes():
    cfg = make_cfg()
    before = config_to_yaml(cfg)
    assert apply_overrides(cfg, ["optimizer.lr=1e-3", "optimizer.lr=5e-4"]) is cfg
    assert config_to_yaml(cfg) == before.replace("lr: 0.0001", "lr: 0.0005")


def test_another_target_replaces_the_old_arguments():
    cfg = apply_overrides(
        make_cfg(),
        ["layers.1={_target_: torch.nn.LayerNorm, normalized_shape: 256}", "layers.1.bias=False"],
    )
    assert cfg.layers[1] == {
        "_target_": "torch.nn.LayerNorm", "normalized_shape": 256, "bias": False
    }  # fmt: skip
    cfg = apply_overrides(make_cfg(), ["layers.1={_target_: torch.nn.GroupNorm, num_groups: 8}"])
    assert (cfg.layers[1].num_groups, cfg.layers[1].num_channels) == (8, 256)  # the same one


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("model.num_clases=5", "model.num_classes"),
        ("mdoel.num_classes=5", "model.num_classes"),
        ("model.tau=3", "model.criterion.tau"),
        ("lr=1e-3", "optimizer.lr"),
        ("optimizer.learning_rate=1", "optimizer."),
        ("optimizer.weight_deacy=0", "optimizer.weight_decay"),
        ("train.max_iters=5", "train.max_iter"),
        ("train.fast_dev_run.enable=True", "train.fast_dev_run.enabled"),
        ("train.ddp.find_unused_parameter=True", "train.ddp.find_unused_parameters"),
        ("train.clip_grad.params.maxnorm=1", "train.clip_grad.params.max_norm"),
        ("train.wandb.params.projcet=x", "train.wandb.params.project"),
        ("train.wandb={enable: true}", "train.wandb.enabled"),
        ("train.clip_grad.params.foo=1", "train.clip_grad.params."),  # not the group itself
        ("train={foo: 1, output_dir: x}", "train."),
        ("model.criterin.tau=3", "model.criterion.tau`"),
        ("model.criterin.tua=3", "model.criterion.tau`"),
        ("model.criterin=3", "model.criterion."),
        ("layers.0.prob=0.5", "layers.0.p"),
        ("layers.1={_target_: torch.nn.LayerNorm, normalised_shape: 256}",
         "layers.1.normalized_shape"),
        ("dataset.trainjson=x", "dataset."),
    ],
)  # fmt: skip
def test_unknown_key_is_an_error_with_the_nearest_one(override, nearest):
    cfg = make_cfg()
    before = config_to_yaml(cfg)
    with pytest.raises(ValueError, match="did you mean") as error:
        apply_overrides(cfg, [override])
    assert f"did you mean `{nearest}" in str(error.value)
    assert config_to_yaml(cfg) == before


@pytest.mark.parametrize("value", ["[choice(1, 2)]", "[[glob(a)]]", "[{a: range(1, 3)}]"])
def test_a_sweep_inside_of_a_value_is_refused(value):
    with pytest.raises(ValueError, match="is not supported"):
        apply_overrides(make_cfg(), [f"model.criterion.match_num={value}"])


def test_a_part_that_the_config_lacks_is_named():
    with pytest.raises(
        ValueError, match=r"`dataloader\.train\.num_workers` cannot .* no `dataloader`"
    ):
        apply_overrides(make_cfg(), ["dataloader.train.num_workers=2"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.criterion", "must have the form key=value"),
        ("--num-gpus", "option '--num-gpus' must stand before the first key=value"),
        ("--num-gpus=2", "must stand before"),
        ("+model.new=1", "not added"),
        ("~model.num_classes", "must have the form"),
        ("~model.num_classes=1", "deleted"),
        ("model..x=1", "not a dotted key"),
        ("layers[].p=1", "not a dotted key"),
        ("layers[2].p=1", "is a list of 2"),
        ("model.criterion.match_num=3,3,1", r"write model.criterion.match_num=\[\.\.\.\]"),
        ("model.criterion.match_num=[3,3", "cannot be read"),
        ("model.criterion.match_num.3=1", "is a list of 3"),
        ("model.criterion.match_num.last=1", "is a list of 3"),
        ("layers.2.p=1", "is a list of 2"),
        ("dataset.root.train=1", "`dataset.root` is None"),
        ("model.num_classes.x=1", "`model.num_classes` is 80"),
        ("model.classes.x=1", r"`model.classes` is '\$\{.num_classes\}'"),
        ("model.criterion.weights.root=x", r"is '\$\{dataset\}'"),
        ("model.num_classes=many", "is a number"),
        ("model.num_classes=True", "is a number"),
        ("model.num_classes={a: 1}", "is no group"),
        ("train.amp.enabled=1", "is a switch"),
        ("train.amp.enabled=yes", "is a switch"),
        ("train.amp=True", r"is a group .* \['train.amp.enabled', 'train.amp.dtype'\]"),
        ("train.amp=null", "is a group"),
        ("layers.0={_target_: os.system, command: ls}", "refused"),
        ("layers.0._target_=os.system", r"`layers\.0\._target_` .* is refused"),
        ("optimizer._target_=os.system", r"`optimizer\._target_` .* is refused"),
        ("train.output_dir=${oc.env:HOME}", r"`train\.output_dir` .* is refused"),
        ("layers=[{_target_: aligndetr.engine.os.system}]", "refused"),
        ("train.output_dir=${oc.env:HOME}", "resolvers"),
    ],
)
def test_what_makes_no_sense_is_a_clear_error(override, message):
    cfg = make_cfg()
    before = config_to_yaml(cfg)
    with pytest.raises(ValueError, match=message):
        apply_overrides(cfg, [override])
    assert config_to_yaml(cfg) == before


def test_all_keys_of_a_real_config_can_be_overridden_with_themselves():
    """Also that hydra's reading of what we print gives the same value again."""
    cfg = load_config(CONFIG)
    cfg.train.output_dir = "output/k=2"
    before = config_to_yaml(cfg)
    keys = [
        "dataloader.train.mapper.augmentation.1.sample_style=choice",
        "dataloader.train.num_workers=16",
        "dataset.train_short_edges=[480,512,544,576,608,640,672,704,736,768,800]",
        "lr_multiplier.scheduler.milestones=[82500,90000]",
        "model.criterion.weight_dict.loss_bbox_dn_3=5.0",
        "model.device=${train.device}",
        "model.neck.input_shapes.res3.channels=512",
        "optimizer.params.lr_factor_func.factor=0.1",
        "train.output_dir=output/k=2",
    ]
    assert config_to_yaml(apply_overrides(cfg, keys)) == before


def test_typo_that_keyword_arguments_would_swallow():
    cfg = load_config(CONFIG)
    with pytest.raises(ValueError, match="did you mean `dataloader.train.num_workers`"):
        apply_overrides(cfg, ["dataloader.train.num_worker=2"])
    apply_overrides(cfg, ["dataloader.train.prefetch_factor=4"])  # of torch's DataLoader
