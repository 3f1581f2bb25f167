"""Predictor: the boxes that `--eval-only` evaluates, from a checkpoint and nothing else."""

import json
import logging
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from omegaconf import OmegaConf
from PIL import Image

from aligndetr.checkpoint import Checkpointer, CheckpointError
from aligndetr.config import apply_overrides, config_to_yaml, load_config
from aligndetr.engine import build_model
from aligndetr.engine.build import build_evaluation
from aligndetr.evaluation import evaluate
from aligndetr.inference import Predictor
from aligndetr.layers import set_default_backend
from aligndetr.layers.ms_deform_attn.functional import choose_backend
from tests.data.coco_json import COCO_TINY
from tests.inference.small_checkpoint import CONFIG, NAMES, SMALL_IMAGES, save_trained, small_model
from tests.own_detections import write_val_set

ROOT = Path(__file__).parents[2]
SMALL = [*SMALL_IMAGES, "model.select_box_nums_for_evaluation=30"]
IMAGES = sorted(COCO_TINY.glob("train/*.jpg")) + sorted(COCO_TINY.glob("val/*.jpg"))


class Averaged:
    """Stands in for ModelEMA: other weights of the same model."""

    def __init__(self, model):
        self.model = model

    def state_dict(self):
        return {name: tensor * 0.5 for name, tensor in self.model.state_dict().items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds model_final.pth with averaged weights, config and names; bare.pth with weights only."""
    folder = tmp_path_factory.mktemp("predictor")
    model, cfg = small_model(SMALL)
    save_trained(model, cfg, folder, ema_state=Averaged(model))
    (folder / "bare").mkdir()
    torch.save(dict(model.state_dict()), folder / "bare" / "bare.pth")
    return folder


@pytest.fixture(scope="module")
def predictor(folder):
    return Predictor.from_checkpoint(folder / "model_final.pth", device="cpu")


def test_a_model_that_is_looked_at_can_go_on_training(predictor):
    model = torch.nn.Linear(2, 1).train()
    around = Predictor(model, predictor.mapper, NAMES)
    assert not around.model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.fixture(scope="module")
def data(folder, predictor):
    """A data set whose objects are a part of what the model finds, some of them moved a little."""
    root = folder / "data"
    write_val_set(root, predictor, IMAGES, NAMES)
    return root


def evaluate_only(folder, data, out):
    """AP and results as `--eval-only` gets them."""
    options = [*SMALL, f"dataset.root={data}", f"train.output_dir={out}"]
    cfg = apply_overrides(load_config(CONFIG), options)
    set_default_backend(cfg.train.ms_deform_attn, "cpu")  # as `setup` does
    model = build_model(cfg)
    Checkpointer(model).load(str(folder / "model_final.pth"), checkpointables=[])
    metrics = evaluate(model, *build_evaluation(cfg), NAMES)["bbox"]
    return cfg, metrics, json.loads((out / "coco_instances_results.json").read_text())


def test_ap_is_that_of_eval_only_to_every_digit(folder, data, predictor, tmp_path):
    cfg, metrics, results = evaluate_only(folder, data, tmp_path)
    assert 5 < metrics["AP"] < 95  # neither nothing nor all: it says something

    content = json.loads((data / "annotations" / "instances_val.json").read_text())
    paths = [data / "val" / image["file_name"] for image in content["images"]]
    ours = [
        {key: value for key, value in result.items() if key != "category_name"}
        for image, found in zip(content["images"], predictor(paths, score_threshold=0))
        for result in found.to_coco(image["id"], [c["id"] for c in content["categories"]])
    ]
    assert ours == results

    class Replay(torch.nn.Module):
        """What the predictor found, through the evaluator."""

        def forward(self, batch):
            found = predictor(batch[0]["file_name"], score_threshold=0)
            instances = Instances(found.image_size)
            instances.pred_boxes = Boxes(torch.from_numpy(found.boxes))
            instances.scores = torch.from_numpy(found.scores)
            instances.pred_classes = torch.from_numpy(found.class_ids)
            return [{"instances": instances}]

    again = evaluate(Replay(), *build_evaluation(cfg), NAMES)["bbox"]
    np.testing.assert_equal(again, metrics)  # to the last bit, and NaN is NaN


def test_every_kind_of_input_gives_the_same_boxes(predictor):
    path = IMAGES[1]
    image = Image.open(path)
    array = np.asarray(image)
    tensor = torch.tensor(array).permute(2, 0, 1)
    expected = predictor(path, 0)
    assert len(expected) == 30
    for given in (str(path), image, array, tensor, tensor / 255):
        found = predictor(given, 0)
        np.testing.assert_array_equal(found.boxes, expected.boxes)
        np.testing.assert_array_equal(found.scores, expected.scores)
    assert not np.array_equal(predictor(array[..., ::-1], 0).boxes, expected.boxes)


def test_a_list_is_answered_in_its_order_whatever_the_batch(predictor):
    images = [IMAGES[0], IMAGES[2], IMAGES[0], IMAGES[1], IMAGES[2]]
    alone = [predictor(image, 0) for image in images]
    for batch_size in (1, 2, 5):
        found = predictor(images, 0, batch_size=batch_size)
        assert [f.file_name for f in found] == [str(image) for image in images]
        for ours, expected in zip(found, alone, strict=True):
            np.testing.assert_allclose(ours.boxes, expected.boxes, rtol=1e-3, atol=0.01)


def test_a_stream_reads_no_more_than_a_batch_ahead(predictor):
    taken = []

    def images():
        for path in IMAGES:
            taken.append(path)
            yield path

    stream = predictor.stream(images())
    next(stream)
    assert len(taken) == 1


def test_the_threshold_keeps_what_reaches_it(predictor):
    everything = predictor(IMAGES[0], 0)
    threshold = float(everything.scores[10])
    certain = predictor(IMAGES[0], threshold)
    assert 10 < len(certain) == (everything.scores >= threshold).sum() < 30
    assert certain.scores.min() == everything.scores[10]


def test_boxes_are_in_pixels_of_the_image_as_exif_turns_it(predictor, tmp_path):
    upright = Image.open(IMAGES[1])
    lying = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 270 degrees to see it upright
    lying.save(tmp_path / "lying.png", exif=exif)
    upright.save(tmp_path / "upright.png")
    found, expected = predictor([tmp_path / "lying.png", tmp_path / "upright.png"], 0)
    assert found.image_size == expected.image_size == upright.size[::-1]
    np.testing.assert_array_equal(found.boxes, expected.boxes)
    assert found.plot().size == upright.size


def test_averaged_weights_by_choice(folder, predictor):
    averaged = Predictor.from_checkpoint(folder / "model_final.pth", ema=True, device="cpu")
    name, trained = next(iter(predictor.model.named_parameters()))
    torch.testing.assert_close(averaged.model.get_parameter(name), trained * 0.5)
    with pytest.raises(CheckpointError, match="holds no averaged weights.*ema=False"):
        Predictor.from_checkpoint(folder / "bare" / "bare.pth", CONFIG, overrides=SMALL, ema=True)


def test_weights_alone_need_a_config_named(folder, predictor):
    bare = folder / "bare" / "bare.pth"
    with pytest.raises(CheckpointError, match=r"holds no config.*config=…"):
        Predictor.from_checkpoint(bare)
    found = Predictor.from_checkpoint(
        bare, CONFIG, overrides=SMALL, class_names=NAMES, device="cpu"
    )
    assert found(IMAGES[0], 0).to_coco() == predictor(IMAGES[0], 0).to_coco()
    with pytest.raises(ValueError, match=r"2 `category_ids` for \d+ classes; .* in this order: "):
        predictor(IMAGES[0], 0).to_coco(category_ids=[3, 17])
    assert found.class_names == predictor.class_names == tuple(NAMES)


def test_a_config_beside_the_weights_is_found(folder, tmp_path):
    shutil.copy(folder / "bare" / "bare.pth", tmp_path)
    cfg = apply_overrides(load_config(CONFIG), SMALL)
    (tmp_path / "config.yaml").write_text(config_to_yaml(cfg))
    assert len(Predictor.from_checkpoint(tmp_path / "bare.pth", class_names=NAMES).class_names) == 3


def test_a_config_alone_says_that_the_weights_are_random(caplog):
    with caplog.at_level(logging.WARNING):
        predictor = Predictor.from_config(CONFIG, overrides=SMALL)
    assert "random weights" in caplog.text
    assert predictor.class_names == ("class_0", "class_1", "class_2")
    assert len(predictor(IMAGES[0], 0)) == 30


def test_coco_models_know_cocos_names():
    options = [option for option in SMALL if "num_classes" not in option]
    predictor = Predictor.from_config(CONFIG, overrides=[*options, "dataset.root=null"])
    assert predictor.class_names[:3] == ("person", "bicycle", "car")


def test_the_config_in_a_checkpoint_cannot_run_code(folder, tmp_path):
    content = torch.load(folder / "model_final.pth", weights_only=True)
    content["config"] = "model: {_target_: os.system, command: ls}"
    torch.save(content, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=r"os.system.* is refused"):
        Predictor.from_checkpoint(tmp_path / "evil.pth")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_names": NAMES[:2]}, "2 class names, but the model has 3 classes"),
        ({"overrides": ["model.num_classes=4"]}, "3 class names, but the model has 4"),
        ({"config": CONFIG, "overrides": [*SMALL, "model.num_classes=4"], "class_names": "abcd"},
         r"trained on 3 classes, but the config says 4; add .*model.num_classes=3"),
        ({"overrides": ["model.neck.num_outs=3"]}, "num_outs"),
        ({"device": "gpu"}, "is not a device"),
        ({"config": "no/such.py"}, "no/such.py"),
        ({"overrides": ["model.neck.kernel_size=3"]}, "does not fit the model"),
        ({"overrides": ["model.num_queries=50"]}, "does not fit the model"),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_named(change, message, folder):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Predictor.from_checkpoint(folder / "model_final.pth", **change)


def test_files_that_are_no_checkpoint_are_named(tmp_path):
    (tmp_path / "text.pth").write_text("hello")
    torch.save({"model": {"head.weight": torch.zeros(2)}}, tmp_path / "other.pth")
    with pytest.raises(FileNotFoundError, match=r"'no/such.pth' does not exist"):
        Predictor.from_checkpoint("no/such.pth")
    with pytest.raises(CheckpointError, match="text.pth' is not readable as data"):
        Predictor.from_checkpoint(tmp_path / "text.pth")
    with pytest.raises(CheckpointError, match="other.pth' does not fit the model"):
        Predictor.from_checkpoint(
            tmp_path / "other.pth", CONFIG, class_names=NAMES, overrides=SMALL
        )


def test_another_predictor_does_not_change_how_the_first_computes(folder):
    backends = ["reference", "embedding_bag"]
    predictors = [
        Predictor.from_checkpoint(
            folder / "model_final.pth", overrides=[f"train.ms_deform_attn={name}"], device="cpu"
        )
        for name in backends
    ]
    for predictor, name in zip(predictors, backends, strict=True):
        predictor(IMAGES[0])
        assert choose_backend("auto", predictor.device) == name


def test_arguments_out_of_range_are_named(predictor):
    with pytest.raises(ValueError, match="the list is empty"):
        predictor([])
    with pytest.raises(ValueError, match=r"`score_threshold` \(=30\) must be in \[0, 1\]"):
        predictor(IMAGES[0], 30)
    with pytest.raises(ValueError, match=r"`batch_size` \(=0\)"):
        predictor(IMAGES, batch_size=0)


def test_an_image_of_one_pixel_works_and_one_too_narrow_is_named(predictor):
    found = predictor(np.zeros((1, 1, 3), np.uint8), 0)
    assert (found.boxes >= 0).all()
    assert (found.boxes <= 1).all()
    with pytest.raises(ValueError, match=r"1 x 5000 pixels .* cannot be resized"):
        predictor(np.zeros((5000, 1, 3), np.uint8))


def test_what_it_is_printed_as(predictor):
    assert repr(predictor) == "Predictor(AlignDETR, 3 classes, cpu)"


def test_a_config_without_what_is_needed_is_named(folder):
    with pytest.raises(ValueError, match=r"no `model` or no `dataloader\.test\.mapper`.*training"):
        Predictor.from_checkpoint(folder / "bare" / "bare.pth", OmegaConf.create({"train": {}}))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_named(folder):
    with pytest.raises(ValueError, match="`device` is 'cuda', .* set device=\"cpu\""):
        Predictor.from_checkpoint(folder / "model_final.pth", device="cuda")


@pytest.mark.parametrize("page", ["README.md", "docs/predict.md"])
def test_the_python_of_the_docs_runs_as_printed(page, folder, tmp_path, monkeypatch):
    pytest.importorskip("supervision")
    pytest.importorskip("pandas")
    monkeypatch.chdir(tmp_path)
    for target in ("output/demo", "weights", "datasets/trees/val"):
        (tmp_path / target).mkdir(parents=True)
    shutil.copy(folder / "model_final.pth", "output/demo/model_final.pth")
    shutil.copy(folder / "bare" / "bare.pth", "weights/weights.pth")
    (tmp_path / "projects").symlink_to(ROOT / "projects")
    for name in ("x0000_y0000", "x0000_y0250"):
        Image.open(IMAGES[0]).save(f"datasets/trees/val/{name}.png")
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert blocks
    namespace = {}
    for block in blocks:
        exec(block, namespace)
    assert Image.open("found.png").size == Image.open(IMAGES[0]).size


def test_the_tool_writes_results_and_goes_on_after_a_broken_file(
    run_tool, folder, predictor, tmp_path, capsys
):
    shutil.copy(IMAGES[0], tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_text("no picture")
    out = tmp_path / "out.json"
    options = ["--checkpoint", folder / "model_final.pth", "--input", tmp_path, "--output", out]
    options += ["--device", "cpu", "--score-threshold", 0]
    assert run_tool("demo.py", *options, "model.select_box_nums_for_evaluation=7") == 1
    printed, said = capsys.readouterr()
    assert f"1 of 2 files: {out}" in printed
    assert "b.jpg' is not an image" in printed + said
    assert json.loads(out.read_text()) == predictor(tmp_path / "a.jpg", 0)[:7].to_coco()


def test_the_tool_names_a_mistake_in_one_line(run_tool, tmp_path):
    options = ["--checkpoint", "no/such.pth", "--input", IMAGES[0], "--output", tmp_path / "out"]
    said = run_tool("demo.py", *options)
    assert said.startswith("error: checkpoint 'no/such.pth' does not exist")
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_the_command_keeps_what_was_found_until_ctrl_c(
    run_tool, folder, tmp_path, monkeypatch, capsys
):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("aligndetr.inference.predict_files", interrupted)
    options = ["--checkpoint", folder / "model_final.pth", "--input", IMAGES[0], "--device", "cpu"]
    assert run_tool("demo.py", *options, "--output", tmp_path / "out.json") == 130
    assert "out.json holds what was found until then" in capsys.readouterr().err
