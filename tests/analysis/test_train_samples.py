"""What is drawn is what the loader gives, beside the entry of the data set that it was made of."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image

from aligndetr.analysis.train_samples import draw_sample, train_samples, write_train_samples
from aligndetr.config import apply_overrides, load_config
from tests.data.coco_json import COCO_TINY

CONFIG = Path(__file__).parents[2] / "projects/aligndetr/configs/aligndetr_demo.py"


def config(*options):
    """Of the demo, whose augmentations are many, on two images of COCO."""
    common = [
        f"dataset.root={COCO_TINY}",
        "dataset.train_short_edges=[96]",
        "dataset.max_size=128",
        "dataloader.train.total_batch_size=2",
        "train.seed=5",
    ]
    return apply_overrides(load_config(CONFIG), [*common, *options])


def test_samples_are_the_loaders_own_in_its_order():
    ours = train_samples(config())
    for batch in (batch for batch, _ in zip(instantiate(config().dataloader.train), range(3))):
        for expected in batch:
            sample = next(ours)
            assert sample["file_name"] == expected["file_name"]
            assert torch.equal(sample["image"], expected["image"])
            boxes = (s["instances"].gt_boxes.tensor for s in (sample, expected))
            assert torch.equal(*boxes)
            assert sample["record"]["file_name"] == expected["file_name"]
            assert sample["record"]["annotations"]


def test_a_folder_gets_a_file_per_image_and_a_png_all(tmp_path):
    files = write_train_samples(config(), tmp_path / "samples", count=3, edge=120)
    assert [path.name[:5] for path in files] == ["0000_", "0001_", "0002_"]
    assert sorted(files) == sorted((tmp_path / "samples").iterdir())
    (sheet,) = write_train_samples(config(), tmp_path / "all.png", count=3, edge=120)
    with Image.open(sheet) as picture, Image.open(files[0]) as one:
        assert picture.width > 2 * one.width
        assert picture.height > 2 * one.height  # two rows for three


@pytest.mark.parametrize("img_format", ["RGB", "BGR"])
def test_colours_and_boxes_are_where_they_belong(tmp_path, img_format):
    red = np.zeros((10, 20, 3), np.uint8)
    red[..., 0] = 200
    Image.fromarray(red).save(tmp_path / "red.png")
    annotation = {"bbox": [2, 2, 6, 6], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    record = {"file_name": str(tmp_path / "red.png"), "annotations": [annotation]}
    instances = Instances((20, 40))  # twice as large, and flipped
    instances.gt_boxes = Boxes(torch.tensor([[24.0, 4.0, 36.0, 16.0]]))
    instances.gt_classes = torch.tensor([0])
    channels = red if img_format == "RGB" else red[..., ::-1]
    image = torch.from_numpy(channels.repeat(2, 0).repeat(2, 1)).permute(2, 0, 1)
    sample = {"image": image, "instances": instances}
    picture = np.asarray(draw_sample(record, sample, ["tree"], img_format, edge=200))
    before, after = picture[-100:, :200], picture[-100:, -200:]
    for pixels, left, top, right in ((before, 20, 20, 80), (after, 120, 20, 180)):
        assert pixels[50, (left + right) // 2].tolist() == [200, 0, 0]
        for y, x in ((50, left), (50, right), (top, (left + right) // 2)):
            assert pixels[y, x].tolist() != [200, 0, 0], (y, x)


def test_what_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.png, or be a folder"):
        write_train_samples(config(), tmp_path / "all.txt")
    with pytest.raises(ValueError, match=r"\(=0\) must be at least 1"):
        write_train_samples(config(), tmp_path / "all.png", count=0)
