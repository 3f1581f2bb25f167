"""Attention with contents and positions apart: worked by hand, and against its definition."""

import math

import pytest
import torch
from torch import nn

from aligndetr.layers import ConditionalCrossAttention, ConditionalSelfAttention

B, Q, N, M, D = 2, 5, 7, 3, 4
LN3 = math.log(3)


def transparent(module):
    """All projections are the identity."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.eye_(part.weight)
            nn.init.zeros_(part.bias)
    return module


def rows(*values):
    return torch.tensor([values])


def test_cross_attention_by_hand():
    """One head of two features: products are divided by sqrt(2 * 2). Values show the weights."""
    module = transparent(ConditionalCrossAttention(2, 1, add_positions=False))
    nothing, keys = rows([0.0, 0.0]), rows([1.0, 0.0], [0.0, 1.0])
    memory = {"key": torch.zeros(1, 2, 2), "value": keys, "key_pos": keys}
    # Of the positions alone: (2 ln 3) / 2 and 0, so weights 3 : 1.
    out = module(nothing, **memory, query_sine_embed=rows([2 * LN3, 0.0]))
    torch.testing.assert_close(out, rows([0.75, 0.25]))
    # Contents count as much: ln 3 + ln 3, so 9 : 1. The residual is the query.
    memory["key"] = keys
    out = module(rows([2 * LN3, 0.0]), **memory, query_sine_embed=rows([2 * LN3, 0.0]))
    torch.testing.assert_close(out, rows([0.9 + 2 * LN3, 0.1]))


def test_added_positions_by_hand():
    """They make contents of an empty query and an empty key: 2 ln 3 once more, over 2."""
    module = transparent(ConditionalCrossAttention(2, 1, add_positions=True))
    keys, query = rows([1.0, 0.0], [0.0, 1.0]), rows([2 * LN3, 0.0])
    memory = {"key": torch.zeros(1, 2, 2), "value": keys, "key_pos": keys}
    out = module(torch.zeros(1, 1, 2), **memory, query_pos=query, query_sine_embed=query)
    torch.testing.assert_close(out, rows([0.9, 0.1]))


def test_self_attention_by_hand():
    """Contents and positions are added, and products divided by sqrt(1)."""
    module = transparent(ConditionalSelfAttention(1, 1))
    values = rows([1.0], [0.0])
    out = module(
        rows([0.5]), values, values, query_pos=rows([0.5 * LN3]), key_pos=rows([0.0], [-1.0])
    )
    logits = (0.5 + 0.5 * LN3) * torch.tensor([1.0, -1.0])
    torch.testing.assert_close(out, 0.5 + logits.softmax(0)[0].view(1, 1, 1))


def random_inputs():
    torch.manual_seed(0)
    names = {"query": Q, "query_pos": Q, "query_sine_embed": Q, "key": N, "key_pos": N, "value": N}
    return {name: torch.randn(B, count, M * D) for name, count in names.items()}


def by_definition(module, x):
    def heads(projection, name):
        return projection(x[name]).view(B, -1, M, D)

    content = heads(module.query_content_proj, "query")
    key_content = heads(module.key_content_proj, "key")
    position = heads(module.query_pos_sine_proj, "query_sine_embed")
    key_position = heads(module.key_pos_proj, "key_pos")
    if module.query_pos_proj is not None:
        content = content + heads(module.query_pos_proj, "query_pos")
        key_content = key_content + key_position
    logits = torch.einsum("bqmd,bnmd->bmqn", content, key_content)
    logits = logits + torch.einsum("bqmd,bnmd->bmqn", position, key_position)
    weights = (logits / math.sqrt(2 * D)).softmax(-1)
    out = torch.einsum("bmqn,bnmd->bqmd", weights, heads(module.value_proj, "value"))
    return x["query"] + module.out_proj(out.flatten(2))


@pytest.mark.parametrize("add_positions", [True, False])
def test_cross_attention_is_its_definition(add_positions):
    x = random_inputs()
    module = ConditionalCrossAttention(M * D, M, add_positions=add_positions)
    torch.testing.assert_close(module(**x), by_definition(module, x))


@pytest.mark.parametrize("kind", [ConditionalSelfAttention, ConditionalCrossAttention])
def test_what_a_mask_blocks_is_not_seen(kind):
    x = random_inputs()
    if kind is ConditionalSelfAttention:
        del x["query_sine_embed"]
    module = kind(M * D, M)
    padding = torch.zeros(B, N, dtype=torch.bool)
    padding[1, 4:] = True
    blocked = torch.zeros(Q, N, dtype=torch.bool)
    blocked[2, 1] = True
    masks = {"key_padding_mask": padding, "attn_mask": blocked}
    before = module(**x, **masks)
    for name in ("key", "key_pos", "value"):
        x[name][padding] += 10.0
    torch.testing.assert_close(module(**x, **masks), before)
    for name in ("key", "key_pos", "value"):
        x[name][:, 1] += 10.0
    after = module(**x, **masks)
    torch.testing.assert_close(after[:, 2], before[:, 2])
    assert not torch.isclose(after[:, 0], before[:, 0]).any()
    assert not torch.equal(module(**x), module(**x, attn_mask=blocked))


def test_identity_takes_the_place_of_the_query_as_residual():
    x = random_inputs()
    module = ConditionalCrossAttention(M * D, M)
    identity = torch.randn(B, Q, M * D)
    torch.testing.assert_close(module(**x, identity=identity), module(**x) - x["query"] + identity)


def test_heads_must_divide_the_features():
    with pytest.raises(ValueError, match=r"`embed_dim` \(=10\) must be divisible by `num_heads`"):
        ConditionalSelfAttention(10, 4)
