"""The ladder: from DINO to Align-DETR, and one thing at a time."""

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from aligndetr.config import load_config
from aligndetr.config.allow_list import walk

CONFIGS = Path(__file__).parents[2] / "projects/aligndetr/configs"
RUNGS = ["1_dino", "2_ia_bce", "3_mixed_matching", "4_rank_weights"]
LAYERS = {"r50": 6, "demo": 3}


def flat(path):
    values = OmegaConf.to_container(load_config(path))
    return {key: v for key, v in walk(values) if not isinstance(v, dict | list)}


def differences(first, second):
    keys = first.keys() | second.keys()
    return {key for key in keys if first.get(key) != second.get(key)} - {"train.output_dir"}


@pytest.mark.parametrize("size", LAYERS)
def test_each_rung_changes_one_thing_of_the_criterion(size):
    rungs = [flat(CONFIGS / f"ladder/{size}_{rung}.py") for rung in RUNGS]
    layers = range(LAYERS[size])
    criterion = "model.criterion."
    assert [differences(a, b) for a, b in zip(rungs, rungs[1:])] == [
        {f"{criterion}class_loss"},
        # Of one candidate the weight is 1, whatever `rank_weights` says.
        {f"{criterion}rank_weights", *(f"{criterion}match_num.{i}" for i in layers)},
        {f"{criterion}rank_weights"},
    ]
    assert len({rung["train.output_dir"] for rung in rungs}) == len(rungs)


@pytest.mark.parametrize("size", LAYERS)
def test_it_begins_with_dino(size):
    criterion = load_config(CONFIGS / f"ladder/{size}_1_dino.py").model.criterion
    assert criterion.class_loss == "focal"
    assert criterion.match_num == [1] * (LAYERS[size] + 1)


def test_it_ends_with_the_published_config():
    last = flat(CONFIGS / "ladder/r50_4_rank_weights.py")
    published = flat(CONFIGS / "aligndetr_k=2_r50_4scale_12ep.py")
    said = {"model.criterion.class_loss": "ia_bce", "model.criterion.rank_weights": True}
    assert differences(last, published) == said.keys()  # the defaults, here spelt out
    assert {key: last[key] for key in said} == said


def test_the_demos_ladder_is_the_demo_but_for_the_candidates():
    last, demo = (
        flat(CONFIGS / "ladder/demo_4_rank_weights.py"),
        flat(CONFIGS / "aligndetr_demo.py"),
    )
    said = {"model.criterion.class_loss", "model.criterion.rank_weights"}
    assert differences(last, demo) == said | {f"model.criterion.match_num.{i}" for i in range(3)}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("ladder/*.py")), ids=lambda path: path.stem)
def test_a_rung_is_a_few_lines_and_says_its_command(path):
    text = path.read_text()
    assert f"--config-file projects/aligndetr/configs/ladder/{path.name}" in text
    assert len(re.findall(r"^(?:model|train|optimizer)\.", text, re.M)) <= 4
