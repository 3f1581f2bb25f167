"""The shipped configs say what their names say, and are the same after saving and loading."""

import re
from pathlib import Path

import pytest
from detectron2.config import instantiate
from omegaconf import OmegaConf
from torch import nn

from aligndetr.config import (
    ITERS_PER_EPOCH,
    apply_overrides,
    check_targets,
    config_from_yaml,
    config_to_yaml,
    get_config,
    load_config,
    save_config,
)
from tests.builders import golden_json

PROJECTS = Path(__file__).parents[2] / "projects"
CONFIGS = PROJECTS / "aligndetr/configs"
CONFIG_FILES = sorted(
    set(PROJECTS.glob("*/configs/**/*.py")) - set(PROJECTS.glob("*/configs/models/*.py"))
)
EXPERIMENTS = sorted(CONFIGS.glob("aligndetr_k=2_*.py"))
DAB_EXPERIMENTS = sorted(PROJECTS.glob("align_dab_detr/configs/*_50ep.py"))
DECAY_EPOCH = {12: 11, 24: 20, 36: 30, 50: 40}
stem = pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
any_stem = pytest.mark.parametrize("path", EXPERIMENTS + DAB_EXPERIMENTS, ids=lambda p: p.stem)


def test_the_experiments_of_the_reference_are_there():
    assert {path.stem.removeprefix("aligndetr_k=2_r50_4scale_") for path in EXPERIMENTS} == {
        "12ep", "24ep", "36ep", "tau_3_12ep", "tau_3_24ep"
    }  # fmt: skip


@any_stem
def test_file_name_agrees_with_schedule(path):
    cfg = load_config(path)
    epochs = int(re.search(r"(\d+)ep$", path.stem)[1])
    assert cfg.train.max_iter == epochs * ITERS_PER_EPOCH
    assert cfg.lr_multiplier.scheduler.milestones[-1] == cfg.train.max_iter
    assert cfg.lr_multiplier.scheduler.milestones[0] == DECAY_EPOCH[epochs] * 7500
    assert cfg.train.output_dir == f"./output/{path.stem.replace('=', '')}"


@stem
def test_file_name_agrees_with_criterion(path):
    criterion = load_config(path).model.criterion
    assert criterion.match_num == [2, 2, 2, 2, 2, 2, 1]
    assert criterion.tau == (3 if "tau_3" in path.stem else 1.5)


@any_stem
def test_command_in_the_docstring_names_its_own_file(path):
    text = path.read_text()
    assert f"--config-file {path.relative_to(PROJECTS.parent).as_posix()}\n" in text
    assert "not ours" in text or "No published figure" in text


def test_values_of_the_second_project():
    """As the authors' config has them, for one scale, 300 queries and gradient clipping."""
    path = PROJECTS / "align_dab_detr/configs/align_dab_detr_r50_50ep.py"
    cfg = load_config(path)
    model = cfg.model
    assert (model.in_features, model.num_queries, model.embed_dim) == (["res5"], 300, 256)
    assert (model.position_embedding.temperature, model.position_embedding.normalize) == (20, True)
    assert model.criterion.match_num == [1, 2, 2, 2, 2, 2, 1]
    assert (model.criterion.tau, model.criterion.alpha, model.criterion.gamma) == (1.5, 0.25, 2.0)
    assert cfg.train.clip_grad == {"enabled": True, "params": {"max_norm": 0.1, "norm_type": 2}}
    assert (cfg.optimizer.lr, cfg.optimizer.weight_decay) == (1e-4, 1e-4)
    assert cfg.train.max_iter == 375_000
    assert len(path.read_text().splitlines()) <= 20


