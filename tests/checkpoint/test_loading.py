"""Which tensors of a file go where, and what is said about the others."""

import logging
import re

import pytest
import torch
from torch import nn

from aligndetr.checkpoint import CheckpointError, load_weights
from aligndetr.layers import PositionEmbeddingSine


class Detector(nn.Module):
    """A backbone, and a class head that also stands under a second name."""

    def __init__(self, num_classes=3, width=5):
        super().__init__()
        self.backbone = nn.Sequential()
        self.backbone.add_module("stem", nn.Conv2d(3, width, 1))
        self.class_embed = nn.Linear(width, num_classes)
        self.decoder = nn.Module()
        self.decoder.class_embed = self.class_embed


def load(model, state, strict=False, **extra):
    return load_weights(model, {"model": state, **extra}, "weights.pth", strict=strict)


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(model, state):
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_everything_fits():
    source, model = Detector(), Detector()
    report = load(model, source.state_dict(), strict=True)
    assert report.complete
    assert len(report.loaded) == 6
    assert_same(model, source.state_dict())


def test_ddp_prefix_is_taken_off():
    source, model = Detector(), Detector()
    load(model, {f"module.{k}": v for k, v in source.state_dict().items()}, strict=True)
    assert_same(model, source.state_dict())


def test_one_name_of_a_shared_tensor_is_enough():
    source, model = Detector(), Detector()
    state = {k: v for k, v in source.state_dict().items() if not k.startswith("decoder")}
    assert load(model, state, strict=True).complete
    assert_same(model, source.state_dict())


def test_head_of_other_classes_keeps_its_initial_values_and_says_so(caplog):
    source, model = Detector(num_classes=80), Detector(num_classes=3)
    before = snapshot(model)
    with caplog.at_level(logging.WARNING):
        report = load(model, source.state_dict())
    assert report.mismatched["class_embed.weight"] == ((80, 5), (3, 5))
    assert "class_embed.weight: (80, 5) in the file, (3, 5) here" in caplog.text
    assert torch.equal(model.class_embed.weight, before["class_embed.weight"])
    assert torch.equal(model.backbone.stem.weight, source.backbone.stem.weight)


def test_strict_refuses_the_head_of_other_classes_and_changes_nothing():
    model = Detector(num_classes=3)
    before = snapshot(model)
    with pytest.raises(CheckpointError, match=r"(?s)weights\.pth.*class_embed\.weight"):
        load(model, Detector(num_classes=80).state_dict(), strict=True)
    assert_same(model, before)


@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_strict_refuses_what_is_missing_or_too_much(change):
    state = Detector().state_dict()
    if change == "missing":
        del state["backbone.stem.bias"]
    else:
        state["neck.weight"] = torch.ones(1)
    name = {"missing": "bias", "unexpected": "neck"}[change]
    with pytest.raises(CheckpointError, match=rf"(?s)Every tensor must fit.*{name}"):
        load(Detector(), state, strict=True)
    assert load(Detector(), state).loaded


def test_nothing_in_common_is_an_error():
    model = Detector()
    before = snapshot(model)
    with pytest.raises(CheckpointError, match=r"no tensor.*layer1.*backbone\.stem"):
        load(model, {"layer1.weight": torch.ones(2)})
    assert_same(model, before)


def test_other_architecture_is_an_error():
    with pytest.raises(CheckpointError, match=r"other dimensions.*\(3, 7\)"):
        load(
            Detector(width=5),
            {**Detector(width=7).state_dict(), "backbone.stem.bias": torch.ones(5)},
        )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named_and_change_nothing(value):
    model, state = Detector(), Detector().state_dict()
    before = snapshot(model)
    state["backbone.stem.weight"][1, 2] = value
    with pytest.raises(CheckpointError, match=r"weights\.pth.*'backbone\.stem\.weight'.*NaN"):
        load(model, state)
    assert_same(model, before)


def test_backbone_of_the_model_zoo_matches_by_the_end_of_names(caplog):
    model = Detector()
    before = snapshot(model)
    state = {
        "stem.weight": torch.ones(5, 3, 1, 1),
        "stem.bias": torch.ones(5),
        "stem.fc": torch.ones(2),
    }
    with caplog.at_level(logging.INFO):
        report = load(model, state, matching_heuristics=True)
    assert sorted(report.loaded) == ["backbone.stem.bias", "backbone.stem.weight"]
    assert report.unexpected == ["stem.fc"]
    assert model.backbone.stem.weight.eq(1).all()
    assert torch.equal(model.class_embed.weight, before["class_embed.weight"])
    for part in ("class_embed", "decoder"):
        row = rf"all of {part} +2 +not in the file: keeps its initial value"
        assert re.search(row, caplog.text)
    assert not any(
        record.name.startswith("aligndetr") and record.levelno > logging.INFO
        for record in caplog.records
    )


