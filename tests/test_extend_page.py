"""docs/extend.md: its files are written to a folder outside the repository and run."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from aligndetr.config import apply_overrides, load_config
from aligndetr.criterions.prediction_set import MatchedPairs, PredictionSet
from aligndetr.engine import check_run, do_train, rehearse
from aligndetr.inference import Predictor
from tests.data.coco_json import COCO_TINY
from tests.engine.stand_in import arguments
from tests.test_own_data import SMALL

PAGE = Path(__file__).parents[1] / "docs/extend.md"


def files_of_the_page():
    """name -> content of each block, which begins with a comment that says the name."""
    blocks = re.findall(r"```python\n(# (\S+)\n.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    return {name: content for content, name in blocks}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Somewhere else, with the page's files; Python looks there, as for `python -m aligndetr`."""
    for name, content in files_of_the_page().items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_block_is_a_file_of_under_30_lines():
    files = files_of_the_page()
    assert len(files) == PAGE.read_text(encoding="utf-8").count("```python") == 8
    assert {name: len(text.splitlines()) for name, text in files.items()} == {
        name: pytest.approx(15, abs=14) for name in files
    }


def config(name, *options):
    return apply_overrides(load_config(name), [*SMALL, f"dataset.root={COCO_TINY}", *options])


def test_the_configs_train_together_and_what_is_saved_loads_again(folder):
    cfg = config("quality_focal.py", "train.max_iter=2")
    backbone = config("plain_backbone.py").model
    cfg.model.backbone, cfg.model.neck = backbone.backbone, backbone.neck
    cfg.train.hooks = config("weight_norms.py", "train.hooks.0.period=2").train.hooks
    cfg.dataloader.train.mapper = config("fog.py").dataloader.train.mapper
    cfg.dataloader.train.mapper.augmentation = [
        cfg.dataloader.train.mapper.augmentation[0],
        *config("fog.py").dataloader.train.mapper.augmentation,
    ]
    check_run(cfg, arguments())
    Path(cfg.train.output_dir).mkdir(parents=True)
    do_train(cfg)

    lines = (folder / "output/quality_focal/metrics.json").read_text().splitlines()
    values = {key: value for line in lines for key, value in json.loads(line).items()}
    assert values["weight_norm/backbone"] > 0
    assert math.isfinite(values["loss_class_dn_1"])
    predictor = Predictor.from_checkpoint("output/quality_focal/model_final.pth", device="cpu")
    names = {type(part).__name__ for part in predictor.model.modules()}
    assert {"PlainBackbone", "QualityFocalCriterion"} <= names


def test_the_loss_by_hand(folder):
    """At p = 1/2 a matched entry of IoU t costs |t - 1/2|^2 ln 2, any other ln 2 / 4."""
    from projects.my_idea.losses import QualityFocalCriterion

    square = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.2, 0.2]])
    half = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.45, 0.5, 0.1, 0.2]])  # IoU 1 and 1/2
    position = (torch.tensor([0, 0]), torch.tensor([1, 2]), torch.tensor([0, 1]))
    layer = PredictionSet(torch.zeros(1, 3, 2), None, [], 1, 1, "a layer")
    criterion = QualityFocalCriterion(2, torch.nn.Identity(), {}, [1, 1], 2.0, 0.25, 1.5)
    pairs = MatchedPairs([], [position], square, half)
    (loss,), weight = criterion.classification_sums([layer], pairs)
    assert loss.item() == pytest.approx((4 + 1 + 0) / 4 * math.log(2), rel=1e-4)
    assert weight == 1


def test_the_fog_leaves_boxes_alone_and_pixels_between_image_and_grey(folder):
    import numpy as np
    from detectron2.data import transforms as T

    from projects.my_idea.augmentations import RandomFog

    given = T.AugInput(np.full((3, 4, 3), 100, np.uint8), boxes=np.array([[0.0, 0, 2, 2]]))
    T.AugmentationList([RandomFog(thickest=0.5)])(given)
    assert given.boxes.tolist() == [[0, 0, 2, 2]]
    assert 100 <= given.image.min() == given.image.max() <= 150


@pytest.mark.parametrize("name", ["plain_backbone.py", "weight_norms.py", "fog.py"])
def test_each_config_differs_in_its_idea_alone(folder, name):
    base, cfg = map(OmegaConf.to_container, (load_config("aligndetr_demo"), load_config(name)))
    assert cfg["train"]["output_dir"] == f"./output/{name.removesuffix('.py')}"
    changed = {key for key in base if cfg[key] != base[key]}
    assert changed <= {"train", {"plain_backbone.py": "model", "fog.py": "dataloader"}.get(name)}


def test_what_is_no_hook_is_an_error_before_the_run(folder):
    cfg = config("weight_norms.py", "train.hooks.0._target_=torch.nn.Identity")
    with pytest.raises(ValueError, match=r"`train.hooks\[0\]` builds a Identity"):
        rehearse(cfg, arguments())
