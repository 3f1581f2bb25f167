"""L1 and GIoU losses on pairs, by hand."""

import pytest
import torch

from aligndetr.losses import giou_box_loss, l1_box_loss

A = torch.tensor([[0.5, 0.5, 0.4, 0.2], [0.2, 0.2, 0.1, 0.1]], dtype=torch.float64)
B = torch.tensor([[0.6, 0.5, 0.4, 0.1], [0.2, 0.2, 0.1, 0.1]], dtype=torch.float64)


def test_l1():
    assert l1_box_loss(A, B).tolist() == pytest.approx([0.2, 0])


def test_giou_of_side_by_side_boxes():
    # Two unit squares of side 0.2, a gap of 0.2: union 0.08, hull 0.6 * 0.2 = 0.12, GIoU -1/3.
    left = torch.tensor([[0.2, 0.5, 0.2, 0.2]], dtype=torch.float64)
    right = torch.tensor([[0.6, 0.5, 0.2, 0.2]], dtype=torch.float64)
    loss = giou_box_loss(left, right)
    assert loss.item() == pytest.approx(4 / 3, rel=1e-4)  # epsilon on small areas


@pytest.mark.parametrize("loss_function", [l1_box_loss, giou_box_loss])
def test_no_pairs_give_nothing_that_is_still_in_the_graph(loss_function):
    boxes = torch.rand(5, 4, generator=torch.manual_seed(0)).requires_grad_()
    none = torch.zeros(0, dtype=torch.long)
    loss = loss_function(boxes[none], torch.zeros(0, 4))
    assert loss.shape == (0,)
    loss.sum().backward()
    assert boxes.grad.count_nonzero() == 0
