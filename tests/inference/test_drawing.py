"""Pictures of boxes: where they lie, what stays visible, what a sheet holds."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image

from aligndetr.inference.drawing import (
    BACKGROUND,
    CROWD_COLOR,
    PALETTE,
    DrawnBoxes,
    SheetRow,
    draw_boxes,
    draw_sheet,
    place_caption,
    put_side_by_side,
)
from aligndetr.inference.predictions import (
    boxes_of_instances,
    boxes_of_record,
    choose_evenly,
    write_predictions,
)

HEIGHT, WIDTH = 60, 100


def boxes(*xyxy, class_ids=None, captions=None, crowd=None):
    n = len(xyxy)
    return DrawnBoxes(
        boxes=np.array(xyxy, dtype=float).reshape(-1, 4),
        class_ids=class_ids or [0] * n,
        captions=captions or [""] * n,
        crowd=crowd or [False] * n,
    )


def grey_image(height=HEIGHT, width=WIDTH):
    return np.full((height, width, 3), 90, dtype=np.uint8)


def extent(picture, color):
    """x0, y0, x1, y1 of the pixels that have exactly this colour."""
    y, x = np.nonzero((np.asarray(picture) == color).all(axis=-1))
    return x.min(), y.min(), x.max(), y.max()


@pytest.mark.parametrize("scale", [1, 3])
def test_a_frame_lies_on_its_box(scale):
    picture = draw_boxes(grey_image(), boxes([20, 10, 70, 40]), scale)
    assert picture.size == (WIDTH * scale, HEIGHT * scale)
    assert extent(picture, PALETTE[0]) == (20 * scale, 10 * scale, 70 * scale, 40 * scale)
    inside = np.asarray(picture)[20 * scale, 40 * scale]
    assert inside.tolist() == [90, 90, 90]  # not filled


def test_the_image_itself_is_not_drawn_on():
    image = grey_image()
    draw_boxes(image, boxes([20, 10, 70, 40], captions=["tree 0.50"]))
    assert (image == 90).all()


def test_classes_differ_in_colour_and_crowd_is_grey():
    drawn = boxes(
        [5, 5, 25, 25], [40, 5, 60, 25], [70, 30, 90, 50], class_ids=[0, 1, 0], crowd=[0, 0, 1]
    )
    picture = draw_boxes(grey_image(), drawn)
    assert extent(picture, PALETTE[0]) == (5, 5, 25, 25)
    assert extent(picture, PALETTE[1]) == (40, 5, 60, 25)
    assert extent(picture, CROWD_COLOR) == (70, 30, 90, 50)


@pytest.mark.parametrize(
    "box",
    [[0, 0, 10, 10], [90, 0, 100, 60], [0, 50, 100, 60], [95, 55, 100, 60]],
    ids=["corner", "right", "bottom", "last"],
)
def test_captions_stay_in_the_image(box):
    # A caption takes the colour of its box and must be seen as a whole: as wide wherever it is.
    def caption_area(box):
        pixels = np.asarray(draw_boxes(grey_image(), boxes(box, captions=["0.87"])))
        frame = np.asarray(draw_boxes(grey_image(), boxes(box)))
        return (pixels != frame).any(axis=-1).sum()

    in_the_middle = caption_area([40, 30, 80, 50])
    assert caption_area(box) == pytest.approx(in_the_middle, rel=0.2)


def test_boxes_beyond_the_image_or_without_area_can_be_drawn():
    draw_boxes(grey_image(), boxes([-20, -5, 300, 200], [30, 30, 30, 30], captions=["a", "b"]))


def test_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="2 boxes, 1 class ids"):
        DrawnBoxes(np.zeros((2, 4)), class_ids=[0], captions=["", ""], crowd=[False, False])


def test_swapped_corners_are_refused():
    with pytest.raises(ValueError, match="xyxy"):
        draw_boxes(grey_image(), boxes([50, 10, 20, 40]))


def test_a_sheet_holds_every_image_twice(tmp_path):
    row = SheetRow("a.png", grey_image(), boxes([20, 10, 70, 40]), boxes([50, 20, 90, 55]))
    draw_sheet([row] * 5, tmp_path / "sheet.png", "heading", tile_edge=200, columns=2)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    grey = (sheet == 90).all(axis=-1).sum()
    # 5 pairs of 200 x 120 pictures; frames cover a little.
    assert 0.9 < grey / (5 * 2 * 200 * 120) < 1
    assert (sheet[-1] == BACKGROUND).all()


def test_an_empty_sheet_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one image"):
        draw_sheet([], tmp_path / "sheet.png", "heading")


def test_annotations_become_boxes():
    record = {
        "annotations": [
            {"bbox": [10, 20, 5, 6], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1},
            {"bbox": [1, 2, 3, 4], "bbox_mode": 0, "category_id": 0, "iscrowd": 1},
        ]
    }
    drawn = boxes_of_record(record, ["car", "tree"])
    assert drawn.boxes.tolist() == [[10, 20, 15, 26], [1, 2, 3, 4]]
    assert drawn.captions == ["tree", "car"]
    assert drawn.crowd == [False, True]


def predicted(scores, xyxy=None, classes=None):
    n = len(scores)
    result = Instances((HEIGHT, WIDTH))
    result.pred_boxes = Boxes(torch.tensor(xyxy or [[20.0, 10, 70, 40]] * n).reshape(-1, 4))
    result.scores = torch.tensor(scores)
    result.pred_classes = torch.tensor(classes or [0] * n, dtype=torch.int64)
    return result


def test_uncertain_predictions_are_left_out_and_the_best_is_drawn_last():
    drawn = boxes_of_instances(predicted([0.9, 0.29, 0.3, 0.5]), ["car", "tree"], 0.3)
    assert drawn.captions == ["car 0.30", "car 0.50", "car 0.90"]


def test_a_single_class_is_not_named_on_every_box():
    assert boxes_of_instances(predicted([0.9]), ["tree"], 0.3).captions == ["0.90"]


def test_no_prediction_is_fine():
    drawn = boxes_of_instances(predicted([0.1]), ["tree"], 0.3)
    assert drawn.boxes.shape == (0, 4)


def test_even_choice():
    assert choose_evenly(range(20), 4) == [0, 6, 13, 19]
    assert choose_evenly(range(3), 4) == [0, 1, 2]


class AlwaysThere(torch.nn.Module):
    """Finds one object in the middle of every image; counts its calls."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, batch):
        assert not self.training
        assert not torch.is_grad_enabled()
        self.seen += [item["file_name"] for item in batch]
        return [{"instances": predicted([0.8])} for _ in batch]


