"""The whole model against the reference implementation: outputs, losses, gradients, training."""

import pytest
import torch

from aligndetr.layers.ms_deform_attn import functional
from tests.builders import golden, golden_json, golden_tiny_batch, golden_tiny_model, tensor

DTYPES = {"f32": torch.float32, "f64": torch.float64}


@pytest.fixture
def outputs():
    return golden("tiny32_outputs")


@pytest.fixture(params=["reference", "embedding_bag", "deterministic", "cpp"])
def every_attention(request, monkeypatch):
    """Each implementation of deformable attention that runs on a CPU."""
    obstacle = functional.BACKENDS[request.param].obstacle(torch.device("cpu"))
    if obstacle:
        pytest.skip(f"{request.param} {obstacle}")
    monkeypatch.setattr(functional, "choose_backend", lambda *_: request.param)


def watch_calls(monkeypatch, owner, name, kept):
    """Append the (arguments, result) of each call of owner.name to `kept`."""
    original = getattr(owner, name)

    def watched(*args, **kwargs):
        result = original(*args, **kwargs)
        kept.append((args, result))
        return result

    monkeypatch.setattr(owner, name, watched)


@pytest.mark.parametrize("precision", ["f32", "f64"])
@pytest.mark.parametrize("image", [0, 1])
@pytest.mark.usefixtures("every_attention")
def test_evaluation_of_one_image(outputs, monkeypatch, image, precision):
    model = golden_tiny_model().to(DTYPES[precision]).eval()
    calls = []
    watch_calls(monkeypatch, model, "inference", calls)
    with torch.no_grad():
        (result,) = model([golden_tiny_batch()[image]])
    (((logits, boxes, _), _),) = calls
    want = f"eval/img{image}/{precision}/"
    assert logits.dtype == boxes.dtype == DTYPES[precision]
    close = {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(logits, tensor(outputs[want + "pred_logits"]), **close)
    torch.testing.assert_close(boxes, tensor(outputs[want + "pred_boxes"]), **close)

    instances = result["instances"]
    want += "inst0/"
    assert list(instances.image_size) == outputs[want + "image_size"].tolist()
    torch.testing.assert_close(instances.scores, tensor(outputs[want + "scores"]), **close)
    assert instances.pred_classes.tolist() == outputs[want + "pred_classes"].tolist()
    torch.testing.assert_close(  # in pixels of an image of 150 to 320 pixels
        instances.pred_boxes.tensor, tensor(outputs[want + "pred_boxes"]), rtol=1e-5, atol=1e-3
    )


@pytest.mark.parametrize("image", [0, 1])
def test_every_stage_of_evaluation(outputs, monkeypatch, image):
    model = golden_tiny_model().eval()
    backbone, transformer, encoder, neck = [], [], [], []
    for owner, kept in (
        (model.backbone, backbone),
        (model.neck, neck),
        (model.transformer.encoder, encoder),
        (model.transformer, transformer),
    ):
        watch_calls(monkeypatch, owner, "forward", kept)
    with torch.no_grad():
        model([golden_tiny_batch()[image]])
    want = {
        name.split("f32/")[1]: tensor(array)
        for name, array in outputs.items()
        if name.startswith(f"eval/img{image}/f32/")
    }
    names = ("inter_states", "init_reference", "inter_references", "enc_state", "enc_reference")
    got = dict(zip(names, transformer[0][1], strict=True))
    # The reference refines after its last layer too, which nothing reads.
    want["inter_references"] = want["inter_references"][:-1]
    got["encoder_memory"] = encoder[0][1]
    got |= {f"backbone/{name}": feature for name, feature in backbone[0][1].items()}
    got |= {f"neck/{level}": feature for level, feature in enumerate(neck[0][1])}
    compared = set(got) & set(want)
    assert {"init_reference", "inter_references", "enc_state", "encoder_memory"} <= compared
    for name in compared:
        torch.testing.assert_close(
            got[name], want[name], rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}"
        )


def test_two_sizes_in_one_batch_evaluate_as_alone():
    model = golden_tiny_model().eval()
    batch = golden_tiny_batch()
    with torch.no_grad():
        together = model(batch)
        for x, result in zip(batch, together, strict=True):
            (alone,) = model([x])
            assert len(alone["instances"]) == len(result["instances"]) > 0
            torch.testing.assert_close(
                result["instances"].pred_boxes.tensor,
                alone["instances"].pred_boxes.tensor,
                rtol=0,
                atol=1e-4,
            )


@pytest.mark.parametrize("precision", ["f32", "f64"])
@pytest.mark.parametrize(("case", "dn_number"), [("train", 10), ("train_nodn", 0)])
@pytest.mark.usefixtures("every_attention")
def test_training_losses_and_gradients(outputs, case, dn_number, precision):
    model = golden_tiny_model(dn_number=dn_number).to(DTYPES[precision]).train()
    losses = model(golden_tiny_batch())
    prefix = f"{case}/{precision}/loss/"
    want = {n.removeprefix(prefix): tensor(a) for n, a in outputs.items() if n.startswith(prefix)}
    assert set(losses) == set(want)
    for name, loss in losses.items():
        assert loss.dim() == 0, name
        torch.testing.assert_close(
            loss.double(),
            want[name].double().reshape(()),
            rtol=5e-6,
            atol=1e-7,
            msg=lambda m, name=name: f"{name}: {m}",
        )
    sum(losses.values()).backward()
    norms = golden_json("tiny32_meta")[f"{case}/{precision}/grad_norms"]
    named = dict(model.named_parameters())
    assert set(norms) == {name for name, p in named.items() if p.grad is not None}
    scale = max(norms.values())
    for name, norm in norms.items():
        got = named[name].grad.norm().item()
        assert got == pytest.approx(norm, rel=1e-4, abs=1e-7 * scale), name


@pytest.mark.parametrize(
    ("precision", "loss_error", "norm_error"),
    # A sampling point within rounding of a pixel's centre line may fall to either side, where
    # the slope differs: in float32 a gradient norm is only as sure as that.
    [("f32", 1e-5, 1e-3), ("f64", 1e-7, 1e-6)],
)
def test_twenty_steps_of_training_follow_the_reference(
    outputs, monkeypatch, precision, loss_error, norm_error
):
    golden_run = golden_json("tiny32_trajectory")
    model = golden_tiny_model().to(DTYPES[precision]).train()
    parameters = dict(model.named_parameters())
    groups = [
        group | {"params": [parameters[name] for name in group["params"]]}
        for group in golden_run["param_groups"]
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8)
    batch = golden_tiny_batch()
    steps = golden_run[precision]
    assert len(steps["total"]) == 20
    for step in range(20):
        total = sum(model(batch).values())
        assert total.item() == pytest.approx(steps["total"][step], rel=loss_error), step
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1).item()
        assert norm == pytest.approx(steps["grad_norm_before_clip"][step], rel=norm_error), step
        optimizer.step()

    calls = []
    watch_calls(monkeypatch, model, "inference", calls)
    with torch.no_grad():
        model.eval()(batch[:1])
    (((logits, boxes, _), _),) = calls
    for name, got in (("pred_logits", logits), ("pred_boxes", boxes)):
        want = tensor(outputs[f"traj/{precision}/after20_img0_{name}"])
        torch.testing.assert_close(got, want, rtol=0, atol=1e-3 if precision == "f32" else 1e-6)
