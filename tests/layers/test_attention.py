import pytest
import torch

from aligndetr.layers import MultiheadAttention

B, Q, N, C, M = 2, 5, 7, 12, 3


def plain_attention(module, query, key, value, blocked=None):
    """Scaled dot-product attention written out, with the module's weights."""
    weights = module.attn.in_proj_weight.chunk(3)
    biases = module.attn.in_proj_bias.chunk(3)
    q, k, v = (
        torch.nn.functional.linear(x, weight, bias).unflatten(-1, (M, C // M)).transpose(1, 2)
        for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
    )
    logits = q @ k.transpose(-1, -2) / (C // M) ** 0.5
    if blocked is not None:
        logits = logits.masked_fill(blocked, float("-inf"))
    return module.attn.out_proj((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))


@pytest.fixture
def module():
    torch.manual_seed(0)
    module = MultiheadAttention(C, M, batch_first=True)
    torch.nn.init.normal_(module.attn.in_proj_bias)
    torch.nn.init.normal_(module.attn.out_proj.bias)
    return module


def test_positions_reach_query_and_key_but_neither_value_nor_residual(module):
    query, query_pos = torch.randn(2, B, Q, C)
    key, value, key_pos = torch.randn(3, B, N, C)
    out = module(query, key, value, query_pos=query_pos, key_pos=key_pos)
    expected = query + plain_attention(module, query + query_pos, key + key_pos, value)
    torch.testing.assert_close(out, expected)


def test_self_attention_needs_the_query_alone(module):
    query, pos = torch.randn(2, B, Q, C)
    out = module(query, query_pos=pos)
    torch.testing.assert_close(
        out, query + plain_attention(module, query + pos, query + pos, query)
    )


def test_query_position_stays_off_a_key_of_another_length(module):
    query, pos = torch.randn(2, B, Q, C)
    key = torch.randn(B, N, C)
    torch.testing.assert_close(
        module(query, key, query_pos=pos), query + plain_attention(module, query + pos, key, key)
    )


def test_true_blocks_in_both_masks(module):
    query, key = torch.randn(B, Q, C), torch.randn(B, N, C)
    attn_mask = torch.rand(Q, N) < 0.4
    padding = torch.zeros(B, N, dtype=torch.bool)
    padding[1, -2:] = True
    attn_mask[:, 0] = False
    out = module(query, key, attn_mask=attn_mask, key_padding_mask=padding)
    blocked = attn_mask | padding[:, None, None]
    torch.testing.assert_close(out, query + plain_attention(module, query, key, key, blocked))


def test_identity_replaces_the_residual(module):
    query, identity = torch.randn(2, B, Q, C)
    torch.testing.assert_close(module(query, identity=identity) - identity, module(query) - query)


def test_batch_first_changes_the_layout_only(module):
    other = MultiheadAttention(C, M, batch_first=False)
    other.load_state_dict(module.state_dict())
    query, pos = torch.randn(2, B, Q, C)
    out = other(query.transpose(0, 1), query_pos=pos.transpose(0, 1))
    torch.testing.assert_close(out.transpose(0, 1), module(query, query_pos=pos))


def test_keys_are_those_of_released_weights(module):
    names = {"in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"}
    assert set(module.state_dict()) == {f"attn.{name}" for name in names}


def test_a_misspelt_keyword_is_refused(module):
    with pytest.raises(TypeError, match="atn_mask"):
        module(torch.randn(B, Q, C), atn_mask=None)
    with pytest.raises(TypeError, match="atn_drop"):
        MultiheadAttention(C, M, atn_drop=0.1)
