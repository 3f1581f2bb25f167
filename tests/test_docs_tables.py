"""The tables "you write there / you write here": every right-hand side works as it stands."""

import importlib
import re
import shlex
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from aligndetr.cli.train import parse_run
from aligndetr.config import apply_overrides, coco_schedule, get_config, load_config
from aligndetr.engine import check_run
from tests.data.coco_json import COCO_TINY, make_content, write_dataset
from tests.engine.stand_in import arguments

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "docs/from_mmdetection.md", ROOT / "docs/from_detrex.md"]
CONFIG = ROOT / "projects/aligndetr/configs/aligndetr_k=2_r50_4scale_12ep.py"
NOT_OF_A_CONFIG = ("DETECTRON2_DATASETS=", "CUDA_VISIBLE_DEVICES=")
CALLS = {"get_config": get_config, "coco_schedule": coco_schedule}
NAMES_OF_FILES = {"curves.png", "last_checkpoint", "srun", "--cfg-options"}


def rows():
    """(left, right) of every row of every table."""
    for page in PAGES:
        for line in page.read_text(encoding="utf-8").splitlines():
            cells = [cell.strip() for cell in line.strip("|").split(" | ")]
            if line.startswith("| ") and cells[0] != "there":
                yield pytest.param(*cells, id=f"{page.stem}: {cells[0][:50]}")


def spans(cell):
    return re.findall(r"`([^`]+)`", cell)


def check_command(words, monkeypatch):
    while "=" in words[0]:  # of the environment
        words = words[1:]
    assert words[:2] == ["python", "tools/train_net.py"]
    monkeypatch.setattr("sys.argv", words[1:])
    monkeypatch.chdir(ROOT)
    args = parse_run("")
    assert args.config_file
    return apply_overrides(load_config(args.config_file), args.opts)


def check_override(text):
    """That the key exists, and that the config then has the value."""
    key, _, typed = text.partition("=")
    cfg = apply_overrides(load_config(CONFIG), [text])
    value = OmegaConf.select(cfg, key)
    value = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    expected = typed.strip("'")
    same = str(value).replace(" ", "") == expected
    assert same or float(value) == float(expected), (value, expected)


def check_name(name):
    """A key of the config, a file of ours, or an object by its dotted name."""
    if (ROOT / name).exists() or OmegaConf.select(load_config(CONFIG), name) is not None:
        return
    if name == "train.init_checkpoint":
        return
    module, _, attribute = name.rpartition(".")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError:  # a method of a class
        outer, _, class_name = module.rpartition(".")
        found = getattr(importlib.import_module(outer), class_name)
    assert hasattr(found, attribute), name


def test_there_are_rows_to_check():
    left = " ".join(row.values[0] for row in rows())
    for word in (
        "--resume",
        "--amp",
        "--auto-scale-lr",
        "init_cfg=None",
        "DEVICES=-1",
        "data/coco",
    ):
        assert word in left
    assert len(list(rows())) >= 55


@pytest.mark.parametrize(("left", "right"), list(rows()))
def test_the_right_hand_side_works(left, right, monkeypatch):
    assert spans(right), f"nothing to type for {left}"
    for span in spans(right):
        words = shlex.split(span)
        if "python" in words:
            check_command(words, monkeypatch)
        elif span.startswith(tuple(CALLS)):
            assert eval(span, dict(CALLS)) is not None
        elif span in NAMES_OF_FILES or span.startswith(NOT_OF_A_CONFIG):
            continue
        elif span.startswith("--"):
            monkeypatch.setattr("sys.argv", ["train_net.py", "--config-file", str(CONFIG), *words])
            parse_run("")
        elif "=" in span:
            for word in words:
                check_override(word)
        else:
            check_name(span)


def test_the_config_of_from_detrex_md_is_that_of_the_shipped_schedule(tmp_path):
    page = (ROOT / "docs/from_detrex.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, re.S)
    shutil.copytree(CONFIG.parent / "models", tmp_path / "models")
    (tmp_path / "my_aligndetr.py").write_text(block, encoding="utf-8")
    mine, shipped = load_config(tmp_path / "my_aligndetr.py"), load_config(CONFIG)
    for cfg in (mine, shipped):  # how often and where is everybody's own
        cfg.train.output_dir = "out"
        cfg.model.device = cfg.train.device
        cfg.dataloader.train.num_workers = 2
        cfg.train.log_period, cfg.train.checkpointer.period = 20, 5000
    for part in ("train", "model", "optimizer", "lr_multiplier", "dataloader", "dataset"):
        found, expected = (str(OmegaConf.to_container(cfg[part])) for cfg in (mine, shipped))
        assert found == expected


def test_a_data_folder_may_be_linked_as_data_coco(tmp_path, monkeypatch):
    for split in ("train", "val"):
        write_dataset(tmp_path / "datasets" / "mine", make_content(), split)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "coco").symlink_to(tmp_path / "datasets" / "mine")
    monkeypatch.chdir(tmp_path)
    options = ["dataset.root=data/coco", "train.device=cpu", "train.init_checkpoint=''"]
    cfg = apply_overrides(load_config(CONFIG), options)
    check_run(cfg, arguments())
    assert cfg.model.num_classes == 3


def test_scaling_the_learning_rate_and_random_weights(tmp_path):
    """What `--auto-scale-lr` and `init_cfg=None` do there: on 2 images an eighth of the rate."""
    from aligndetr.engine import build_optimizer
    from tests.builders import tiny_model

    options = [
        f"dataset.root={COCO_TINY}", "train.device=cpu", "train.init_checkpoint=''",
        "train.auto_scale_lr=True", "dataloader.train.total_batch_size=2",
        f"train.output_dir={tmp_path / 'run'}",
    ]  # fmt: skip
    cfg = apply_overrides(load_config(CONFIG), options)
    check_run(cfg, arguments())
    rates = {group["lr"] for group in build_optimizer(cfg, tiny_model()).param_groups}
    assert sorted(rates) == pytest.approx([1e-5 / 8, 1e-4 / 8])
