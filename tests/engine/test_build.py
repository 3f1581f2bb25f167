"""Parts of a run that are built otherwise than the config says."""

import pytest
import torch
import torch.distributed as dist
from detectron2.config import LazyCall as L
from detectron2.layers import FrozenBatchNorm2d, NaiveSyncBatchNorm
from torch import nn

from aligndetr.data import build_detection_test_loader
from aligndetr.engine import build, create_ddp_model
from aligndetr.engine.build import build_evaluation
from tests.engine.resumable import Augment, images
from tests.engine.stand_in import MeanBrightness, StandIn, stand_in_config, three_batches


class OfSomeImages(MeanBrightness):
    def evaluate(self, img_ids=None):
        return {**super().evaluate(), "img_ids": img_ids}


@pytest.mark.parametrize(("rehearsal", "ids"), [(True, [0, 1, 2, 3]), (False, None)])
def test_a_fast_dev_run_is_evaluated_on_the_first_images_alone(rehearsal, ids):
    cfg = stand_in_config("unused", fast_dev_run={"enabled": rehearsal})
    cfg.dataloader.evaluator = L(OfSomeImages)()
    cfg.dataloader.test = L(build_detection_test_loader)(
        dataset=L(images)(), mapper=L(Augment)(), batch_size=2
    )
    loader, evaluator = build_evaluation(cfg)
    found = [image["image_id"] for batch in loader for image in batch]
    assert found == list(range(4 if rehearsal else 11))
    evaluator.reset()
    evaluator.process([], [{"brightness": torch.ones(())}])
    assert evaluator.evaluate()["img_ids"] == ids


@pytest.fixture
def one_of_two(monkeypatch):
    """A process group of this process alone, which is told that there are two."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    monkeypatch.setattr(build.comm, "get_world_size", lambda: 2)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_of_two")
def test_gradients_may_travel_as_halves():
    gradients = []
    for options in ({}, {"fp16_compression": True}):
        torch.manual_seed(0)
        model = create_ddp_model(StandIn(), **options)
        sum(model(three_batches()[0]).values()).backward()
        gradients.append([p.grad for p in model.parameters()])
    for full, half in zip(*gradients, strict=True):
        assert torch.equal(half, full.half().float())
    assert not all(torch.equal(full, half) for full, half in zip(*gradients, strict=True))


class WithBatchNorm(StandIn):
    def __init__(self, norm):
        super().__init__()
        self.norm = norm


@pytest.mark.usefixtures("one_of_two")
@pytest.mark.parametrize(
    ("norm", "broadcast_buffers"),
    [
        (nn.BatchNorm2d(2), True),
        (NaiveSyncBatchNorm(2), False),
        (nn.BatchNorm2d(2, track_running_stats=False), False),
        (FrozenBatchNorm2d(2), False),
    ],
)
def test_norms_that_stay_the_same_in_all_processes(norm, broadcast_buffers):
    create_ddp_model(WithBatchNorm(norm), broadcast_buffers=broadcast_buffers)


@pytest.mark.usefixtures("one_of_two")
def test_a_batch_norm_that_would_differ_between_processes_is_refused():
    with pytest.raises(ValueError, match=r"`norm` is a BatchNorm.*train\.ddp\.broadcast_buffers"):
        create_ddp_model(WithBatchNorm(nn.BatchNorm2d(2)), broadcast_buffers=False)
