"""Large images in tiles: every object is found once, wherever the seams are."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image
from scipy import ndimage

from aligndetr.data import DetrDatasetMapper
from aligndetr.inference import ImageError, Predictor
from aligndetr.inference.images import load_image, shrink
from aligndetr.inference.tiling import merge_at_seams, tile_regions

WIDTH, HEIGHT, TILE = 500, 330, 128  # 5 x 4 tiles
RED, BLUE = (255, 0, 0), (0, 0, 255)


class Rectangles(torch.nn.Module):
    """Finds every red (class 0) and blue (class 1) rectangle that it is shown, or what it sees of
    it; counts the images."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.sizes = []

    def forward(self, batch):
        return [{"instances": self.find(x)} for x in batch]

    def find(self, x):
        self.sizes.append((x["width"], x["height"]))
        boxes, classes = [], []
        for class_id, channel in enumerate((0, 2)):
            labels, _ = ndimage.label(x["image"][channel].numpy() > 127)
            for rows, columns in ndimage.find_objects(labels):
                boxes.append([columns.start, rows.start, columns.stop, rows.stop])
                classes.append(class_id)
        instances = Instances((x["height"], x["width"]))
        instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        area = instances.pred_boxes.area()
        instances.scores = 0.5 + area / 2e6  # the larger, the more certain, as of real models
        instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
        return instances


@pytest.fixture
def predictor():
    return Predictor(Rectangles(), DetrDatasetMapper([], None, is_train=False), ["red", "blue"])


def picture(*boxes, color=RED, width=WIDTH, height=HEIGHT):
    image = np.zeros((height, width, 3), np.uint8)
    for x0, y0, x1, y1 in boxes:
        image[y0:y1, x0:x1] = color
    return image


def sorted_boxes(found):
    return sorted(found.boxes.tolist())


@pytest.mark.parametrize(
    ("width", "height", "tile"), [(500, 330, 128), (129, 60, 128), (97, 97, 32)]
)
def test_tiles_cover_the_image_and_overlap_by_a_quarter(width, height, tile):
    regions = np.array(tile_regions(width, height, tile))
    seen = np.zeros((height, width), int)
    for x0, y0, x1, y1 in regions:
        assert (x1 - x0, y1 - y0) == (min(tile, width), min(tile, height))
        seen[y0:y1, x0:x1] += 1
    assert seen.min() == 1
    for axis in (0, 1):
        starts = np.unique(regions[:, axis])
        assert starts[0] == 0
        assert regions[:, axis + 2].max() == (width, height)[axis]
        assert (np.diff(starts) <= tile * 0.75).all()


@pytest.mark.parametrize("batch_size", [1, 4])
def test_small_objects_are_found_once_wherever_they_are(predictor, batch_size):
    # 24 x 16 pixels, less than the overlap, at distances that put some on every seam.
    boxes = [(x, y, x + 24, y + 16) for x in range(0, 476, 37) for y in range(0, 314, 29)]
    found = predictor(picture(*boxes), batch_size=batch_size, tile=TILE)
    assert sorted_boxes(found) == sorted(map(list, boxes))
    assert set(predictor.model.sizes[:-1]) == {(TILE, TILE)}
    assert len(predictor.model.sizes) == 5 * 4 + 1
    assert (np.diff(found.scores) <= 0).all()
    assert found.image_size == (HEIGHT, WIDTH)


@pytest.mark.parametrize(
    "box",
    [(20, 30, 470, 310), (5, 100, 495, 110), (250, 5, 262, 325), (60, 60, 190, 190)],
    ids=["nearly-all", "flat", "tall", "a-little-more-than-a-tile"],
)
def test_an_object_larger_than_a_tile_is_found_once_and_whole(predictor, box):
    found = predictor(picture(box), tile=TILE)
    assert len(found) == 1
    np.testing.assert_allclose(found.boxes[0], box, atol=4)  # a pixel of the small whole image


def test_neighbours_at_a_seam_stay_apart_and_classes_do_not_suppress_each_other(predictor):
    # The first two tiles are 0..128 and 93..221.
    image = picture((80, 40, 104, 60), (106, 40, 130, 60))
    image[50:70, 100:126] = BLUE
    found = predictor(image, tile=TILE)
    assert [found.names.count(name) for name in ("red", "blue")] == [2, 1]


def test_one_image_seen_in_many_ways_gives_what_one_look_gives(predictor):
    boxes = [(x, y, x + 20 + x % 11, y + 18) for x in range(3, 470, 41) for y in range(3, 300, 31)]
    image = picture(*boxes)
    assert sorted_boxes(predictor(image, tile=TILE)) == sorted_boxes(predictor(image))


@pytest.mark.parametrize("tile", [500, 2000])
def test_an_image_not_larger_than_a_tile_is_predicted_as_without(predictor, tile):
    image = picture((20, 30, 470, 310), (2, 2, 10, 10))
    expected = predictor(image, 0)
    predictor.model.sizes.clear()
    found = predictor(image, 0, tile=tile)
    assert predictor.model.sizes == [(WIDTH, HEIGHT)]
    for name in ("boxes", "scores", "class_ids"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_large_and_small_images_come_back_in_their_order(predictor):
    small = [picture((i, 0, i + 5, 5), width=60, height=40) for i in range(4)]
    images = [small[0], picture((250, 5, 262, 20)), small[1], small[2], small[3]]
    for batch_size in (1, 3):
        found = predictor(images, batch_size=batch_size, tile=TILE)
        assert [f.boxes[0, 0].round() for f in found] == [0, 250, 1, 2, 3]
        assert [f.source is image for f, image in zip(found, images, strict=True)] == [True] * 5


def test_nothing_there_is_nothing_found(predictor):
    assert len(predictor(picture(), tile=TILE)) == 0


def test_a_tile_too_small_to_see_in_is_an_error(predictor):
    with pytest.raises(ValueError, match=r"`tile` \(=31\) must be at least 32"):
        predictor(picture(), tile=31)


def test_grey_palette_and_turned_images_are_predicted_alike(predictor, tmp_path):
    upright = Image.fromarray(picture((100, 100, 140, 130), color=(255, 255, 255)))
    expected = sorted_boxes(predictor(upright, tile=TILE))
    assert len(expected) == 2  # white is red and blue
    for mode in ("L", "P", "1", "CMYK"):
        assert sorted_boxes(predictor(upright.convert(mode), tile=TILE)) == expected
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "lying.png", exif=exif)
    assert sorted_boxes(predictor(tmp_path / "lying.png", tile=TILE)) == expected


