"""The evaluator of alignment, fed as an evaluation feeds it."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances

from aligndetr.config import check_targets
from aligndetr.evaluation import AlignmentEvaluator, evaluate
from tests.builders import random_batch, tiny_model
from tests.evaluation.worlds import make_world, model_outputs, ranks, register

ROOT = Path(__file__).resolve().parents[2]

# One image of 200 x 100 with two objects, and three queries of a layer that finds both: the first
# exactly, the second by IoU 0.5. Logit 0 is score 0.5.
CONTENT = {
    "images": [{"id": 4, "file_name": "4.jpg", "width": 200, "height": 100}],
    "annotations": [
        {"id": 1, "image_id": 4, "category_id": 3, "bbox": [0, 0, 100, 50]},
        {"id": 2, "image_id": 4, "category_id": 9, "bbox": [100, 50, 100, 50]},
    ],
    "categories": [{"id": 3, "name": "tree"}, {"id": 9, "name": "house"}],
}
INPUT = {"image_id": 4, "height": 100, "width": 200}
EXACT, HALF, NOTHING = [0.25, 0.25, 0.5, 0.5], [0.75, 0.875, 0.5, 0.25], [0.9, 0.1, 0.1, 0.1]
FINDS = {"pred_logits": [[0.0, -9], [-9, 2.0], [-9, -9]], "pred_boxes": [EXACT, HALF, NOTHING]}
# The same boxes, but the highest scores on the others.
LOSES = {"pred_logits": [[-8.0, -9], [-9, 0.0], [2, -9]], "pred_boxes": [EXACT, HALF, NOTHING]}


def output(**layers):
    stacked = {k: torch.tensor([layer[k] for layer in layers.values()]) for k in FINDS}
    return {"layers": {"names": list(layers), **stacked}}


def run(evaluator, *pairs):
    evaluator.reset()
    for image, found in pairs:
        evaluator.process([image], [found])
    return evaluator.evaluate()


@pytest.fixture
def name(tmp_path):
    return register(tmp_path, CONTENT)


def test_layers_are_measured_one_by_one(name, tmp_path):
    evaluator = AlignmentEvaluator(name, output_dir=str(tmp_path))
    last = run(evaluator, (INPUT, output(first=LOSES, second=FINDS)))["alignment"]
    assert list(evaluator.layers) == ["first", "second"]
    recalls = [row["best_regressed_recall_1"] for row in evaluator.summary["layers"]]
    assert recalls == [0.5, 1.0]
    assert last["best_regressed_recall_1"] == 1.0
    assert last["assigned_iou"] == pytest.approx((1 + 0.5) / 2)
    assert evaluator.layers["second"].object_scores.tolist() == pytest.approx(
        [0.5, torch.tensor(2.0).sigmoid().item()]
    )
    assert [row["name"] for row in evaluator.summary["classes"]] == ["tree", "house"]
    saved = json.loads((tmp_path / "alignment.json").read_text())
    assert saved["layers"][1]["assigned_iou"] == last["assigned_iou"]
    assert saved["layers"][1]["pearson"] is None  # of two pairs


def test_labels_in_another_order_than_the_categories(name):
    json_file = MetadataCatalog.get(name).json_file
    name += " with labels in another order"
    MetadataCatalog.get(name).set(
        json_file=json_file,
        thing_classes=["house", "tree"],
        thing_dataset_id_to_contiguous_id={9: 0, 3: 1},
    )
    swapped = FINDS | {"pred_logits": [row[::-1] for row in FINDS["pred_logits"]]}
    evaluator = AlignmentEvaluator(name)
    last = run(evaluator, (INPUT, output(only=swapped)))["alignment"]
    assert last["matched"] == 2
    assert [row["name"] for row in evaluator.summary["classes"]] == ["tree", "house"]


def test_a_data_set_of_which_the_json_alone_is_known(name):
    only_json = f"{name}, its json"
    MetadataCatalog.get(only_json).json_file = MetadataCatalog.get(name).json_file
    evaluator = AlignmentEvaluator(only_json)
    last = run(evaluator, (INPUT, output(only=FINDS)))["alignment"]
    assert last["assigned_iou"] == pytest.approx((1 + 0.5) / 2)
    assert [row["name"] for row in evaluator.summary["classes"]] == ["class 0", "class 1"]


def test_detections_take_the_place_of_layers(name):
    boxes = torch.tensor([[0.0, 0.0, 100.0, 50.0], [100.0, 75.0, 200.0, 100.0]])
    instances = Instances(
        (100, 200),
        pred_boxes=Boxes(boxes),
        scores=torch.tensor([0.5, 0.2]),
        pred_classes=torch.tensor([0, 1]),
    )
    evaluator = AlignmentEvaluator(name)
    last = run(evaluator, (INPUT, {"instances": instances}))["alignment"]
    assert list(evaluator.layers) == ["detections"]
    assert last["assigned_iou"] == pytest.approx(0.75)
    assert last["calibration_error"] == pytest.approx((0.5 + 0.3) / 2)


def test_several_ranks_give_the_same_numbers(tmp_path, monkeypatch):
    content, detections = make_world(3)
    name = register(tmp_path, content)
    pairs = [(i[0], o[0]) for i, o in model_outputs(content, detections)]
    alone = run(AlignmentEvaluator(name), *pairs)
    for rank in ranks(3, monkeypatch):
        # The last rank has no image, as where there are more ranks than images.
        results = run(AlignmentEvaluator(name), *(pairs[rank::2] if rank < 2 else ()))
    np.testing.assert_allclose(
        list(results["alignment"].values()), list(alone["alignment"].values()), rtol=1e-12
    )


def test_no_image_has_no_results(name, caplog):
    assert run(AlignmentEvaluator(name)) == {}
    assert "was given no image" in caplog.text


def test_wrong_use_is_named(name):
    with pytest.raises(ValueError, match="no `json_file`"):
        AlignmentEvaluator("unheard of")
    evaluator = AlignmentEvaluator(name)
    with pytest.raises(ValueError, match="image id 5"):
        run(evaluator, ({**INPUT, "image_id": 5}, output(only=FINDS)))
    wide = FINDS | {"pred_logits": [[-9, -9, 3.0]] * 3}
    with pytest.raises(ValueError, match=r"label 2, .* 0 to 1; correct `num_classes`"):
        run(evaluator, (INPUT, output(only=wide)))


def test_evaluate_prints_its_table(name, caplog):
    class Model(torch.nn.Module):
        def forward(self, inputs):
            return [output(only=FINDS) for _ in inputs]

    with caplog.at_level("INFO"):
        results = evaluate(Model(), [[INPUT]], AlignmentEvaluator(name, distributed=False))
    assert results["alignment"]["best_regressed_recall_1"] == 1.0
    assert "best_regressed_recall_1" in caplog.text


def test_a_config_that_is_data_may_name_it():
    check_targets({"_target_": "aligndetr.evaluation.AlignmentEvaluator", "dataset_name": "x"})


def test_the_snippet_of_the_docs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (batch,) = ([image] for image in random_batch([(96, 128)], [1]))
    batch[0].update(image_id=4, height=100, width=200)
    categories = [{"id": i, "name": f"class {i}"} for i in (3, 9, 11, 12, 13)]
    register(tmp_path, {**CONTENT, "categories": categories}, "my_val")
    page = (ROOT / "docs/alignment.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", page, re.S)
    names = {"model": tiny_model(), "loader": [batch]}
    exec(snippet, names)  # what a reader would paste
    assert names["results"]["alignment"]["objects"] == 2
    layers = ["encoder", "decoder 1", "decoder 2", "decoder 3"]
    assert list(names["evaluator"].layers) == layers
    assert (tmp_path / "output" / "alignment.json").is_file()
