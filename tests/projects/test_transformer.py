"""Shapes and gradient paths of the two-stage transformer."""

import pytest
import torch
from torch import nn

from aligndetr.layers import MLP
from projects.aligndetr.modeling import Transformer, TransformerDecoder, TransformerEncoder

B, C, Q, N, K = 2, 24, 7, 3, 5
SHAPES = [(11, 13), (5, 7), (3, 4), (2, 2)]
S = sum(h * w for h, w in SHAPES)


def make_transformer(look_forward_twice=True, **kwargs):
    torch.manual_seed(0)
    layers = {"embed_dim": C, "num_heads": 3, "feedforward_dim": 10}
    layers |= {"attn_dropout": 0.0, "ffn_dropout": 0.0}
    transformer = Transformer(
        TransformerEncoder(**layers, num_layers=2),
        TransformerDecoder(**layers, num_layers=N, look_forward_twice=look_forward_twice),
        two_stage_num_proposals=Q,
        **kwargs,
    )
    transformer.decoder.class_embed = nn.ModuleList(nn.Linear(C, K) for _ in range(N + 1))
    transformer.decoder.bbox_embed = nn.ModuleList(MLP(C, C, 4, 3) for _ in range(N + 1))
    return transformer


def inputs():
    generator = torch.Generator().manual_seed(1)
    feats = [torch.randn(B, C, h, w, generator=generator) for h, w in SHAPES]
    masks = [torch.zeros(B, h, w, dtype=torch.bool) for h, w in SHAPES]
    return feats, masks, [torch.randn(f.shape, generator=generator) for f in feats]


def test_outputs_without_denoising():
    states, init, references, enc_state, enc_reference = make_transformer()(
        *inputs(), (None, None), attn_masks=[None, None]
    )
    assert states.shape == (N, B, Q, C)
    assert init.shape == (B, Q, 4)
    assert references.shape == (N - 1, B, Q, 4)
    assert enc_state.shape == (B, Q, C)
    assert enc_reference.shape == (B, Q, 4)
    assert torch.equal(init, enc_reference)
    for boxes in (init, references):
        assert ((boxes >= 0) & (boxes <= 1)).all()


def test_denoising_queries_come_first_and_do_not_touch_the_others():
    transformer = make_transformer().eval()
    num_denoising = 6
    content, box_logits = torch.randn(B, num_denoising, C), torch.randn(B, num_denoising, 4)
    mask = torch.zeros(num_denoising + Q, num_denoising + Q, dtype=torch.bool)
    mask[num_denoising:, :num_denoising] = True
    alone = transformer(*inputs(), (None, None), attn_masks=[None, None])
    together = transformer(*inputs(), (content, box_logits), attn_masks=[mask, None])
    torch.testing.assert_close(together[1][:, :num_denoising], box_logits.sigmoid())
    for index in (0, 2):
        torch.testing.assert_close(together[index][:, :, num_denoising:], alone[index])


def test_proposals_are_the_tokens_of_highest_score():
    transformer = make_transformer()
    memory = torch.randn(B, S, C)
    padding = torch.zeros(B, S, dtype=torch.bool)
    output_memory, proposals = transformer.gen_encoder_output_proposals(memory, padding, SHAPES)
    assert output_memory.shape == (B, S, C)
    assert proposals.shape == (B, S, 4)
    scores = transformer.decoder.class_embed[-1](output_memory).amax(-1)
    expected = output_memory.gather(1, scores.topk(Q).indices[..., None].expand(-1, -1, C))

    transformer.encoder.register_forward_hook(lambda *_: memory)
    _, _, _, enc_state, _ = transformer(*inputs(), (None, None), attn_masks=None)
    torch.testing.assert_close(enc_state, expected)


def gradient_of_first_box_head(look_forward_twice):
    """Gradient that the boxes after layer 1 (refined from those after layer 0) send to head 0."""
    transformer = make_transformer(look_forward_twice)
    _, _, references, _, _ = transformer(*inputs(), (None, None), attn_masks=None)
    references[0].sum().backward()
    return transformer.decoder.bbox_embed[0].layers[-1].bias.grad


def test_look_forward_twice_lets_the_gradient_through_a_refinement():
    assert gradient_of_first_box_head(look_forward_twice=True).abs().sum() > 0
    with pytest.raises(RuntimeError, match="does not require grad"):
        gradient_of_first_box_head(look_forward_twice=False)


def test_a_layer_starts_from_detached_boxes():
    transformer = make_transformer()
    _, _, references, _, _ = transformer(*inputs(), (None, None), attn_masks=None)
    references[1].sum().backward()
    assert (transformer.decoder.bbox_embed[0].layers[-1].bias.grad == 0).all()


def test_the_last_layer_refines_no_boxes_that_nothing_reads():
    transformer = make_transformer()
    refining = []
    for index, head in enumerate(transformer.decoder.bbox_embed[:N]):
        head.register_forward_hook(lambda *_, index=index: refining.append(index))
    transformer(*inputs(), (None, None), attn_masks=None)
    assert refining == list(range(N - 1))


def test_queries_from_the_proposals_instead_of_learnt_ones():
    transformer = make_transformer(learnt_init_query=False)
    assert not hasattr(transformer, "tgt_embed")
    started_with = {}
    transformer.decoder.register_forward_pre_hook(
        lambda _module, _args, kwargs: started_with.update(kwargs), with_kwargs=True
    )
    *_, enc_state, _ = transformer(*inputs(), (None, None), attn_masks=None)
    assert torch.equal(started_with["query"], enc_state)
    assert not started_with["query"].requires_grad


def test_spatial_shapes_may_be_a_tensor_as_in_detrex():
    transformer = make_transformer()
    ratios = torch.rand(B, 4, 2) * 0.5 + 0.5
    got = transformer.get_reference_points(torch.tensor(SHAPES), ratios, device=ratios.device)
    assert got.shape == (B, S, 4, 2)
    assert torch.equal(got, transformer.get_reference_points(SHAPES, ratios, ratios.device))
    memory, padding = torch.randn(B, S, C), torch.zeros(B, S, dtype=torch.bool)
    _, proposals = transformer.gen_encoder_output_proposals(memory, padding, torch.tensor(SHAPES))
    assert proposals.shape == (B, S, 4)


def test_valid_ratio_is_x_before_y():
    mask = torch.ones(1, 4, 10, dtype=torch.bool)
    mask[:, :1, :5] = False
    assert Transformer.get_valid_ratio(mask).tolist() == [[0.5, 0.25]]


def test_decoder_must_return_every_layer():
    with pytest.raises(ValueError, match="return_intermediate` \\(=False\\)"):
        TransformerDecoder(return_intermediate=False)


def test_widths_and_levels_that_do_not_fit_are_named():
    with pytest.raises(
        ValueError, match=r"encoder\.embed_dim` \(=24\) must equal .*decoder\.embed_dim` \(=12\)"
    ):
        Transformer(TransformerEncoder(24, 3), TransformerDecoder(12, 3))
    with pytest.raises(ValueError, match=r"num_feature_levels` \(=6\) must be at most 5"):
        make_transformer(num_feature_levels=6)
