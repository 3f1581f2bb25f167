"""MixedMatcher against the index sets of the reference implementation."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from aligndetr.matchers import MixedMatcher

FOLDER = Path(__file__).parents[1] / "golden"
GOLDEN = np.load(FOLDER / "matcher.npz", allow_pickle=False)
META = json.loads((FOLDER / "matcher_meta.json").read_text())
DTYPES = {"f32": torch.float32, "f64": torch.float64}
CASES = sorted({key.split("/")[0] for key in GOLDEN.files})
NUM_QUERIES = 30

# (case, gt_copy, image) where the reference's number of copies depends on the images before, or
# is 0 because an image has more objects than half the queries.
DEVIATIONS = {
    *(("c_12_0_4", k, 2) for k in (2, 3)),
    *(("c_20_3_2", k, image) for k in (1, 2, 3) for image in (0, 1, 2)),
    *(("c_2_2_16", k, 2) for k in (1, 2, 3)),
}


def make_matcher():
    return MixedMatcher(2.0, 5.0, 2.0, "focal_loss_cost", alpha=0.25, gamma=2.0)


def load(case, dtype):
    def get(key):
        tensor = torch.from_numpy(GOLDEN[f"{case}/{key}"])
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    outputs = {"pred_logits": get("pred_logits"), "pred_boxes": get("pred_boxes")}
    targets = [{"labels": get(f"labels{i}"), "boxes": get(f"boxes{i}")} for i in range(3)]
    return outputs, targets


def expected_copies(gt_copy, num_objects):
    return max(1, min(gt_copy, int(0.5 * NUM_QUERIES / num_objects)))


def queries_per_object(query_idx, gt_idx, num_objects):
    sets = [set() for _ in range(num_objects)]
    for query, gt in zip(query_idx, gt_idx, strict=True):
        sets[int(gt)].add(int(query))
    return sets


def merge_equal_objects(sets, target):
    """Objects with the same box and label are interchangeable: give each the union."""
    same = (target["boxes"][:, None] == target["boxes"]).all(-1)
    same &= target["labels"][:, None] == target["labels"]
    return [set().union(*(sets[j] for j in row.nonzero().flatten().tolist())) for row in same]


def recorded(case, gt_copy, precision, image, num_objects):
    key = f"{case}/gc{gt_copy}/{precision}"
    return queries_per_object(GOLDEN[f"{key}/src{image}"], GOLDEN[f"{key}/tgt{image}"], num_objects)


def assigned_alone(cost, copies):
    """The assignment the image gets by itself, from the reference's cost matrix."""
    query_idx, column = linear_sum_assignment(np.concatenate([cost] * copies, axis=1))
    return queries_per_object(query_idx, column % cost.shape[1], cost.shape[1])


def test_deviations_are_exactly_those_that_were_decided():
    deviating = set()
    for name, meta in META.items():
        case, gt_copy = name.split("/")[0], int(name.split("/")[1][2:])
        for image, (count, effective) in enumerate(
            zip(meta["counts"], meta["effective_copy"], strict=True)
        ):
            if count and effective != expected_copies(gt_copy, count):
                deviating.add((case, gt_copy, image))
    assert deviating == DEVIATIONS


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("gt_copy", [1, 2, 3])
@pytest.mark.parametrize("case", CASES)
def test_same_queries_for_each_object(case, gt_copy, precision):
    outputs, targets = load(case, DTYPES[precision])
    indices = make_matcher()(outputs, targets, gt_copy)
    assert len(indices) == 3
    for image, ((query_idx, gt_idx), target) in enumerate(zip(indices, targets, strict=True)):
        num_objects = len(target["labels"])
        ours = queries_per_object(query_idx, gt_idx, num_objects)
        if (case, gt_copy, image) not in DEVIATIONS:
            truth = recorded(case, gt_copy, precision, image, num_objects)
        else:
            copies = expected_copies(gt_copy, num_objects)
            truth = assigned_alone(make_cost(outputs, target, image), copies)
        assert merge_equal_objects(ours, target) == merge_equal_objects(truth, target)


def make_cost(outputs, target, image):
    """Our costs, which the test below holds to the reference's."""
    logits, boxes = outputs["pred_logits"][image], outputs["pred_boxes"][image]
    return make_matcher().cost_matrix(logits, boxes, target["labels"], target["boxes"]).numpy()


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_same_costs(case, precision):
    outputs, targets = load(case, DTYPES[precision])
    tolerance = 5e-6 if precision == "f32" else 1e-6
    for image, target in enumerate(targets):
        golden = GOLDEN[f"{case}/cost/{precision}/img{image}"]
        if golden.shape[1]:  # not recorded where the reference makes no copy
            ours = make_cost(outputs, target, image)
            np.testing.assert_allclose(ours, golden, rtol=0, atol=tolerance)
