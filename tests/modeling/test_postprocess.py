import torch

from aligndetr.modeling import refine_boxes, select_top_predictions


def test_the_best_pairs_of_query_and_class_are_kept():
    logits = torch.tensor([[[-9.0, 2.0, 1.0], [3.0, -9.0, -9.0]]])  # 2 queries, 3 classes
    boxes = torch.tensor([[[0.1, 0.1, 0.1, 0.1], [0.2, 0.2, 0.2, 0.2]]])
    scores, classes, kept = select_top_predictions(logits, boxes, 3)
    torch.testing.assert_close(scores, torch.tensor([[3.0, 2.0, 1.0]]).sigmoid())
    assert classes.tolist() == [[0, 1, 2]]
    torch.testing.assert_close(kept[0, :, 0], torch.tensor([0.2, 0.1, 0.1]))


def test_fewer_pairs_than_asked_for_gives_all():
    scores, _, _ = select_top_predictions(torch.zeros(2, 3, 2), torch.zeros(2, 3, 4), 300)
    assert scores.shape == (2, 6)


def test_no_delta_keeps_the_box_and_half_precision_is_lifted():
    box = torch.tensor([0.5, 0.25, 0.125, 0.75])
    refined = refine_boxes(torch.zeros(4, dtype=torch.bfloat16), box)
    assert refined.dtype == torch.float32
    torch.testing.assert_close(refined, box)
