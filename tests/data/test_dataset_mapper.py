"""The mapper: pixels and boxes go through the same transforms, and nothing else changes."""

import copy
import pickle

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog, DatasetMapper
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import ListConfig
from PIL import Image

from aligndetr.data import DatasetError, DetrDatasetMapper, register_dataset
from aligndetr.data.corrupt_images import CorruptImageError
from tests.data.coco_json import COCO_TINY

WIDTH, HEIGHT = 40, 20
EXIF_ORIENTATION = 274


def annotation(box, category_id=0, **more):
    return {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": category_id, **more}


def write_image(path, pixels=None, **save):
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8) if pixels is None else pixels
    Image.fromarray(pixels).save(path, **save)
    height, width = pixels.shape[:2]
    return {"file_name": str(path), "image_id": 7, "height": height, "width": width}


def map_boxes(entry, augmentation, boxes, **more):
    entry = {**entry, "annotations": [annotation(box) for box in boxes]}
    return DetrDatasetMapper(augmentation, None, **more)(entry)["instances"].gt_boxes.tensor


@pytest.fixture(scope="module")
def train_records():
    return DatasetCatalog.get(register_dataset("train", root=str(COCO_TINY)))


@pytest.fixture
def entry(tmp_path):
    return write_image(tmp_path / "image.png")


def reference_augmentations():
    """The two lists of the reference's config, at half its sizes."""
    resize = [240, 272, 304, 336, 368, 400]
    last = T.ResizeShortestEdge(resize, max_size=666, sample_style="choice")
    crop = [
        T.RandomFlip(),
        T.ResizeShortestEdge([200, 250, 300], sample_style="choice"),
        T.RandomCrop("absolute_range", (192, 300)),
        last,
    ]
    return [T.RandomFlip(), last], crop


def test_training_sample_of_real_images(train_records):
    grey, crowded = train_records
    mapper = DetrDatasetMapper([T.ResizeShortestEdge(320, 400)], None)
    sample = mapper(grey)
    assert sample["image"].shape == (3, 400, 320)
    assert sample["image"].dtype == torch.uint8
    assert sample["image"].is_contiguous()
    assert torch.equal(sample["image"][0], sample["image"][2])  # one channel, three times
    assert (sample["height"], sample["width"], sample["image_id"]) == (640, 512, 86)
    assert sample["instances"].image_size == (400, 320)
    assert sample["instances"].gt_classes.dtype == torch.int64
    assert sample["instances"].gt_boxes.tensor.dtype == torch.float32
    assert not sample["instances"].has("gt_masks")
    assert "annotations" not in sample

    num_crowd = sum(a["iscrowd"] for a in crowded["annotations"])
    assert num_crowd == 1
    assert len(mapper(crowded)["instances"]) == len(crowded["annotations"]) - num_crowd


def test_evaluation_sample_has_no_objects(train_records):
    sample = DetrDatasetMapper([T.ResizeShortestEdge(320, 400)], None, is_train=False)(
        train_records[0]
    )
    assert "annotations" not in sample
    assert "instances" not in sample
    assert sample["image"].shape == (3, 400, 320)


def test_boxes_follow_flip_resize_and_crop(entry):
    # xywh (10, 4, 8, 6) is xyxy (10, 4, 18, 10); flipped in 40: (22, 4, 30, 10);
    # x 2.5 and 1.5: (55, 6, 75, 15); cropped at (60, 5): (-5, 1, 15, 10), clipped at 0.
    augmentation = [T.RandomFlip(prob=1.0), T.Resize((30, 100)), T.CropTransform(60, 5, 30, 20)]
    boxes = map_boxes(entry, augmentation, [[10, 4, 8, 6]])
    torch.testing.assert_close(boxes, torch.tensor([[0.0, 1.0, 15.0, 10.0]]))