@pytest.mark.parametrize("path", CONFIG_FILES, ids=lambda path: path.stem)
def test_same_after_saving_and_loading(path, tmp_path):
    cfg = load_config(path)
    save_config(cfg, tmp_path / "config.yaml")
    loaded = load_config(tmp_path / "config.yaml")
    text = config_to_yaml(cfg)
    assert config_to_yaml(loaded) == text
    assert "!!" not in text
    assert OmegaConf.to_container(loaded, resolve=True)  # every reference leads somewhere
    check_targets(loaded)


def test_values_of_the_reference():
    cfg = load_config(CONFIGS / "aligndetr_k=2_r50_4scale_12ep.py")
    assert cfg.model.criterion.weight_dict == golden_json("r50_4scale_keys")["weight_dict"]
    assert cfg.optimizer.lr == cfg.optimizer.params.base_lr == 1e-4
    assert (cfg.optimizer.betas, cfg.optimizer.weight_decay) == ([0.9, 0.999], 1e-4)
    assert cfg.dataloader.train.total_batch_size == 16
    assert cfg.train == {
        "output_dir": "./output/aligndetr_k2_r50_4scale_12ep",
        "init_checkpoint": "detectron2://ImageNetPretrained/torchvision/R-50.pkl",
        "max_iter": 90000,
        "max_epochs": None,
        "auto_scale_lr": False,
        "amp": {"enabled": False, "dtype": "bfloat16"},
        "grad_accum_steps": 1,
        "max_bad_steps": 10,
        "max_corrupt_share": 0.05,
        "ddp": {
            "broadcast_buffers": False,
            "find_unused_parameters": False,
            "fp16_compression": False,
        },
        "clip_grad": {"enabled": True, "params": {"max_norm": 0.1, "norm_type": 2}},
        "seed": -1,
        "deterministic": False,
        "fast_dev_run": {"enabled": False},
        "checkpointer": {"period": 10000, "max_to_keep": 100, "best_metric": "bbox/AP"},
        "eval_period": 5000,
        "report": True,
        "log_period": 100,
        "hooks": [],
        "wandb": {
            "enabled": False,
            "params": {
                "dir": "./wandb_output",
                "project": "aligndetr",
                "name": "aligndetr_experiment",
            },
        },
        "mlflow": {
            "enabled": False,
            "params": {"tracking_uri": "", "experiment_name": "aligndetr", "run_name": ""},
        },
        "model_ema": {
            "enabled": False,
            "decay": 0.999,
            "device": "",
            "use_ema_weights_for_eval_only": False,
        },
        "ms_deform_attn": "auto",
        "device": "cuda",
    }


def test_the_saved_config_builds_the_same_model():
    """A smaller one, but with every part of the published config."""
    small = [
        "train.device=cpu", "model.num_queries=10", "model.transformer.encoder.num_layers=1",
        "model.transformer.decoder.num_layers=1", "model.criterion.match_num=[2,1]",
    ]  # fmt: skip
    cfg = apply_overrides(load_config(EXPERIMENTS[0]), small)
    model, again = (instantiate(c.model) for c in (cfg, config_from_yaml(config_to_yaml(cfg))))
    assert repr(model) == repr(again)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in again.state_dict().items()}


def test_optimizer_spares_norms_and_slows_the_backbone():
    optimizer = get_config("common/optim.py").optimizer
    optimizer.params.model = nn.ModuleDict(
        {"backbone": nn.Conv2d(2, 3, 1, bias=False), "norm": nn.GroupNorm(1, 5)}
    )
    groups = instantiate(optimizer).param_groups
    found = {p.numel(): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert found == {6: (pytest.approx(1e-5), 1e-4), 5: (1e-4, 0.0)}


def test_shared_configs_are_new_each_time():
    get_config("common/train.py").train.max_iter = 1
    assert get_config("common/train.py").train.max_iter == 90000


@pytest.mark.parametrize("name", ["common/trian.py", "../setup.py", "loading.py", "common"])
def test_unknown_shared_config_lists_the_known(name):
    with pytest.raises(ValueError, match="unknown config .*common/train.py"):
        get_config(name)
