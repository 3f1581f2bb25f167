"""Tokens that score equal but for rounding may be ranked either way; nothing else may differ."""

import math

import pytest
import torch

from aligndetr.export import compare, load_onnx
from aligndetr.export.export import TOLERANCE
from aligndetr.export.parity import agree
from aligndetr.export.ranking import (
    RankingDifference,
    imposed,
    ranking_difference,
    ranking_name,
)

NAME = "transformer.rank_tokens"


@pytest.mark.parametrize(
    ("other", "moved", "gap"),
    [
        ([[0, 2, 1]], 0, 0),
        ([[2, 0, 1]], 2, 0.5),
        ([[0, 2, 3]], 1, 2),
        ([[0, 0, 1]], 3, math.inf),  # a token twice, and another that is lost
        ([[0, 2]], 3, math.inf),
    ],
)
def test_the_gap_of_a_ranking_by_hand(other, moved, gap):
    scores = torch.tensor([[3, 1, 2.5, -1]])
    best = scores.topk(3).indices
    found = ranking_difference(scores, best, torch.tensor(other))
    assert found == RankingDifference(moved, gap)


@pytest.fixture(scope="module")
def pixels(predictor):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (3, 96, 128), dtype=torch.uint8, generator=generator)


def found(model, pixels):
    with torch.no_grad():
        return model([{"image": pixels}])[0]["instances"]


def own_ranking(model, pixels):
    seen = []
    handle = model.get_submodule(NAME).register_forward_hook(lambda *args: seen.append(args[2]))
    found(model, pixels)
    handle.remove()
    return seen[0]


def exchanged(ranking, first, second):
    other = ranking.clone()
    other[:, [first, second]] = ranking[:, [second, first]]
    return other


def test_a_model_can_be_made_to_rank_otherwise_for_a_while(predictor, pixels):
    model = predictor.model
    assert ranking_name(model) == NAME
    before, ranking = found(model, pixels), own_ranking(model, pixels)
    with imposed(model, ranking) as differences:
        same = found(model, pixels)
    with imposed(model, exchanged(ranking, 0, 9)) as more:
        other = found(model, pixels)
    after = found(model, pixels)
    assert differences == [RankingDifference(0, 0.0)]
    assert more[0].moved == 2
    assert more[0].gap > 0
    assert torch.equal(same.pred_boxes.tensor, before.pred_boxes.tensor)
    assert torch.equal(after.pred_boxes.tensor, before.pred_boxes.tensor)
    # Why rankings are compared first: another query looks at these tokens.
    assert not torch.allclose(other.scores, before.scores, atol=TOLERANCE.score)


class Exchanging:
    """An exported file that finds what the model finds with two tokens' ranks exchanged."""

    def __init__(self, model, says_so=True):
        self.model, self.says_so = model, says_so

    def __call__(self, inputs):
        rankings = torch.cat([own_ranking(self.model, x["image"]) for x in inputs])
        other = exchanged(rankings, 0, 9)
        with imposed(self.model, other):
            results = self.model(inputs)
        if not self.says_so:
            return results
        return [{**result, "ranking": rank} for result, rank in zip(results, other)]


@pytest.fixture
def undecided(predictor):
    """The model when all its tokens score the same."""
    head = predictor.model.class_embed[-1]
    before = head.weight.detach().clone()
    torch.nn.init.zeros_(head.weight)
    yield predictor.model
    head.weight.data.copy_(before)


def test_equal_tokens_may_be_ranked_either_way(undecided, pixels):
    comparisons = compare(undecided, Exchanging(undecided), [("a", pixels)], TOLERANCE)
    assert [c.ranking.moved for c in comparisons] == [2 * c.batch for c in comparisons]
    assert agree(comparisons, TOLERANCE)


def test_other_tokens_may_not(predictor, pixels):
    exported = Exchanging(predictor.model)
    comparisons = compare(predictor.model, exported, [("a", pixels)], TOLERANCE)
    assert not any(c.apart for c in comparisons)
    assert not agree(comparisons, TOLERANCE)


def test_nothing_else_excuses_a_detection_that_is_apart(undecided, pixels):
    exported = Exchanging(undecided, says_so=False)
    comparisons = compare(undecided, exported, [("a", pixels)], TOLERANCE)
    assert any(c.apart for c in comparisons)
    assert not agree(comparisons, TOLERANCE)


def test_a_file_gives_its_ranking(request, predictor, pixels):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    onnx_file = request.getfixturevalue("onnx_file")
    (result,) = load_onnx(onnx_file, ranking=NAME)([{"image": pixels}])
    assert torch.equal(result["ranking"][None], own_ranking(predictor.model, pixels))
    assert "ranking" not in load_onnx(onnx_file)([{"image": pixels}])[0]
