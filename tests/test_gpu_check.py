"""`make gpu-check` without a GPU: it says so, and its checks run on the CPU and can fail."""

import os
import re
import subprocess
import sys
import warnings

import pytest
import torch

from benchmarks import gpu_check
from benchmarks.gpu_checks import attention, engine, golden, host, speed, training
from benchmarks.gpu_checks.common import Skip, with_triton
from tests.builders import golden_tiny_model

CPU = torch.device("cpu")


def result_of(check):
    (result,) = gpu_check.run_all({"a check": check}, CPU)
    return result


def failing(device):
    raise AssertionError("one line\nand another")


def skipping(device):
    raise Skip("no second card")


def test_without_a_gpu_it_says_so_and_exits_with_2(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_check.py"])
    assert gpu_check.main() == 2
    assert "no GPU" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("check", "exit_code", "line"),
    [
        (failing, 1, "FAIL .* AssertionError: one line\n"),
        (skipping, 0, "skip .* no second card\n"),
        (lambda device: f"seen on {device}", 0, "pass .* seen on cpu\n"),
    ],
)
def test_a_failure_decides_the_exit_code_and_stops_nothing(
    monkeypatch, capsys, check, exit_code, line
):
    monkeypatch.setattr(gpu_check, "QUICK", {"first": check, "second": lambda device: "ran"})
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--device", "cpu", "--quick"])
    assert gpu_check.main() == exit_code
    table = capsys.readouterr().out
    assert re.search("first +" + line, table)
    assert re.search("second +pass .* ran\n", table)


@pytest.mark.parametrize(
    "check",
    [
        golden.golden_evaluation,
        golden.golden_attention,
        golden.golden_criterion,
        training.deterministic_step,
        host.no_sync_in_the_forward_pass,
        pytest.param(engine.exact_resume, marks=pytest.mark.slow),
    ],
)
def test_passes_on_the_cpu(check):
    assert result_of(check).status == "pass"


def test_golden_numbers_of_another_model_fail(monkeypatch):
    def other_model(**overrides):
        model = golden_tiny_model(**overrides)
        model.transformer.encoder.layers[1].norms[0].weight.data.mul_(1.001)
        return model

    monkeypatch.setattr(golden, "golden_tiny_model", other_model)
    assert "f32: off by" in result_of(golden.golden_evaluation).detail


def test_gradients_that_differ_from_run_to_run_fail(monkeypatch):
    scales = iter([1.0, 1.0 + 1e-6])

    def other_each_time(**overrides):
        model, scale = golden_tiny_model(**overrides), next(scales)
        model.neck.register_forward_hook(lambda module, args, out: [x * scale for x in out])
        return model

    monkeypatch.setattr(training, "golden_tiny_model", other_each_time)
    assert result_of(training.deterministic_step).status == "FAIL"
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_number_read_in_the_forward_pass_fails(monkeypatch):
    def reading_model(**overrides):
        model = golden_tiny_model(**overrides)
        model.neck.register_forward_hook(lambda module, args, out: out[0].sum().item() and None)
        return model

    monkeypatch.setattr(host, "golden_tiny_model", reading_model)
    assert result_of(host.no_sync_in_the_forward_pass).status == "FAIL"


def test_counts_the_waits_of_a_module(monkeypatch):
    modes = ["error"]
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    class Waits(torch.nn.Module):
        def forward(self, times):
            assert modes[-1] == "warn"
            for _ in range(times):
                warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
            warnings.warn("something else", stacklevel=1)
            return times

    module, counts = Waits(), []
    with host.counted_syncs(module, counts):
        assert [module(2), module(0)] == [2, 0]
    assert counts == [2, 0]
    assert modes[-1] == "error"
    assert module.forward.__func__ is Waits.forward


def test_the_audit_ends_with_the_named_method(monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    class Model(torch.nn.Module):
        def inference(self, x):
            return x + 1

        def forward(self, x):
            return self.inference(x), list(modes)

    model = Model()
    with host.until_called(model, "inference"):
        assert model(1) == (2, ["default"])
    assert model(1) == (2, ["default"])
    assert modes == ["default"]  # no longer watched


def test_compulsory_bytes_by_hand():
    value, out = torch.zeros(2, 10, 3, 4, dtype=torch.float16), 2 * 5 * 12 * 2
    inputs = [value, torch.zeros(2, 5, 3, 1, 2, 2), torch.zeros(2, 5, 3, 1, 2)]
    read = 2 * 10 * 12 * 2 + (2 * 5 * 3 * 2) * 3 * 4
    assert attention.compulsory_bytes(inputs, None) == read + out
    assert attention.compulsory_bytes(inputs, torch.zeros(1)) == 3 * read + 2 * out


@pytest.mark.parametrize(
    ("exit_code", "status", "detail"),
    [(0, "pass", "some work 2.3x"), (1, "FAIL", "CalledProcessError")],
)
def test_a_benchmark_says_how_fast_ours_is_and_fails_with_its_numbers(
    tmp_path, monkeypatch, exit_code, status, detail
):
    figures = [
        {"work": "some work", "candidate": "baseline", "times_faster_than_baseline": 1.0},
        {"work": "some work", "candidate": "aligndetr", "times_faster_than_baseline": 2.28},
        {"work": "some work", "candidate": "aligndetr", "times_faster_than_transformers": 9.0},
        {"work": "memory", "gib": 1.0},
    ]
    program = f"""
import json, pathlib, sys
*options, path = sys.argv[1:]
assert options == ["--quick", "--device", "cpu", "--json"], options
pathlib.Path(path).write_text(json.dumps({{"figures": {figures}}}))
sys.exit({exit_code})
"""
    (tmp_path / "criterion.py").write_text(program)
    monkeypatch.setattr(speed, "BENCHMARKS", tmp_path)
    result = result_of(speed.criterion_benchmark)
    assert result.status == status
    assert result.detail.startswith(detail)


def test_triton_in_a_model_needs_a_gpu():
    assert result_of(with_triton(golden.golden_evaluation)).status == "skip"


@pytest.mark.slow
def test_everything_that_can_run_on_the_cpu_passes():
    result = subprocess.run(
        [sys.executable, gpu_check.__file__, "--device", "cpu"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    table = result.stdout.split("CPU, torch")[1].splitlines()[1:]
    assert len(table) == len(gpu_check.QUICK | gpu_check.THOROUGH)
    assert all("  pass  " in line for line in table if "interpreted" not in line), result.stdout
