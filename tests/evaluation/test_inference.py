"""One evaluation: numbers, and the tables printed on the way."""

import logging
import math

import pytest
from torch import nn

from aligndetr.evaluation import evaluate


class Model(nn.Module):
    def forward(self, batch):
        assert not self.training
        return [{"instances": x["image_id"]} for x in batch]


class CountImages:
    def reset(self):
        self.seen = []

    def process(self, inputs, outputs):
        self.seen += [output["instances"] for output in outputs]

    def evaluate(self):
        return {"bbox": {"AP": 100 / 3 if self.seen == [1, 2, 3] else 0.0}}


BATCHES = [[{"image_id": 1}, {"image_id": 2}], [{"image_id": 3}]]


def test_every_image_is_evaluated_and_the_mode_restored():
    model = Model().train()
    assert evaluate(model, BATCHES, CountImages()) == {"bbox": {"AP": 100 / 3}}
    assert model.training


def test_single_class_has_a_table_too(caplog):
    with caplog.at_level(logging.INFO):
        results = evaluate(Model(), BATCHES, CountImages(), class_names=["tree"])
    assert results["bbox"]["AP-tree"] == 100 / 3
    assert "| tree       | 33.333 |" in caplog.text


def test_all_digits_are_logged(caplog):
    with caplog.at_level(logging.INFO):
        evaluate(Model(), BATCHES, CountImages())
    assert repr(100 / 3) in caplog.text


def test_what_has_no_value_is_null_in_the_log(caplog):
    class NoObjects(CountImages):
        def evaluate(self):
            return {"bbox": {"AP": 50.0, "APl": float("nan")}}

    with caplog.at_level(logging.INFO):
        results = evaluate(Model(), BATCHES, NoObjects())
    assert math.isnan(results["bbox"]["APl"])
    assert 'to every digit: {"bbox": {"AP": 50.0, "APl": null}}' in caplog.text


def test_other_ranks_have_no_results():
    class Elsewhere(CountImages):
        def evaluate(self):
            return None

    assert evaluate(Model(), BATCHES, Elsewhere()) == {}


def test_mode_is_restored_for_a_model_in_eval_mode():
    model = Model().eval()
    evaluate(model, BATCHES, CountImages())
    assert not model.training


@pytest.mark.parametrize("names", [(), ["tree", "car"]])
def test_nothing_is_added_for_other_numbers_of_classes(names):
    results = evaluate(Model(), BATCHES, CountImages(), class_names=names)
    assert set(results["bbox"]) == {"AP"}
