"""What is timed, how often, and what is made of the times."""

import json

import pytest
import torch
from torch import nn

from aligndetr.profiling import Latency, LatencyReport, measure_latency
from aligndetr.profiling import latency as module


class Found:
    def to(self, device):
        assert device == "cpu"
        return self


class Detector(nn.Module):
    """Notes its batches, and takes as long as the clock says."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 2))
        self.seen = []

    def forward(self, batch):
        dtype = (self.weight @ self.weight).dtype
        self.seen.append((len(batch), tuple(batch[0]["image"].shape), dtype))
        assert not self.training
        assert torch.is_inference_mode_enabled()
        return [{"instances": Found()} for _ in batch]


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_calls_are_counted_after_the_warm_up(precision, dtype):
    model = Detector().train()
    found = measure_latency(model, 3, 40, 50, precision, repeats=5, warm_up=2)
    assert model.seen == [(3, (3, 40, 50), dtype)] * 7
    assert found.repeats == 5


def test_times_are_those_of_the_calls(monkeypatch):
    # Start and end of five calls; the first is a warm-up and takes 9 s.
    times = iter([0, 9, 10, 11, 20, 22, 30, 33, 40, 44])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(times))
    found = measure_latency(Detector(), 2, 8, 8, repeats=4, warm_up=1)
    assert found.mean == 2500  # of 1, 2, 3 and 4 s
    assert found.p50 == 2500
    assert found.p90 == pytest.approx(3700)  # 3 s + 0.7 of the way to 4 s
    assert found.p99 == pytest.approx(3970)
    assert found.images_per_second == pytest.approx(2 / 2.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "`batch_size` \\(=0\\)"),
        ({"height": 0}, "`height` \\(=0\\)"),
        ({"repeats": 0}, "`repeats` \\(=0\\)"),
        ({"warm_up": -1}, "`warm_up` \\(=-1\\)"),
        ({"precision": "fp64"}, "'fp64'; choose one of \\['fp32', 'bf16'\\]"),
    ],
)
def test_what_cannot_be_measured_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        measure_latency(Detector(), **({"batch_size": 1, "height": 8, "width": 8} | change))


def test_the_report_says_the_same_in_print_and_in_json(tmp_path):
    report = LatencyReport(torch.device("cpu"))
    machine, head, rule = report.heading()
    assert "device cpu" in machine
    row = report.row(Latency.of_times([0.1, 0.1], 2, 320, 480, "bf16"))
    assert [cell.strip() for cell in row.split("|")[1:-1]] == [
        *("bf16", "320x480", "2", "100.00", "100.00", "100.00", "100.00", "20.00"),
    ]
    full = report.out_of_memory(64, 320, 480, "fp32")
    assert head.count("|") == rule.count("|") == row.count("|") == full.count("|")
    report.save(tmp_path / "figures.json")
    content = json.loads((tmp_path / "figures.json").read_text())
    (figure,) = content["latencies"]
    assert (figure["batch_size"], figure["height"], figure["p50"]) == (2, 320, 100.0)
    assert content["machine"]["torch"] == torch.__version__