@pytest.mark.parametrize("seed", range(8))
def test_pixels_and_boxes_go_through_the_same_transforms(seed, tmp_path):
    pixels = np.zeros((320, 400, 3), np.uint8)
    pixels[90:240, 120:330] = 255
    entry = write_image(tmp_path / "rectangle.png", pixels)
    entry["annotations"] = [annotation([120, 90, 210, 150])]
    np.random.seed(seed)
    sample = DetrDatasetMapper(*reference_augmentations())(entry)
    x0, y0, x1, y1 = sample["instances"].gt_boxes.tensor[0]
    ys, xs = torch.nonzero(sample["image"][0] > 127, as_tuple=True)
    extent = torch.tensor([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
    # Two resizes blur the border, and the second enlarges the first one's blur.
    torch.testing.assert_close(extent.float(), torch.stack([x0, y0, x1, y1]), atol=2.5, rtol=0)


def test_boxes_of_whole_numbers_are_not_truncated(entry):
    # detectron2 transforms a list of ints as ints: it would give (2, 1, 12, 7).
    boxes = map_boxes(entry, [T.Resize((15, 50))], [[2, 2, 8, 8]])
    torch.testing.assert_close(boxes, torch.tensor([[2.5, 1.5, 12.5, 7.5]]))


def test_each_list_is_taken_for_half_of_the_images(entry):
    mapper = DetrDatasetMapper([T.Resize((8, 8))], [T.Resize((4, 4))])
    np.random.seed(0)
    sizes = [mapper(entry)["image"].shape[1] for _ in range(400)]
    assert set(sizes) == {4, 8}
    assert 160 < sizes.count(4) < 240


def test_lists_of_a_config_draw_as_pythons_lists_do(entry):
    edges = [40, 48, 56]
    of_config = T.ResizeShortestEdge(ListConfig(edges), max_size=100, sample_style="choice")
    plain = T.ResizeShortestEdge(edges, max_size=100, sample_style="choice")
    mapper = DetrDatasetMapper([of_config], None)
    assert type(of_config.short_edge_length) is list  # a ListConfig costs 1 ms for each image
    for seed in range(5):
        shapes = []
        for each in (mapper, DetrDatasetMapper([plain], None)):
            np.random.seed(seed)
            shapes.append(each(entry)["image"].shape)
        assert shapes[0] == shapes[1]


def test_same_seed_same_sample(train_records):
    mapper = DetrDatasetMapper(*reference_augmentations())

    def draw(seed):
        np.random.seed(seed)
        return [mapper(record) for record in train_records * 3]

    for first, second in zip(draw(3), draw(3), strict=True):
        assert torch.equal(first["image"], second["image"])
        assert torch.equal(first["instances"].gt_boxes.tensor, second["instances"].gt_boxes.tensor)
    assert [s["image"].shape for s in draw(3)] != [s["image"].shape for s in draw(4)]


def test_small_images_pass_the_crop_branch(entry):
    # A strip of 40 x 20 is enlarged to 200 at least; a crop of up to 300 must fit all the same.
    _, crop = reference_augmentations()
    small = [T.RandomCrop("absolute_range", (192, 300)), T.ResizeShortestEdge(16, 32)]
    assert min(DetrDatasetMapper(crop, None)(entry)["image"].shape[1:]) >= 100
    assert DetrDatasetMapper(small, None)(entry)["image"].shape == (3, 16, 32)


@pytest.mark.parametrize("mask_on", [False, True])
def test_input_is_left_alone(mask_on, train_records):
    mapper = DetrDatasetMapper([T.RandomFlip(prob=1.0), T.Resize((64, 80))], None, mask_on=mask_on)
    for record in train_records:
        record = copy.deepcopy(record)
        for a in record["annotations"]:
            if isinstance(a["segmentation"], list):  # arrays are what a flip could write to
                a["segmentation"] = [np.array(p) for p in a["segmentation"]]
        before = pickle.dumps(record)
        mapper(record)
        assert pickle.dumps(record) == before


def test_channel_order(tmp_path):
    red = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    red[..., 0] = 255
    entry = write_image(tmp_path / "red.png", red)
    for img_format, channel in (("RGB", 0), ("BGR", 2)):
        image = DetrDatasetMapper([], None, img_format=img_format)(entry)["image"]
        assert image.float().mean(dim=(1, 2)).argmax() == channel


def exif(orientation):
    tags = Image.Exif()
    tags[EXIF_ORIENTATION] = orientation
    return tags


def test_exif_rotation_is_applied(tmp_path):
    stored = np.arange(HEIGHT * WIDTH * 3).reshape(HEIGHT, WIDTH, 3).astype(np.uint8)
    entry = write_image(tmp_path / "turned.png", stored, exif=exif(6))  # 6: show 90° clockwise
    entry.update(width=HEIGHT, height=WIDTH)
    image = DetrDatasetMapper([], None, is_train=False)(entry)["image"]
    np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), np.rot90(stored, k=-1))