def test_predictions_of_a_model_are_drawn(tmp_path):
    records = []
    for index in range(5):
        path = tmp_path / f"{index}.png"
        Image.fromarray(grey_image()).save(path)
        box = {"bbox": [20, 10, 50, 30], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
        records.append({"file_name": str(path), "annotations": [box]})
    model = AlwaysThere().train()
    out = tmp_path / "predictions.png"
    write_predictions(model, records, dict, ["tree"], out, max_images=3)
    assert [path[-5] for path in model.seen] == ["0", "2", "4"]
    assert model.training
    assert Image.open(out).width > 3 * 2 * 350


def test_no_images_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="empty"):
        write_predictions(AlwaysThere(), [], dict, ["tree"], tmp_path / "p.png")


def test_captions_of_boxes_at_one_place_do_not_cover_each_other():
    at_one_place = [[20, 100, 180, 180]] * 4
    texts = ["lorry 0.91", "bus 0.82", "tram 0.73", "car 0.64"]
    drawn = boxes(*at_one_place, class_ids=[0, 1, 2, 3], captions=texts)
    picture = np.asarray(draw_boxes(grey_image(240, 200), drawn))
    alone = [
        draw_boxes(grey_image(240, 200), boxes([20, 100, 180, 180], class_ids=[i], captions=[text]))
        for i, text in enumerate(texts)
    ]
    for i, picture_alone in enumerate(alone):
        color = np.array(PALETTE[i])
        filled = (np.asarray(picture_alone) == color).all(-1).sum()
        frame = (np.asarray(draw_boxes(grey_image(240, 200), boxes(at_one_place[0], class_ids=[i])))
                 == color).all(-1).sum()  # fmt: skip
        # All of the caption's ground is seen, whatever the captions after it.
        assert (picture == color).all(-1).sum() >= (filled - frame) * 0.95


def text_on_a_sheet(text, path):
    draw_sheet([SheetRow("", grey_image(), boxes(), boxes())], path, text)
    return np.asarray(Image.open(path))


@pytest.mark.parametrize(("one", "other"), [("ä", "ö"), ("ł", "ş"), ("д", "ж"), ("λ", "μ")])
def test_letters_that_english_does_not_have_are_drawn(one, other, tmp_path):
    """And not all as the box that stands for what a font lacks."""
    ground = Image.new("RGB", (60, 40))
    for draw in (
        lambda text: np.asarray(draw_boxes(grey_image(), boxes([9, 9, 80, 50], captions=[text]))),
        lambda text: np.asarray(put_side_by_side([ground], [text])),
        lambda text: text_on_a_sheet(text, tmp_path / "sheet.png"),
    ):
        pictures = [draw(text * 3) for text in (one, other, "\U000f0000")]
        for i, j in ((0, 1), (0, 2), (1, 2)):
            assert not np.array_equal(pictures[i], pictures[j])


def test_a_caption_that_must_cover_others_covers_as_little_as_can_be():
    # A box that fills an image of 60 x 36, captions of 20 x 16: the corners are the places.
    box, size = np.array([0.0, 0, 60, 36]), (60, 36)
    upper, lower_left, lower_right = (0, 0, 60, 20), (0, 20, 4, 36), (30, 20, 60, 36)
    assert place_caption(box, 20, 16, size, []) == (0, 1)
    assert place_caption(box, 20, 16, size, [(0, 0, 30, 20)]) == (40, 1)
    assert place_caption(box, 20, 16, size, [upper]) == (0, 20)
    assert place_caption(box, 20, 16, size, [upper, lower_left]) == (40, 20)
    assert place_caption(box, 20, 16, size, [upper, lower_left, lower_right]) == (0, 20)