def test_what_is_too_large_at_once_is_predicted_in_tiles_and_drawn_smaller(predictor, tmp_path):
    predictor.max_pixels = WIDTH * HEIGHT // 3
    path = tmp_path / "large.png"
    Image.fromarray(picture((100, 100, 140, 130))).save(path)
    with pytest.raises(ImageError, match=r"500 x 330 pixels .* predict it in tiles \(tile=1024\)"):
        predictor(path)
    found = predictor(path, tile=TILE)
    assert found.boxes.tolist() == [[100, 100, 140, 130]]
    drawn = found.plot()
    assert drawn.size == (WIDTH // 2, HEIGHT // 2)
    assert drawn.getpixel((60, 57)) == RED  # 120, 115: within the frame


def memory(kind):
    """Of this process in MB: VmRSS, now; VmHWM, the most so far."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"^{kind}:\s+(\d+) kB", status, re.M)[1]) / 1000


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak")
def test_20000_pixels_square_take_little_more_memory_than_their_own(predictor, tmp_path):
    image = Image.new("L", (20_000, 20_000))
    image.paste(255, (19_000, 700, 19_040, 760))
    image.save(tmp_path / "huge.png", compress_level=1)
    del image
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
    before = memory("VmRSS")
    found = predictor(tmp_path / "huge.png", tile=2048)
    assert found.boxes.tolist() == [[19_000, 700, 19_040, 760]] * 2
    assert memory("VmHWM") - before < 400 + 300


def test_more_than_can_be_decoded_is_refused_in_tiles_too(predictor, tmp_path):
    Image.new("1", (25_000, 25_000)).save(tmp_path / "huge.png")
    with pytest.raises(ImageError, match="25000 x 25000 pixels .* more than the 500000000"):
        predictor(tmp_path / "huge.png", tile=1024)


@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_shrinking_part_by_part_averages(mode):
    array = np.random.default_rng(0).integers(0, 255, (2111, 35, 3)).astype(np.uint8)
    image = Image.fromarray(array).convert(mode)
    rgb = np.asarray(image.convert("RGB"), float)
    small = np.asarray(shrink(image, 3))
    assert small.shape == (703, 11, 3)
    expected = rgb[:2109, :33].reshape(703, 3, 11, 3, 3).mean((1, 3))
    np.testing.assert_allclose(small, expected, atol=0.6)


# Two tiles that share the columns 75 to 100, for cases worked by hand.
REGIONS = np.array([[0, 0, 100, 100], [75, 0, 175, 100]])


def merged(*detections, regions=REGIONS, size=(175, 100)):
    """Of (region, score, box) each; (score, box) of those kept."""
    seen_by, scores, boxes = zip(*detections, strict=True)
    classes = np.zeros(len(boxes), np.int64)
    kept_boxes, kept = merge_at_seams(
        np.array(boxes, np.float32), np.array(scores), classes, np.array(seen_by), regions, size
    )
    return [(scores[i], box) for i, box in zip(kept, kept_boxes.tolist(), strict=True)]


def test_a_whole_box_goes_before_a_piece_of_it_that_is_more_certain():
    # The right tile cuts it at 75; of both boxes that leaves (75, 10, 90, 30).
    whole, piece = [60, 10, 90, 30], [75, 10, 90, 30]
    assert merged((0, 0.6, whole), (1, 0.9, piece)) == [(0.6, whole)]


def test_a_certain_piece_is_not_lost_to_a_doubtful_box():
    # And it is made whole by that one.
    whole, piece = [60, 10, 90, 30], [75, 10, 90, 30]
    assert merged((0, 0.1, whole), (1, 0.9, piece)) == [(0.9, whole)]


def test_two_pieces_are_joined():
    left, right = [60, 10, 100, 30], [75, 10, 140, 30]
    assert merged((0, 0.6, left), (1, 0.9, right)) == [(0.9, [60, 10, 140, 30])]


def test_pieces_of_two_objects_are_not_joined():
    left, right = [60, 10, 100, 30], [75, 31, 140, 60]
    assert merged((0, 0.6, left), (1, 0.9, right)) == [(0.9, right), (0.6, left)]


def test_what_one_tile_finds_is_not_merged_among_itself():
    one, other = [10, 10, 40, 40], [12, 10, 42, 40]
    assert merged((0, 0.9, one), (0, 0.8, other)) == [(0.9, one), (0.8, other)]


def test_the_detail_of_a_tile_goes_before_the_small_whole_image():
    regions = np.array([*REGIONS, [0, 0, 175, 100]])
    fine, rough = [10, 10, 30, 30], [8, 8, 32, 32]
    assert merged((2, 0.9, rough), (0, 0.6, fine), regions=regions) == [(0.6, fine)]


def test_images_keep_their_mode_by_choice():
    image = Image.new("L", (5, 5))
    assert load_image(image, keep_mode=True).mode == "L"
    assert load_image(image).mode == "RGB"
