"""The demo's config: the small model it promises, on the demo's data, trained from nothing."""

from pathlib import Path

import pytest
from detectron2.config import instantiate

from aligndetr.config import load_config

PATH = Path(__file__).parents[2] / "projects/aligndetr/configs/aligndetr_demo.py"


@pytest.fixture
def cfg():
    return load_config(PATH)


def test_only_what_a_run_reads_is_in_the_config(cfg):
    # A helper dict left at the top of a config file would be saved as a key of its own.
    keys = {"dataloader", "dataset", "lr_multiplier", "model", "optimizer", "train"}
    assert set(cfg) == keys


def test_the_model_is_small_and_nothing_is_frozen(cfg):
    cfg.model.num_classes = 1  # as the data will say
    model = instantiate(cfg.model)
    parameters = list(model.parameters())
    assert all(p.requires_grad for p in parameters)
    assert 4.5e6 < sum(p.numel() for p in parameters) < 4.8e6
    channels = {name: shape.channels for name, shape in model.backbone.output_shape().items()}
    assert channels == {"res3": 64, "res4": 128, "res5": 256}
    strides = {name: shape.stride for name, shape in model.backbone.output_shape().items()}
    assert strides == {"res3": 8, "res4": 16, "res5": 32}


def test_each_layer_has_its_match_number_and_weights(cfg):
    criterion, layers = cfg.model.criterion, cfg.model.transformer.decoder.num_layers
    assert len(criterion.match_num) == layers + 1
    numbered = {int(k.rsplit("_", 1)[1]) for k in criterion.weight_dict if k[-1].isdigit()}
    assert numbered == set(range(layers - 1))


def test_learning_rate_warms_up_and_falls_once(cfg):
    multiplier, steps = instantiate(cfg.lr_multiplier), cfg.train.max_iter
    factors = [multiplier(i / steps) for i in range(steps)]
    assert factors[0] < 0.01
    assert factors[:50] == sorted(factors[:50])
    assert factors[50] == pytest.approx(1)
    assert factors[-1] == pytest.approx(0.1)


def test_it_trains_on_the_demos_data_and_never_on_val(cfg):
    assert cfg.dataset.root == "datasets/trees"
    assert cfg.dataloader.train.dataset.names.split == "train"
    assert cfg.dataloader.test.dataset.names.split == "val"
    assert cfg.train.device == "cpu"
    assert cfg.train.init_checkpoint == ""
