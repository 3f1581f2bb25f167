"""A backbone's own file finds its place in a detector, and nothing else is taken for one."""

import pytest
import torch

from aligndetr.checkpoint.bare_backbones import with_backbone_names
from aligndetr.checkpoint.loading import load_weights

SWIN = {"layers.0.norm1.weight": 1, "patch_embed.proj.weight": 2, "head.weight": 3}


@pytest.mark.parametrize("place", ["backbone.", "backbone.net.", "backbone.body."])
def test_names_get_their_place(place):
    own = [place + "layers.0.norm1.weight", place + "patch_embed.proj.weight", "class_embed.0.bias"]
    found = with_backbone_names(SWIN, own)
    assert found == {own[0]: 1, own[1]: 2, "head.weight": 3}


def test_names_that_timm_joins():
    own = ["backbone.body.stages_0.blocks.0.conv_dw.weight", "backbone.body.stem_0.weight"]
    state = {"stages.0.blocks.0.conv_dw.weight": 1, "stem.0.weight": 2, "head.fc.weight": 3}
    assert with_backbone_names(state, own) == {own[0]: 1, own[1]: 2, "head.fc.weight": 3}


def test_files_of_detectors_and_of_something_else_stay_as_they_are():
    own = ["backbone.layers.0.norm1.weight", "backbone.patch_embed.proj.weight", "neck.weight"]
    detector = {"backbone.layers.0.norm1.weight": 1, "layers.0.norm1.weight": 2}
    assert with_backbone_names(detector, own) == detector
    few = {"layers.0.norm1.weight": 1}
    assert with_backbone_names(few, [*own, "backbone.x", "backbone.y"]) == few
    assert with_backbone_names(few, ["neck.weight"]) == few


def test_weights_of_timm_are_loaded_into_its_feature_extractor():
    timm = pytest.importorskip("timm")
    from aligndetr.modeling import TimmBackbone

    source = timm.create_model("test_convnext")
    model = torch.nn.ModuleDict({"backbone": TimmBackbone("test_convnext")})
    state = with_backbone_names(source.state_dict(), model.state_dict())
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert missing == []
    assert all(name.startswith("head.") for name in unexpected)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        (*_, feature) = model["backbone"].eval()(image).values()
        torch.testing.assert_close(feature, source.eval().forward_features(image))


def test_a_model_loads_such_a_file():
    backbone = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LayerNorm(3))
    model = torch.nn.ModuleDict({"backbone": backbone, "class_embed": torch.nn.Linear(3, 1)})
    state = {name: torch.full_like(value, 2.0) for name, value in backbone.state_dict().items()}
    report = load_weights(model, {"model": state}, "swin.pth", strict=False)
    assert sorted(report.loaded) == sorted(f"backbone.{name}" for name in state)
    assert all((value == 2).all() for value in backbone.state_dict().values())
    assert report.missing == ["class_embed.weight", "class_embed.bias"]