def test_empty_boxes_are_filtered_even_when_flipped(entry):
    # Under a flip the corners of a box with negative width change places and look right again.
    useless = [[5, 5, 0, 4], [15, 5, -8, 4], [5, 15, 4, -8], [WIDTH, 5, 6, 4], [5, -9, 4, 9]]
    for augmentation in ([], [T.RandomFlip(prob=1.0)], [T.CropTransform(0, 0, 20, 10)]):
        boxes = map_boxes(entry, augmentation, [*useless, [1, 2, 3, 4]])
        assert len(boxes) == 1


def test_image_whose_objects_are_all_cropped_away_has_zero_instances(entry):
    sample = DetrDatasetMapper([T.CropTransform(20, 10, 20, 10)], None)(
        {**entry, "annotations": [annotation([1, 2, 3, 4])]}
    )
    assert len(sample["instances"]) == 0
    assert sample["instances"].gt_boxes.tensor.shape == (0, 4)
    assert sample["instances"].gt_classes.dtype == torch.int64


@pytest.fixture(scope="module")
def shared_entry(tmp_path_factory):
    return write_image(tmp_path_factory.mktemp("clip") / "image.png")


corners = st.integers(-240, 240).map(lambda quarters: quarters / 4)  # exact in float32
sizes = st.integers(-20, 240).map(lambda quarters: quarters / 4)


@given(boxes=st.lists(st.tuples(corners, corners, sizes, sizes), max_size=5), flip=st.booleans())
@settings(max_examples=100)
def test_boxes_are_clipped_to_the_image(shared_entry, boxes, flip):
    expected = []
    for x, y, w, h in boxes:
        x0, x1 = (WIDTH - x - w, WIDTH - x) if flip else (x, x + w)
        clipped = [max(x0, 0), max(y, 0), min(x1, WIDTH), min(y + h, HEIGHT)]
        if clipped[0] < clipped[2] and clipped[1] < clipped[3]:
            expected.append(clipped)
    result = map_boxes(shared_entry, [T.RandomFlip(prob=float(flip))], boxes)
    assert result.tolist() == expected


SQUARE = [[4.0, 4.0, 12.0, 4.0, 12.0, 12.0, 4.0, 12.0]]


def test_masks_are_kept_when_asked_for(entry):
    polygon = annotation([4, 4, 8, 8], segmentation=SQUARE)
    run_lengths = annotation(
        [4, 4, 8, 8], segmentation=mask_util.frPyObjects(SQUARE, HEIGHT, WIDTH)[0]
    )
    mapper = DetrDatasetMapper([T.RandomFlip(prob=1.0)], None, mask_on=True)

    masks = mapper({**entry, "annotations": [polygon]})["instances"].gt_masks
    np.testing.assert_allclose(masks.polygons[0][0][::2], [36, 28, 28, 36])

    masks = mapper({**entry, "annotations": [polygon, run_lengths]})["instances"].gt_masks
    assert masks.tensor.shape == (2, HEIGHT, WIDTH)
    for mask in masks.tensor:
        assert mask[4:12, 28:36].all()
        assert mask.sum() == 64

    with pytest.raises(DatasetError, match=r"image id 7.* no segmentation .*mask_on=False"):
        mapper({**entry, "annotations": [annotation([4, 4, 8, 8])]})


def test_missing_image_is_named(entry):
    entry["file_name"] = "nowhere/x.png"
    with pytest.raises(DatasetError, match=r"'nowhere/x.png' \(image id 7\) does not exist"):
        DetrDatasetMapper([], None)(entry)


