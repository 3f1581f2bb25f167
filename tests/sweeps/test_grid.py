"""A sweep's runs: every combination once, under names that a folder can have."""

import argparse

import pytest

from aligndetr.cli.parsing import config_file, move_overrides
from aligndetr.shipped import is_override
from aligndetr.sweeps import expand, expand_words

DEMO = "projects/aligndetr/configs/aligndetr_demo.py"
FINETUNE = "projects/aligndetr/configs/finetune.py"


def names(*overrides, config_files=(DEMO,)):
    return [run.name for run in expand(config_files, overrides)]


def test_every_combination_the_last_key_fastest():
    runs = expand(
        [DEMO, FINETUNE], ["model.criterion.tau=1.5,3", "train.seed=0,1", "train.max_iter=9"]
    )
    assert [run.name for run in runs] == [
        f"{config}__tau={tau}__seed={seed}"
        for config in ("aligndetr_demo", "finetune") for tau in ("1.5", "3") for seed in "01"
    ]  # fmt: skip
    assert runs[1].config_file == DEMO
    assert runs[1].overrides == ("model.criterion.tau=1.5", "train.seed=1", "train.max_iter=9")


def test_runs_that_differ_in_the_seed_alone_are_one_experiment():
    runs = expand([DEMO], ["train.seed=0,1,2", "model.criterion.tau=1.5,3"])
    assert [run.experiment for run in runs] == [
        "aligndetr_demo__tau=1.5",
        "aligndetr_demo__tau=3",
    ] * 3


def test_a_key_with_one_value_is_not_in_the_name():
    assert names("train.max_iter=9") == ["aligndetr_demo"]
    assert names() == ["aligndetr_demo"]


def test_lists_ranges_and_choices_are_hydras():
    assert names("model.criterion.match_num=[1,1,1,1],[2,2,2,1]") == [
        "aligndetr_demo__match_num=_1_1_1_1",
        "aligndetr_demo__match_num=_2_2_2_1",
    ]
    assert names("train.seed=range(0,3)") == [f"aligndetr_demo__seed={i}" for i in range(3)]
    assert names("model.criterion.class_loss=choice(focal,ia_bce)")[0].endswith("class_loss=focal")


def test_files_and_overrides_of_a_command_line_stand_in_any_order():
    runs = expand_words(["train.seed=0,1", DEMO, "train.max_iter=9", FINETUNE])
    assert runs == expand([DEMO, FINETUNE], ["train.seed=0,1", "train.max_iter=9"])


def test_shipped_configs_go_by_their_names():
    runs = expand_words(
        ["ladder/demo_1_dino", "aligndetr_k=2_r50_4scale_12ep", "train.seed=0"], config_file
    )
    assert [run.name for run in runs] == ["demo_1_dino", "aligndetr_k=2_r50_4scale_12ep"]
    with pytest.raises(ValueError, match="'demo_9' is no file and no shipped config"):
        expand_words(["demo_9"], config_file)


PROB = "dataloader.train.mapper.augmentation[0].prob"


def test_an_element_of_a_list_is_a_key():
    (run,) = expand_words([DEMO, f"{PROB}=0.25"], config_file)
    assert run.overrides == (f"{PROB}=0.25",)
    runs = expand_words([f"{PROB}=0.25,0.75", DEMO], config_file)
    assert [run.name for run in runs] == ["aligndetr_demo__prob=0.25", "aligndetr_demo__prob=0.75"]
    assert runs[1].overrides == (f"{PROB}=0.75",)


WORDS = [
    ("train.seed=0,1", True),
    ("dataloader.train.mapper.augmentation[2].angle=[0,90]", True),
    ("dataloader.train.mapper.augmentation.2.angle=[0,90]", True),
    ("model.criterion.match_num[0]=2", True),
    ("aligndetr_k=2_r50_4scale_12ep", False),
    ("configs/v1.2/k=2.py", False),
    ("train.seed", False),
]


@pytest.mark.parametrize(("word", "expected"), WORDS)
def test_a_sweep_and_the_other_programs_know_an_override_by_the_same_form(word, expected):
    assert is_override(word) is expected
    args = argparse.Namespace(input=["a.jpg", word], opts=[])
    move_overrides(args, "input")
    assert (args.opts == [word]) is expected


def test_a_list_alone_is_one_value():
    (run,) = expand([DEMO], ["model.criterion.match_num=[2,2,2,1]"])
    assert run.overrides == ("model.criterion.match_num=[2,2,2,1]",)


def test_what_hydra_cannot_read_is_text_as_on_every_command_line():
    (run,) = expand([DEMO], ["dataset.root=data/k=2 (new), #1"])
    assert run.overrides == ("dataset.root=data/k=2 (new), #1",)


def test_keys_that_end_alike_are_written_out():
    overrides = ["model.criterion.alpha=0.2,0.3", "model.criterion.matcher.alpha=0.2,0.3"]
    assert names(*overrides)[1] == (
        "aligndetr_demo__model.criterion.alpha=0.2__model.criterion.matcher.alpha=0.3"
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.criterion.tua=1,2"], "tua"),
        (["train.seed"], "key=value"),
        (["train.output_dir=x"], "--output"),
        (["train.seed=1,1"], "several runs would be called"),
        (["model.criterion.tau=true,false"], "model.criterion.tau"),
    ],
)
def test_mistakes_show_before_anything_is_trained(overrides, message):
    with pytest.raises(ValueError, match=message):
        expand([DEMO], overrides)


def test_a_run_writes_to_its_own_folder(tmp_path):
    (run,) = expand([DEMO], ["train.seed=3"])
    assert run.complete_overrides(tmp_path / run.name) == [
        "train.seed=3", f"train.output_dir={(tmp_path / 'aligndetr_demo').as_posix()}"
    ]  # fmt: skip
