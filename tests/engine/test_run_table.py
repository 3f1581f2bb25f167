"""The table at the start of a run."""

from types import SimpleNamespace

import torch
from detectron2.config import LazyCall as L

from aligndetr.engine.run_table import run_table
from tests.engine.stand_in import StandIn, stand_in_config, three_batches


def rows(table):
    cells = [line.split("│")[1:-1] for line in table.splitlines() if "│" in line]
    return {name.strip(): value.strip() for name, value in cells}


def test_says_what_is_trained_on_what_and_for_how_long():
    cfg = stand_in_config("some/folder", max_iter=90_000, grad_accum_steps=2)
    cfg.train.checkpointer.period = 0
    cfg.dataloader.test.dataset = L(three_batches)()
    model = StandIn()
    model.head.requires_grad_(False)
    table = rows(run_table(cfg, model, SimpleNamespace(dataset=range(12_345))))
    assert table["model"] == "StandIn, 117 parameters, 0.000446 MiB"
    assert table["parameters"] == "112 trained, 5 frozen"
    assert table["train data"] == "12,345 images"
    assert table["test data"] == "3 images"
    assert table["batch"] == "8 images = 1 processes x 4 x 2 accumulated"
    assert table["schedule"] == "90,000 iterations = 58.3 epochs"  # 90000 * 8 / 12345
    assert table["evaluation every"] == "4 iterations = 0.00259 epochs"
    assert table["checkpoint every"] == "end of training only"
    assert table["precision"] == "float32"
    assert table["devices"] == f"1 x cpu, {torch.get_num_threads()} threads each"
    assert table["output"] == "some/folder"


def test_a_loader_without_a_size_leaves_epochs_out():
    table = rows(run_table(stand_in_config("x"), StandIn(), iter([])))
    assert table["train data"] == table["test data"] == "unknown"
    assert table["schedule"] == "8 iterations"
