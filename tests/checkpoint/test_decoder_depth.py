"""Weights of a decoder of another depth: each head goes to where its role is."""

import pytest
import torch

from aligndetr.checkpoint import load_weights
from tests.builders import tiny_model


def load(in_file, here):
    """State dicts of two models of so many layers, the second after it got the first's weights, and
    the report."""
    torch.manual_seed(0)
    source, model = tiny_model(decoder_layers=in_file), tiny_model(decoder_layers=here)
    report = load_weights(model, {"model": source.state_dict()}, "w.pth", strict=False)
    return source.state_dict(), model.state_dict(), report


def heads(state, index):
    return {
        name.replace(f"_embed.{index}.", "_embed."): tensor
        for name, tensor in state.items()
        if f"_embed.{index}." in name
    }


@pytest.mark.parametrize("here", [2, 4])
def test_the_proposals_get_the_head_that_has_learnt_to_rate_them(here):
    theirs, ours, _ = load(3, here)
    expected, got = heads(theirs, 3), heads(ours, here)
    # A class and a box head of 2 and 6 tensors, each under a second name in the decoder.
    assert len(got) == 16
    for name, tensor in expected.items():
        assert torch.equal(got[name], tensor), name


@pytest.mark.parametrize("here", [2, 4])
def test_layers_get_their_own_heads(here):
    theirs, ours, _ = load(3, here)
    for index in range(min(3, here)):
        for name, tensor in heads(theirs, index).items():
            assert torch.equal(heads(ours, index)[name], tensor), (index, name)


def test_heads_of_layers_that_the_model_lacks_are_said_to_be_left():
    theirs, _, report = load(3, 2)
    left = {name for name in report.unexpected if "_embed." in name}
    assert left == {name for name in theirs if "_embed.3." in name}


def test_heads_of_layers_that_the_file_lacks_start_anew():
    _, ours, report = load(3, 4)
    missing = {name for name in report.missing if name.startswith(("class_embed", "bbox_embed"))}
    assert missing == {name for name in ours if name.startswith(("class_embed.3", "bbox_embed.3"))}


def test_of_one_depth_nothing_moves():
    theirs, ours, report = load(3, 3)
    assert report.complete
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
