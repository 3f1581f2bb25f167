"""Learning rates by parameter name."""

import pytest
from detectron2.solver import get_default_optimizer_params

from aligndetr.engine import backbone_lr_factor
from tests.engine.stand_in import StandIn


def test_backbone_learns_at_its_own_rate():
    model = StandIn()
    groups = get_default_optimizer_params(
        model, base_lr=0.1, lr_factor_func=backbone_lr_factor(factor=0.5)
    )
    rate_of = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert {rate_of[id(p)] for p in model.backbone.parameters()} == {0.05}
    assert {rate_of[id(p)] for p in model.head.parameters()} == {0.1}


@pytest.mark.parametrize("factor", [-0.1, float("nan")])
def test_factor_must_not_be_negative(factor):
    with pytest.raises(ValueError, match="lr_factor_func"):
        backbone_lr_factor(factor)
