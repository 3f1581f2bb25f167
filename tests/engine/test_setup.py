"""What a run is refused for, before anything is built."""

import json
from contextlib import nullcontext

import pytest
import torch
from omegaconf import OmegaConf

from aligndetr.data import DatasetError
from aligndetr.engine import check_run, setup
from aligndetr.engine.checks import check_batch_size, check_device
from aligndetr.engine.setup import complete_config, rank_seed, settle_seed
from tests.engine.stand_in import arguments, stand_in_config


@pytest.fixture
def cfg(tmp_path):
    return stand_in_config(tmp_path / "output")


@pytest.fixture
def own_data(cfg, tmp_path):
    """The config with a train and a val json of three classes."""
    categories = [{"id": 3 * i, "name": name} for i, name in enumerate("abc", start=1)]
    image = {"id": 1, "file_name": "1.png", "width": 8, "height": 8}
    (tmp_path / "1.png").touch()  # looked for, not read
    box = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0}
    content = {"images": [image], "annotations": [box], "categories": categories}
    for split, loader in (("train", "train"), ("val", "test")):
        path = tmp_path / f"{split}.json"
        path.write_text(json.dumps(content))
        cfg.dataloader[loader].dataset = {
            "names": {
                "_target_": "aligndetr.data.register_dataset",
                "split": split,
                "json_file": str(path),
                "image_root": str(tmp_path),
            }
        }
    cfg.model.num_classes = 80
    return cfg


def test_a_sound_run_passes_and_writes_nothing(cfg, tmp_path):
    check_run(cfg, arguments())
    assert not (tmp_path / "output").exists()


def test_a_config_that_lacks_a_part_is_told_which(cfg):
    cfg.dataloader.train.seed = "${dataset.seed}"  # as the shipped data refers to it
    del cfg.lr_multiplier
    with pytest.raises(ValueError, match="no `lr_multiplier` and no `dataset`, .* optimizer"):
        check_run(cfg, arguments())


@pytest.mark.parametrize("part", ["train", "model", "dataloader.test", "lr_multiplier"])
def test_a_part_that_is_null_is_named(cfg, part):
    OmegaConf.update(cfg, part, None)
    with pytest.raises(ValueError, match=rf"the config has no `{part}`, or it is null; "):
        check_run(cfg, arguments())


def test_a_part_of_the_model_that_lacks_an_argument_is_named(cfg):
    head = {"_target_": "torch.nn.Linear", "in_features": 4}
    cfg.model = {"_target_": "torch.nn.Identity", "head": head}
    with pytest.raises(ValueError, match=r"`model\.head` lacks `out_features`, which Linear needs"):
        check_run(cfg, arguments())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.tau", 3, "`model` has `tau`, which StandIn does not take; take it out"),
        ("model", {"_target_": "torch.nn.Identity",
                   "head": {"_target_": "torch.nn.Linear", "in_feature": 4, "out_features": 3}},
         r"`model\.head` has `in_feature`, which Linear .*`model\.head\.in_features`\?"),
        ("optimizer._target_", "torch.optim.SGD",
         r"`optimizer` has `betas`, which SGD does not take; .* optimizer=\{_target_"),
        ("optimizer.params.lr_factor_func.factors", 3, r"did you mean .*_func\.factor`\?"),
        ("lr_multiplier.milestone", [3], r"did you mean `lr_multiplier\.milestones`\?"),
        ("dataloader.train.poisoned", 3, r"did you mean `dataloader\.train\.poisoned_id`\?"),
        ("dataloader.test.total_batchsize", 3, r"`dataloader\.test\.total_batch_size`\?"),
        ("dataloader.evaluator.tasks", [], "`dataloader.evaluator` has `tasks`, which Mean"),
    ],
)  # fmt: skip
def test_arguments_that_a_part_does_not_take_are_named(cfg, key, value, message):
    OmegaConf.update(cfg, key, value, merge=False, force_add=True)
    with pytest.raises(ValueError, match=message):
        check_run(cfg, arguments())


def test_arguments_that_keywords_take_pass(cfg):
    cfg.model = {"_target_": "torch.nn.Identity", "anything": 3}
    check_run(cfg, arguments())


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_cuda_without_gpu_names_the_remedy(cfg):
    cfg.train.device = "cuda"
    with pytest.raises(ValueError, match=r"no GPU.*train\.device=cpu"):
        check_run(cfg, arguments())


