"""docs/loss.md: its code runs, trains, and computes what the criterion of this library does."""

import re
from pathlib import Path

import pytest
import torch

from aligndetr.criterions import ManyToOneCriterion
from aligndetr.losses import VARIANTS
from aligndetr.matchers import MixedMatcher

PAGE = Path(__file__).parents[2] / "docs/loss.md"
K, Q = 5, 13


@pytest.fixture(scope="module")
def page():
    """All names that the page's blocks define, run one after the other."""
    names = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S):
        exec(block, names)
    return names


@pytest.fixture
def step():
    generator = torch.Generator().manual_seed(0)
    outputs = {
        "pred_logits": torch.randn(2, Q, K, generator=generator),
        "pred_boxes": torch.rand(2, Q, 4, generator=generator) * 0.4 + 0.2,
    }
    targets = [
        {
            "labels": torch.randint(K, (n,), generator=generator),
            "boxes": torch.rand(n, 4, generator=generator) * 0.4 + 0.2,
        }
        for n in (3, 0)
    ]
    return outputs, targets


@pytest.mark.parametrize("k", [1, 2])
def test_it_computes_what_our_criterion_does(page, step, k):
    matcher = MixedMatcher(cost_class=2.0, cost_bbox=5.0, cost_giou=2.0)
    criterion = page["criterion"] if k == 2 else page["SetCriterion"](matcher)
    ours = ManyToOneCriterion(K, matcher, {}, [1, k], gamma=2.0, alpha=0.25, tau=1.5)
    losses, expected = criterion(*step), ours(*step)
    assert losses.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(losses[name], expected[name])


def test_a_model_learns_by_it(page, step):
    outputs, targets = step
    leaves = [value.clone().requires_grad_() for value in outputs.values()]
    optimizer = torch.optim.Adam(leaves, lr=0.05)
    totals = []
    for _ in range(60):
        losses = page["criterion"](dict(zip(outputs, leaves, strict=True)), targets)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        totals.append(sum(losses.values()).item())
    assert totals[-1] < 0.3 * totals[0]


def test_the_table_names_all_variants():
    rows = re.findall(r"^\| `(\w+)` \| [^|]* \| [^|]* \|$", PAGE.read_text(encoding="utf-8"), re.M)
    assert rows == list(VARIANTS)
