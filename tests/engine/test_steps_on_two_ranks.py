"""Two processes: a step over micro-batches equals one batch, and one bad rank stops all."""

import json
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from detectron2.utils import comm

from aligndetr.data import CorruptImages, DatasetError
from aligndetr.data.corrupt_images import NOTE
from aligndetr.engine import NonFiniteLossError, create_ddp_model, launch
from tests.builders import golden_tiny_model, random_batch
from tests.engine.test_bad_steps import (
    TROUBLES,
    gradient_is_nan,
    loss_is_nan,
    make_trainer,
    only_for,
    prediction_is_nan,
    reports,
)
from tests.engine.test_grad_accumulation import SIZES, assert_same_step, one_step

COUNTS = [0, 0, 2, 3]  # rank 0 has no object at all


def accumulate(folder):
    rank = comm.get_rank()
    batch = random_batch(SIZES, COUNTS)[2 * rank : 2 * rank + 2]
    model = create_ddp_model(golden_tiny_model(dn_number=0))
    synchronised = []
    model.register_forward_pre_hook(
        lambda ddp, _: synchronised.append(ddp.require_backward_grad_sync)
    )
    losses, gradients = one_step(model, [[x] for x in batch], grad_accum_steps=2)
    assert synchronised == [False, True]  # gradients travel once per step
    torch.save(gradients, f"{folder}/gradients{rank}.pth")
    if rank == 0:
        Path(folder, "losses.json").write_text(json.dumps(losses))


def leave_out_bad_steps(folder):
    rank = comm.get_rank()  # rank 1 has the odd images
    for trouble in TROUBLES:
        trainer = make_trainer(only_for(trouble, 5), Path(folder, trouble.__name__), 4)
        trainer.train(0, 4)
        moved = [not torch.equal(a, b) for a, b in zip(trainer.seen, trainer.seen[1:])]
        assert moved == [True, False, True], (trouble, moved)
        torch.save(trainer.model.module.state_dict(), f"{folder}/{trouble.__name__}{rank}.pth")
    # With several micro-batches, the first of them at fault: the last ones still meet.
    trainer = make_trainer(only_for(prediction_is_nan, 9), folder, 4, grad_accum_steps=2)
    trainer.train(0, 3)
    assert trainer.bad_steps.total == 1
    trainer = make_trainer(only_for(loss_is_nan, 5, 9), f"{folder}/in_a_row", 4, max_bad_steps=2)
    with pytest.raises(NonFiniteLossError, match="rank 1") as caught:
        trainer.train(0, 6)
    Path(folder, f"error{rank}").write_text(str(caught.value))


def share_corrupt_images(folder):
    counter = CorruptImages(0.5, folder)
    note = {"image_id": 7, "file_name": "7.png", "error": "broken", "images": 3}
    counter.take_notes([{NOTE: [note]}] if comm.get_rank() == 1 else [{}])
    counter.share()
    assert list(counter.found) == ["7.png"]
    counter.take_notes([{NOTE: [{**note, "file_name": f"8{comm.get_rank()}.png"}]}])
    with pytest.raises(DatasetError, match="3 of 3 training images"):
        counter.share()


def all_that_needs_two_ranks(folder):
    share_corrupt_images(folder)
    accumulate(folder)
    leave_out_bad_steps(folder)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two_ranks")
    timeout = timedelta(seconds=300)
    launch(all_that_needs_two_ranks, 2, args=(str(folder),), device="cpu", timeout=timeout)
    return folder


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda f: f.__name__)
def test_one_bad_rank_keeps_all_from_stepping(two_ranks, trouble):
    weights = [
        torch.load(two_ranks / f"{trouble.__name__}{rank}.pth", weights_only=True)
        for rank in range(2)
    ]
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name])
    [report] = reports(two_ranks / trouble.__name__)
    assert report["iteration"] == 1
    everyone = trouble is gradient_is_nan  # the gradients are shared, nobody's alone
    assert [rank["rank"] for rank in report["ranks"]] == ([0, 1] if everyone else [1])


def test_too_many_in_a_row_end_all_ranks_with_one_report(two_ranks):
    assert (two_ranks / "error0").read_text() == (two_ranks / "error1").read_text()
    assert [report["in_a_row"] for report in reports(two_ranks / "in_a_row")] == [1, 2]


def test_two_ranks_of_two_micro_batches_equal_one_batch(two_ranks):
    expected = one_step(golden_tiny_model(dn_number=0), [random_batch(SIZES, COUNTS)])
    losses = json.loads((two_ranks / "losses.json").read_text())
    for rank in range(2):
        gradients = torch.load(two_ranks / f"gradients{rank}.pth", weights_only=True)
        assert_same_step((losses, gradients), expected)