@pytest.mark.parametrize("device", ["gpu", "cudaa", ""])
def test_unknown_device_is_refused(device):
    with pytest.raises(ValueError, match="train.device"):
        check_device(device, 1)


def test_no_process_is_refused():
    with pytest.raises(ValueError, match="--num-gpus"):
        check_device("cpu", 0)


@pytest.mark.parametrize(
    ("device", "num_processes", "message"),
    [
        ("cuda", 3, r"--num-gpus \(=3\) is more than the 2 GPUs of this machine"),
        ("cuda:1", 2, r"`train.device` \(='cuda:1'\) names one GPU, but --num-gpus is 2"),
        ("cuda", 2, None),
        ("cuda:1", 1, None),
    ],
)
def test_the_gpus_of_a_machine_are_counted(device, num_processes, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=message) if message else nullcontext():
        check_device(device, num_processes)


@pytest.mark.parametrize(
    ("batch_size", "world_size", "nearest"),
    [(6, 4, "4 or 8"), (3, 4, "4"), (0, 2, "2"), (-1, 1, "1")],
)
def test_batch_size_that_does_not_divide_names_the_nearest(batch_size, world_size, nearest):
    with pytest.raises(ValueError, match=rf"\(={batch_size}\).*nearest valid: {nearest}$"):
        check_batch_size(batch_size, world_size)


def test_batch_size_is_for_all_machines_together(cfg):
    with pytest.raises(ValueError, match="number of processes \\(6\\)"):
        check_run(cfg, arguments(num_gpus=2, num_machines=3))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_iter", 2.5), ("max_iter", 0), ("max_iter", -5), ("max_iter", None),
        ("log_period", 0), ("eval_period", -1), ("seed", None), ("seed", True),
        ("checkpointer.period", -1), ("checkpointer.max_to_keep", 0),
        ("output_dir", ""), ("output_dir", None), ("device", None), ("device", ""),
        ("max_corrupt_share", 1.5), ("max_corrupt_share", True), ("deterministic", 1),
        ("checkpointer.best_metric", "AP"), ("checkpointer.best_metric", 50),
    ],
)  # fmt: skip
def test_train_keys_out_of_range_are_named_with_their_value(cfg, key, value):
    OmegaConf.update(cfg.train, key, value)
    with pytest.raises(ValueError, match=rf"`train\.{key}` \(={value!r}\) must be"):
        check_run(cfg, arguments())


def test_batch_size_is_a_whole_number(cfg):
    cfg.dataloader.train.total_batch_size = 2.5
    with pytest.raises(ValueError, match=r"total_batch_size` \(=2\.5\) must be a whole number$"):
        check_run(cfg, arguments())


@pytest.mark.parametrize("name", ["model_0000009.pth", "last_checkpoint"])
def test_overwriting_checkpoints_is_refused(cfg, tmp_path, name):
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / name).write_text("precious")
    with pytest.raises(FileExistsError, match=r"--resume.*another train\.output_dir"):
        check_run(cfg, arguments())
    check_run(cfg, arguments(resume=True))
    assert (tmp_path / "output" / name).read_text() == "precious"


@pytest.mark.parametrize("resume", [False, True])
def test_a_fast_dev_run_is_kept_from_the_checkpoints_of_a_training(cfg, tmp_path, resume):
    """Its config.yaml would mark them as its own, which the next start deletes."""
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "last_checkpoint").touch()
    (tmp_path / "output" / "config.yaml").write_text("train: {fast_dev_run: {enabled: false}}")
    cfg.train.fast_dev_run.enabled = True
    with pytest.raises(FileExistsError, match=r"another train\.output_dir for a fast_dev_run$"):
        check_run(cfg, arguments(resume=resume))
    (tmp_path / "output" / "config.yaml").write_text("train: {fast_dev_run: {enabled: true}}")
    check_run(cfg, arguments(resume=resume))  # those of another fast_dev_run are free


def test_checkpoints_beside_a_config_that_nobody_can_read_are_no_rehearsals(cfg, tmp_path):
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "last_checkpoint").touch()
    (tmp_path / "output" / "config.yaml").write_text("train: [")
    with pytest.raises(FileExistsError, match="holds checkpoints"):
        check_run(cfg, arguments())