@pytest.mark.parametrize("content", [b"", b"no picture", "cut"], ids=["empty", "text", "cut off"])
def test_broken_image_is_named(content, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    path = tmp_path / "broken.jpg"
    entry = write_image(path, noise)
    path.write_bytes(path.read_bytes()[:700] if content == "cut" else content)
    with pytest.raises(DatasetError, match=r"broken.jpg' \(image id 7\) cannot be read"):
        DetrDatasetMapper([], None)(entry)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I", "F"])
def test_an_image_of_more_than_8_bits_is_refused(mode, tmp_path):
    """Cut off at 255 it would be white, and the training go on."""
    path = tmp_path / "deep.tif"
    Image.new(mode, (WIDTH, HEIGHT), 3000).save(path)
    assert Image.open(path).mode == mode
    entry = {"file_name": str(path), "image_id": 7, "width": WIDTH, "height": HEIGHT}
    with pytest.raises(CorruptImageError) as error:
        DetrDatasetMapper([], None)(entry)
    for part in ("deep.tif", "image id 7", "more than 8 bits per channel", "save it with 8"):
        assert part in str(error.value)


def test_other_size_than_the_json_says_names_both(entry):
    entry.update(width=HEIGHT, height=WIDTH)
    with pytest.raises(DatasetError) as error:
        DetrDatasetMapper([], None)(entry)
    for part in ("image.png", "image id 7", "is 40 x 20", "says 20 x 40", "correct width"):
        assert part in str(error.value)


def test_an_image_larger_than_the_json_says_is_not_decoded(tmp_path):
    """It could have more pixels than there is memory. This one has none: decoding would fail."""
    entry = write_image(tmp_path / "image.png", np.zeros((900, 800, 3), np.uint8))
    header = (tmp_path / "image.png").read_bytes()[:60]
    (tmp_path / "image.png").write_bytes(header)
    with pytest.raises(CorruptImageError, match="is 800 x 900 pixels .* but the json says 40 x 20"):
        DetrDatasetMapper([], None)({**entry, "width": WIDTH, "height": HEIGHT})
    with pytest.raises(CorruptImageError, match="cannot be read"):
        DetrDatasetMapper([], None)(entry)


def test_unknown_format_is_refused():
    with pytest.raises(ValueError, match="unknown img_format 'RBG'"):
        DetrDatasetMapper([], None, img_format="RBG")


@pytest.mark.parametrize("mask_on", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_samples_are_detectron2s(seed, mask_on, train_records):
    _, augmentation = reference_augmentations()
    boxes = [
        annotation(
            [10.3, 40.7, 120.1, 99.9], 3, segmentation=[[10.3, 40.7, 130.4, 41.0, 50, 140.6]]
        ),
        {**annotation([3.0, 4.0, 300.0, 200.0], 5), "bbox_mode": BoxMode.XYXY_ABS},
        annotation([11, 12, 13, 14], 7, iscrowd=1),
    ]
    boxes[1]["segmentation"] = [[3, 4, 300, 4, 300, 200, 3, 200]]
    augmentation = [*augmentation[:2], augmentation[3]]  # polygons are cropped with shapely
    theirs_mapper = DatasetMapper(
        True, augmentations=augmentation, image_format="RGB", use_instance_mask=mask_on
    )
    ours_mapper = DetrDatasetMapper(augmentation, None, mask_on=mask_on)
    for record in train_records:
        record = {**record, "annotations": boxes}
        np.random.seed(seed)
        theirs = theirs_mapper(record)
        np.random.seed(seed)
        ours = ours_mapper(record)
        assert torch.equal(ours["image"], theirs["image"])
        assert len(ours["instances"]) == 2
        for field, value in theirs["instances"].get_fields().items():
            mine = ours["instances"].get(field)
            if field == "gt_masks":
                for a, b in zip(mine.polygons, value.polygons, strict=True):
                    np.testing.assert_array_equal(a, b)
            else:
                tensors = (x.tensor if field == "gt_boxes" else x for x in (mine, value))
                assert torch.equal(*tensors)