class Part(nn.Module):
    """Ten tensors, of which five are in `first`."""

    def __init__(self):
        super().__init__()
        self.first = nn.ParameterDict({f"p{i}": nn.Parameter(torch.zeros(2)) for i in range(5)})
        self.second = nn.ParameterDict({f"p{i}": nn.Parameter(torch.zeros(2)) for i in range(5)})


@pytest.mark.parametrize(
    ("fitting", "foreign", "refused"),
    [
        (5, 0, None),  # `first` as a whole: a backbone's file
        (5, 5, None),  # half of the file has a place
        (5, 6, "45% of its tensors .* 100% of the model's parts"),
        (3, 0, None),  # three of five
        (2, 0, "100% of its tensors .* 40% of the model's parts"),
    ],
)
def test_what_fits_too_little_is_an_error_and_no_random_start(fitting, foreign, refused):
    model = Part()
    state = {f"first.p{i}": torch.ones(2) for i in range(fitting)}
    state |= {f"other.p{i}": torch.ones(2) for i in range(foreign)}
    if refused is None:
        assert len(load(model, state).loaded) == fitting
        return
    with pytest.raises(CheckpointError, match=rf"(?s){refused}.*at least 50%"):
        load(model, state)
    assert all(not tensor.any() for tensor in model.state_dict().values())


def test_one_table_holds_all_that_was_not_simply_loaded(caplog):
    model, state = Detector(num_classes=3), Detector(num_classes=80).state_dict()
    del state["backbone.stem.bias"]
    state = {name: t for name, t in state.items() if not name.startswith("decoder")}
    state |= {"extra.bias": torch.ones(1), "extra.weight": torch.ones(1)}
    load(model, state, dropped=["fc.weight"], filled=["backbone.stem.weight"])
    rows = [re.split(r"  +", line.strip()) for line in caplog.text.splitlines()[3:]]
    assert rows == [
        ["class_embed.weight: (80, 5) in the file, (3, 5) here", "1",
         "other shape: keeps its initial value"],
        ["class_embed.bias: (80,) in the file, (3,) here", "1",
         "other shape: keeps its initial value"],
        ["backbone.stem.bias", "1", "not in the file: keeps its initial value"],
        ["backbone.stem.weight", "1", "not in the file: has one possible value, which was set"],
        ["extra.{bias, weight}", "2", "in the file alone: not used"],
        ["fc.weight", "1", "in the file alone: of no use to a detector"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value", "here"),
    [
        ("model.pixel_mean", [1.0, 2.0, 3.0], r"pixel_mean=\[4\.0,5\.0,6\.0\]"),
        ("model.pixel_std", [7], ""),
    ],
)
def test_a_setting_that_no_tensor_shows_is_compared(key, value, here):
    model = Detector()
    model.pixel_mean = torch.tensor([4.0, 5.0, 6.0]).view(3, 1, 1)
    before = snapshot(model)
    if not here:  # a model that has no such setting
        assert load(model, Detector().state_dict(), settings={key: value}).complete
        return
    with pytest.raises(CheckpointError, match=rf"{here}.*add {re.escape(key)}=\[1\.0,2\.0,3\.0\]"):
        load(model, Detector().state_dict(), settings={key: value})
    assert_same(model, before)
    model.pixel_mean = torch.tensor(value).view(3, 1, 1)
    assert load(model, Detector().state_dict(), settings={key: value}).complete


def test_a_setting_of_another_type_is_another_setting():
    model = Detector()
    model.position_embedding = PositionEmbeddingSine(2, temperature=20)
    settings = {"model.position_embedding.temperature": None}  # of a config that computes it
    with pytest.raises(CheckpointError, match=r"\(model\.position_embedding\.temperature=20\)"):
        load(model, Detector().state_dict(), settings=settings)


def test_what_only_a_data_loader_knows_is_said(caplog):
    settings = {"dataloader.test.mapper.img_format": "BGR"}
    assert load(Detector(), Detector().state_dict(), settings=settings).complete
    assert "weights.pth needs dataloader.test.mapper.img_format=BGR" in caplog.text
