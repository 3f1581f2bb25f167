"""A key of a config file that nothing reads is refused, as one of an override is."""

from itertools import product
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from aligndetr.config import check_arguments, check_known_keys, config_to_yaml, load_config
from aligndetr.engine import check_run
from tests.data.coco_json import COCO_TINY
from tests.engine.stand_in import arguments, stand_in_config

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "projects/aligndetr/configs/aligndetr_demo.py"
SHIPPED = sorted(
    path
    for path in (ROOT / "projects").glob("*/configs/**/*.py")
    if path.parent.name != "models" and path.stem != "base"
)
UNKNOWN = [
    ("train.max_iters", 7, "train.max_iter"),
    ("train.clip_grads", 1, "train.clip_grad.enabled"),
    ("train.lr", 1e-3, "optimizer.lr"),
    ("train.amp.enable", True, "train.amp.enabled"),
    ("train.checkpointer.best", "bbox/AP", "train.checkpointer.best_metric"),
    ("train.ddp.find_unused", True, "train.ddp.find_unused_parameters"),
    ("dataset.rot", "/nowhere", "dataset.root"),
]


def run_of(tmp_path, name, *changes):
    """The demo's config from a file of the user's, which changes it."""
    path = tmp_path / name
    sets = {
        "train.device": "cpu",
        "train.output_dir": str(tmp_path / "output"),
        "dataset.root": str(COCO_TINY),
        "dataloader.train.total_batch_size": 2,
        **dict(changes),
    }
    if path.suffix == ".py":
        start = "from omegaconf import OmegaConf\nfrom aligndetr.config import load_config\n"
        lines = [f"OmegaConf.update(cfg, {k!r}, {v!r}, force_add=True)" for k, v in sets.items()]
        end = "\nglobals().update({str(k): v for k, v in cfg.items()})\ndel cfg\n"
        path.write_text(f"{start}cfg = load_config({str(DEMO)!r})\n" + "\n".join(lines) + end)
    else:
        cfg = load_config(DEMO)
        for key, value in sets.items():
            OmegaConf.update(cfg, key, value, force_add=True)
        path.write_text(config_to_yaml(cfg))
    return load_config(path)


@pytest.mark.parametrize("name", ["mine.py", "mine.yaml"])
@pytest.mark.parametrize(("key", "value", "nearest"), UNKNOWN)
def test_an_unknown_key_of_a_file_is_refused_with_the_nearest(tmp_path, name, key, value, nearest):
    cfg = run_of(tmp_path, name, (key, value))
    with pytest.raises(ValueError, match=rf"`{key}` is no key .*; did you mean `{nearest}`\?$"):
        check_run(cfg, arguments())


@pytest.mark.parametrize("name", ["mine.py", "mine.yaml"])
def test_parts_of_the_users_own_and_arguments_of_other_libraries_pass(tmp_path, name):
    cfg = run_of(
        tmp_path,
        name,
        ("mine", {"max_iters": 1}),
        ("train.ddp.bucket_cap_mb", 5),
        ("train.wandb.params.tags", ["a"]),
        ("train.mlflow", None),
    )
    check_run(cfg, arguments())


@pytest.mark.parametrize(
    ("key", "value"),
    [("train", True), *product(["train.amp", "train.clip_grad.params"], [None, True])],
)
def test_a_group_that_is_none_is_named(tmp_path, key, value):
    cfg = stand_in_config(tmp_path)
    OmegaConf.update(cfg, key, value)
    with pytest.raises(ValueError, match=rf"`{key}` \(={value}\) must be a group, with the keys "):
        check_run(cfg, arguments())


def test_groups_may_be_references(tmp_path):
    cfg = stand_in_config(tmp_path, amp="${mine}")
    cfg.mine = {"enabled": False, "dtype": "float16"}
    check_run(cfg, arguments())
    cfg.mine.enable = True
    with pytest.raises(ValueError, match=r"`train\.amp\.enable` .*`train\.amp\.enabled`"):
        check_run(cfg, arguments())


def test_a_dataset_may_hold_what_another_part_refers_to(tmp_path):
    cfg = run_of(tmp_path, "mine.yaml", ("dataset.workers", 0))
    with pytest.raises(ValueError, match=r"`dataset\.workers` is no key"):
        check_known_keys(cfg)
    cfg.dataloader.train.num_workers = "${dataset.workers}"
    check_known_keys(cfg)


def test_a_dataset_of_the_users_own_is_left_alone(tmp_path):
    cfg = stand_in_config(tmp_path)
    cfg.dataset = {"folder": "x", "rot": 3}
    cfg.dataloader.train.total_batch_size = "${dataset.rot}"
    check_known_keys(cfg)
    cfg.dataloader = "mine"  # not even a group
    check_known_keys(cfg)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configs_have_no_unknown_key_or_argument(path):
    if any(name in path.stem for name in ("swin", "vitdet", "convnext")):
        pytest.importorskip("timm")
    cfg = load_config(path)
    check_known_keys(cfg)
    check_arguments(cfg, "model")
    for part in ("optimizer", "lr_multiplier"):
        check_arguments(cfg, part, complete=False)


def test_configs_saved_by_an_older_version_or_by_the_authors_code_pass(tmp_path):
    check_known_keys(load_config(ROOT / "tests/data_files/reference_config.yaml"))
    cfg = run_of(tmp_path, "mine.yaml")
    for key in ("max_epochs", "hooks", "report", "mlflow", "grad_accum_steps"):
        del cfg.train[key]
    check_run(cfg, arguments())


def test_what_does_not_tell_its_arguments_is_called_with_any():
    cfg = OmegaConf.create({"model": {"_target_": "builtins.dict", "anything": 3}})
    check_arguments(cfg, "model")
