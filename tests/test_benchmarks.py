"""The plain baselines of `benchmarks/` compute what the library computes, on the same weights."""

import copy
import json
import re
from pathlib import Path

import pytest
import torch

import benchmarks.baselines.model
import benchmarks.engine
import benchmarks.timing
from aligndetr.layers import multi_scale_deformable_attn_pytorch
from benchmarks.baselines.ms_deform_attn import ms_deform_attn_baseline
from benchmarks.criterion import r50_criterion, verify
from benchmarks.model import verify_model
from benchmarks.ms_deform_attn import random_inputs
from benchmarks.timing import Report, interleave
from tests.builders import golden_tiny_batch, golden_tiny_model


@pytest.mark.parametrize("objects", [1, 7, 24])
def test_criterion_equals_the_baseline(objects):
    verify(r50_criterion(), objects, queries=60)  # with 24, not every object can have two queries


def test_a_criterion_that_differs_is_refused(monkeypatch):
    monkeypatch.setattr("benchmarks.baselines.criterion.EPS", 1e-3)
    with pytest.raises(AssertionError, match="loss_"):
        verify(r50_criterion(), objects=7, queries=60)


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_model_equals_the_baseline(noise):
    model = golden_tiny_model(label_noise_ratio=noise, box_noise_scale=noise)
    verify_model(model, golden_tiny_batch())


def test_without_denoising_model_and_baseline_have_the_same_losses():
    model = golden_tiny_model(dn_number=0).double().train()
    baseline = benchmarks.baselines.model.BaselineAlignDETR(copy.deepcopy(model)).train()
    losses, expected = model(golden_tiny_batch()), baseline(golden_tiny_batch())
    assert {"loss_class", "loss_giou_enc"} <= expected.keys()
    for name, loss in losses.items():
        if "_dn" in name:
            assert loss == 0
            assert name not in expected
        else:
            torch.testing.assert_close(loss, expected[name], rtol=1e-6, atol=1e-9)


def test_a_model_that_differs_is_refused(monkeypatch):
    plain = benchmarks.baselines.model._sine
    monkeypatch.setattr("benchmarks.baselines.model._sine", lambda *args: plain(*args) * 1.001)
    with pytest.raises(AssertionError, match="differs"):
        verify_model(golden_tiny_model(), golden_tiny_batch())


def test_steps_of_the_engine_equal_a_plain_loop():
    benchmarks.engine.verify()


def test_an_engine_that_differs_is_refused(monkeypatch):
    monkeypatch.setattr("aligndetr.engine.trainer.clip_gradients", lambda *_: None)
    with pytest.raises(AssertionError, match="plain loop"):
        benchmarks.engine.verify()


def test_the_engine_is_what_is_left_of_an_iteration(monkeypatch):
    now = iter([0.0, 1.0, 1.0, 5.0, 5.5, 8.0, 8.0, 9.0])  # forward and optimizer, twice
    monkeypatch.setattr("benchmarks.engine.time.perf_counter", lambda: next(now))
    clock = benchmarks.engine.Clock()
    forward = clock.watched(lambda: None, "forward")
    optimizer = clock.watched(lambda: None, "optimizer", ends_iteration=True)
    for function in (forward, optimizer, forward, optimizer):
        function()
    [counted] = clock.iterations  # from 5.0 to 9.0, of which 0.5 are nobody's
    assert counted == {
        "forward": 2.5, "backward": 0, "optimizer": 1.0, "data": 0, "engine": 0.5, "step": 4.0
    }  # fmt: skip


def test_a_benchmark_written_as_its_readme_says_runs(tmp_path, monkeypatch, capsys):
    page = Path(benchmarks.engine.__file__).with_name("README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, re.S)
    shared = vars(benchmarks.timing)
    names = {name: shared[name] for name in ("command_line", "interleave", "Report")}
    names |= {"torch": torch, "plain": lambda: None, "fast": lambda: None, "__doc__": "A try."}
    exec(block, names)
    monkeypatch.setattr("sys.argv", ["try.py", "--json", str(tmp_path / "figures.json")])
    names["main"]()
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))["figures"]
    assert [figure.get("candidate") for figure in figures] == ["baseline", "aligndetr", None]
    assert "images per s 41.5" in capsys.readouterr().out


def test_attention_equals_the_reference_with_shapes_as_tensor():
    shapes = [(11, 13), (5, 7), (3, 4), (2, 2)]
    value, locations, weights = random_inputs(shapes, 2, 77, torch.float64, "cpu")
    for given in (shapes, torch.tensor(shapes)):
        torch.testing.assert_close(
            ms_deform_attn_baseline(value, given, locations, weights),
            multi_scale_deformable_attn_pytorch(value, shapes, locations, weights),
        )


def test_candidates_run_in_turn_and_the_first_turn_is_not_counted():
    order = []
    runs = {name: lambda name=name: order.append(name) for name in ("baseline", "ours")}
    seconds = interleave(runs, repeats=2)
    assert order == ["baseline", "ours"] * 3
    assert {name: len(times) for name, times in seconds.items()} == {"baseline": 2, "ours": 2}


def test_ratio_is_that_of_each_turn(tmp_path, capsys):
    report = Report(threads=1)
    report.compare("work", {"baseline": [4.0, 9.0, 2.0], "ours": [2.0, 3.0, 2.0]})
    report.save(str(tmp_path / "new" / "figures.json"))
    ours = json.loads((tmp_path / "new" / "figures.json").read_text())["figures"][1]
    assert (ours["times_faster_than_baseline"], ours["lowest"], ours["highest"]) == (2.0, 1.0, 3.0)
    assert "2.00x (1.00 to 3.00)" in capsys.readouterr().out
