import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aligndetr.layers import (
    box_cxcywh_to_xyxy,
    box_iou,
    box_xyxy_to_cxcywh,
    elementwise_giou,
    elementwise_iou,
    generalized_box_iou,
    masks_to_boxes,
)
from tests.builders import golden, tensor

coordinate = st.floats(0, 1, width=32)
cxcywh_boxes = st.lists(st.tuples(*[coordinate] * 4), min_size=1, max_size=5).map(torch.tensor)


@given(cxcywh_boxes)
def test_formats_round_trip(boxes):
    torch.testing.assert_close(
        box_xyxy_to_cxcywh(box_cxcywh_to_xyxy(boxes)), boxes, rtol=0, atol=1e-6
    )


@given(cxcywh_boxes)
def test_corners_are_ordered(boxes):
    xyxy = box_cxcywh_to_xyxy(boxes)
    assert (xyxy[:, 2:] >= xyxy[:, :2]).all()


def test_format_by_hand():
    xyxy = box_cxcywh_to_xyxy(torch.tensor([[3.0, 5.0, 2.0, 7.0]]))
    assert xyxy.tolist() == [[2.0, 1.5, 4.0, 8.5]]


def test_iou_and_giou_equal_the_reference():
    numbers = golden("layers")
    boxes_a = box_cxcywh_to_xyxy(tensor(numbers["box/cxcywh1"]))
    boxes_b = box_cxcywh_to_xyxy(tensor(numbers["box/cxcywh2"]))
    computed = {
        "xyxy1": boxes_a,
        "iou": box_iou(boxes_a, boxes_b)[0],
        "giou": generalized_box_iou(boxes_a, boxes_b),
    }
    for name, ours in computed.items():
        torch.testing.assert_close(ours, tensor(numbers[f"box/{name}"]), rtol=0, atol=2e-7)


def test_iou_by_hand():
    # Unit squares shifted by half: 1/2 shared of 3/2. One cell apart: hull 3, union 2.
    a = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    b = torch.tensor([[0.5, 0.0, 1.5, 1.0], [2.0, 0.0, 3.0, 1.0]])
    iou, union = box_iou(a, b)
    torch.testing.assert_close(iou, torch.tensor([[1 / 3, 0.0]]))
    torch.testing.assert_close(union, torch.tensor([[1.5, 2.0]]))
    torch.testing.assert_close(generalized_box_iou(a, b), torch.tensor([[1 / 3, -1 / 3]]))


def test_epsilon_halves_the_iou_of_a_tiny_perfect_box():
    tiny = torch.tensor([[0.5, 0.5, 0.501, 0.501]], dtype=torch.float64)
    torch.testing.assert_close(box_iou(tiny, tiny)[0].item(), 0.5, rtol=1e-6, atol=0)
    torch.testing.assert_close(elementwise_giou(tiny, tiny).item(), 0.5, rtol=1e-6, atol=0)


def test_a_box_without_area_has_iou_zero_with_itself():
    point = torch.tensor([[0.3, 0.4, 0.3, 0.4]])
    assert box_iou(point, point)[0].item() == 0
    assert generalized_box_iou(point, point).item() == 0


@given(cxcywh_boxes, st.randoms(use_true_random=False))
def test_elementwise_is_the_diagonal_of_pairwise(boxes, random):
    boxes_a = box_cxcywh_to_xyxy(boxes)
    boxes_b = boxes_a[torch.tensor(random.sample(range(len(boxes)), len(boxes)))] * 0.9
    exactly = {"rtol": 0, "atol": 0}
    torch.testing.assert_close(
        elementwise_iou(boxes_a, boxes_b), box_iou(boxes_a, boxes_b)[0].diagonal(), **exactly
    )
    torch.testing.assert_close(
        elementwise_giou(boxes_a, boxes_b),
        generalized_box_iou(boxes_a, boxes_b).diagonal(),
        **exactly,
    )


@given(cxcywh_boxes)
def test_values_stay_in_range_and_pairs_commute(boxes):
    boxes = box_cxcywh_to_xyxy(boxes)
    iou, giou = box_iou(boxes, boxes)[0], generalized_box_iou(boxes, boxes)
    assert ((iou >= 0) & (iou <= 1)).all()
    assert ((giou >= -1) & (giou <= iou + 1e-6)).all()
    torch.testing.assert_close(iou, iou.T)


@pytest.mark.parametrize(("num_a", "num_b"), [(0, 3), (2, 0), (0, 0)])
def test_no_boxes_give_an_empty_matrix(num_a, num_b):
    a, b = torch.zeros(num_a, 4), torch.zeros(num_b, 4)
    assert box_iou(a, b)[0].shape == generalized_box_iou(a, b).shape == (num_a, num_b)


def test_no_pairs_give_an_empty_vector():
    assert elementwise_iou(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0,)


def test_elementwise_refuses_another_number_of_boxes():
    with pytest.raises(ValueError, match=r"\(2, 4\) and \(1, 4\)"):
        elementwise_iou(torch.zeros(2, 4), torch.zeros(1, 4))


def test_a_mask_is_boxed_tightly():
    masks = torch.zeros(3, 5, 7, dtype=torch.bool)
    masks[0, 1:4, 2:6] = True
    masks[1, 4, 0] = True  # the last stays empty
    assert masks_to_boxes(masks).tolist() == [[2, 1, 5, 3], [0, 4, 0, 4], [0, 0, 0, 0]]
    assert masks_to_boxes(masks[:0]).shape == (0, 4)
