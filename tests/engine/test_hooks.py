"""What is shown while a run goes on."""

import logging

from detectron2.utils.events import EventStorage

from aligndetr.engine.hooks import ConsolePrinter, CurvesPlotter, shown_losses

LOSSES = ["loss_class", "loss_class_0", "loss_class_enc", "loss_bbox", "loss_bbox_dn", "total_loss"]


def test_line_shows_last_layer_ap_memory_and_eta(caplog):
    with EventStorage(start_iter=9) as storage, caplog.at_level(logging.INFO):
        storage.put_scalars(**dict.fromkeys(LOSSES, 1.5), time=2.0)
        storage.put_scalars(
            **{"bbox/AP": 12.345, "lr": 1e-4, "host_mem_mb": 812.0}, smoothing_hint=False
        )
        ConsolePrinter(max_iter=100).write()
    assert caplog.messages == [
        "eta: 0:03:00  iter: 10/100  total_loss: 1.5  loss_class: 1.5  loss_bbox: 1.5  AP: 12.35  "
        "time: 2.000 s  lr: 0.0001  host_mem: 812 MB"
    ]


def test_losses_of_other_layers_are_not_shown():
    with EventStorage() as storage:
        storage.put_scalars(**dict.fromkeys(LOSSES, 1.0))
        assert shown_losses(storage) == ["total_loss", "loss_class", "loss_bbox"]


def test_a_picture_that_fails_does_not_fail_the_run(tmp_path, caplog):
    CurvesPlotter(str(tmp_path)).after_train()  # no metrics.json there
    assert "could not draw" in caplog.text