def test_missing_checkpoint_is_refused(cfg):
    cfg.train.init_checkpoint = "nowhere/model.pth"
    with pytest.raises(FileNotFoundError, match=r"'nowhere/model\.pth'.*train\.init_checkpoint"):
        check_run(cfg, arguments())


def test_unknown_scheme_is_refused(cfg):
    cfg.train.init_checkpoint = "detectron3://model.pth"
    with pytest.raises(ValueError, match="detectron3"):
        check_run(cfg, arguments())


def test_resumed_run_does_not_need_its_initial_checkpoint(cfg, tmp_path):
    cfg.train.init_checkpoint = "nowhere/model.pth"
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "last_checkpoint").touch()
    check_run(cfg, arguments(resume=True))


def test_evaluation_needs_weights(cfg):
    with pytest.raises(ValueError, match=r"train\.init_checkpoint=path"):
        check_run(cfg, arguments(eval_only=True))


def test_number_of_classes_follows_the_data(own_data):
    complete_config(own_data, arguments())
    assert own_data.model.num_classes == 3


@pytest.mark.parametrize("override", ["model.num_classes=80", "model={num_classes: 80}"])
def test_number_of_classes_chosen_by_an_override_must_be_the_datas(own_data, override):
    with pytest.raises(DatasetError, match=r"model\.num_classes is 80.*3 classes"):
        complete_config(own_data, arguments(opts=[override]))


def test_chosen_number_of_classes_must_be_the_datas(own_data):
    own_data.model.num_classes = 5
    with pytest.raises(DatasetError, match=r"model\.num_classes is 5.*set model\.num_classes=3"):
        complete_config(own_data, arguments())
    own_data.model.num_classes = 3
    complete_config(own_data, arguments(opts=["model.num_classes=3"]))


def test_evaluation_does_not_need_the_train_data(own_data, tmp_path):
    (tmp_path / "train.json").unlink()
    complete_config(own_data, arguments(eval_only=True))
    assert own_data.model.num_classes == 3
    with pytest.raises(DatasetError, match="train.json"):
        complete_config(own_data, arguments())


def test_fast_dev_run_is_short(cfg):
    cfg.train.fast_dev_run.enabled = True
    complete_config(cfg, arguments())
    assert (cfg.train.max_iter, cfg.train.eval_period, cfg.train.log_period) == (20, 10, 1)


def test_a_fast_dev_run_saves_once_where_the_period_is_left_open(cfg):
    cfg.train.fast_dev_run.enabled = True
    cfg.train.checkpointer.period = None  # a tenth of 20 otherwise: ten files of R-50's size
    check_run(cfg, arguments())
    assert cfg.train.checkpointer.period == 20


@pytest.mark.parametrize("same", [True, False])
def test_results_that_go_to_another_folder_are_said(same, cfg, tmp_path):
    folder = f"{tmp_path}/./output" if same else str(tmp_path / "other")
    cfg.dataloader.evaluator = {
        "_target_": "aligndetr.evaluation.COCOEvaluator",
        "output_dir": folder,
    }
    setup(cfg, arguments())
    log = (tmp_path / "output" / "log.txt").read_text()
    assert (f"`dataloader.evaluator.output_dir` (={folder!r})" in log) != same


def test_a_fast_dev_run_has_a_warm_up_that_fits(cfg):
    cfg.train.fast_dev_run.enabled = True
    cfg.lr_multiplier = {"_target_": "aligndetr.engine.cosine_lr", "warmup_iters": 500}
    complete_config(cfg, arguments())
    assert cfg.lr_multiplier.warmup_iters < cfg.train.max_iter


def test_resumed_run_gets_another_seed(cfg):
    assert rank_seed(cfg) == 3
    assert rank_seed(cfg, start_iter=100) != 3
    cfg.train.seed = -1
    assert rank_seed(cfg, start_iter=100) is None


def test_a_drawn_seed_stays_that_of_the_run(cfg, tmp_path):
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "config.yaml").write_text("train: {seed: 1234567}")
    cfg.train.seed = -1
    settle_seed(cfg, resume=True)
    assert cfg.train.seed == 1234567
    cfg.train.seed = -1
    settle_seed(cfg)
    assert cfg.train.seed != 1234567
