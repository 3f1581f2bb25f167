"""Weights for others: one file is a detector, on disk and on the Hugging Face Hub."""

import logging
import re
import shlex
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from aligndetr.checkpoint import (
    FORMATS,
    Checkpointer,
    CheckpointError,
    local_checkpoint,
    read_checkpoint,
    write_weights,
)
from aligndetr.cli import convert
from aligndetr.config import config_from_yaml, load_config
from aligndetr.engine import build_model
from aligndetr.inference import (
    Predictor,
    convert_checkpoint,
    preprocessing,
    push_to_hub,
    save_pretrained,
)
from tests.data.coco_json import COCO_TINY
from tests.inference.hub_server import HubServer
from tests.inference.small_checkpoint import NAMES, SMALL_IMAGES, save_trained, small_model

ROOT = Path(__file__).parents[2]
IMAGE = sorted(COCO_TINY.glob("val/*.jpg"))[0]
OPTIONS = [
    *SMALL_IMAGES,
    "train.output_dir=/home/me/secret",
    "dataset.root=/home/me/data",
    "model.transformer.encoder.num_layers=1",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return save_trained(*small_model(OPTIONS), tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def expected(trained):
    return Predictor.from_checkpoint(trained, device="cpu")(IMAGE, score_threshold=0)


def assert_finds_the_same(predictor, expected):
    found = predictor(IMAGE, score_threshold=0)
    np.testing.assert_array_equal(found.boxes, expected.boxes)
    np.testing.assert_array_equal(found.scores, expected.scores)
    assert predictor.class_names == tuple(NAMES)


def test_a_safetensors_file_alone_is_a_detector(trained, expected, tmp_path):
    path = tmp_path / "cats.safetensors"
    notes = convert_checkpoint(str(trained), path)
    assert notes[0].endswith("tensors of our kind")
    assert_finds_the_same(Predictor.from_checkpoint(path, device="cpu"), expected)
    names = read_checkpoint(str(path))["model"]
    assert not any(name.startswith("transformer.decoder.class_embed") for name in names)
    assert path.stat().st_mode == trained.stat().st_mode  # others may read it
    assert read_checkpoint(str(path))["preprocessing"] == {
        "channel_order": "RGB",
        "short_edge": 96,
        "max_size": 128,
        "pixel_mean": [123.675, 116.28, 103.53],
        "pixel_std": [58.395, 57.12, 57.375],
    }


def test_a_training_ends_with_the_same_file(trained, expected, tmp_path):
    content = read_checkpoint(str(trained))
    model = build_model(config_from_yaml(content["config"], source="test"))
    model.load_state_dict(content["model"])
    extra = {key: content[key] for key in ("config", "class_names")}
    Checkpointer(model, str(tmp_path), extra=extra).share("model_final")
    path = tmp_path / "model_final.safetensors"
    assert_finds_the_same(Predictor.from_checkpoint(path, device="cpu"), expected)


def test_to_mmdetection_and_back_finds_the_same_and_says_what_to_set_there(
    trained, expected, tmp_path
):
    theirs, ours = tmp_path / "theirs.pth", tmp_path / "ours.safetensors"
    _, mmdet, sizes = convert_checkpoint(str(trained), theirs, "mmdet")
    assert "align_detr-4scale_r50_8xb2-12e_coco.py --cfg-options" in mmdet
    assert " model.bbox_head.num_classes=3 " in mmdet
    assert " model.encoder.num_layers=1 " in mmdet
    assert "embed_dim=" in sizes
    config = config_from_yaml(read_checkpoint(str(trained))["config"], source="test")
    convert_checkpoint(str(theirs), ours, config=config)
    assert_finds_the_same(Predictor.from_checkpoint(ours, device="cpu"), expected)


def test_mmdetections_dino_is_converted_with_a_config_that_matches(trained, tmp_path):
    content = read_checkpoint(str(trained))
    biases = [n for n in content["model"] if n.startswith("neck.") and n.endswith(".conv.bias")]
    dino = {n: t for n, t in content["model"].items() if n not in biases}
    write_weights(tmp_path / "dino.pth", {"model": dino, "class_names": NAMES}, "mmdet")
    config = config_from_yaml(content["config"], source="test")
    output = tmp_path / "dino.safetensors"
    with pytest.raises(CheckpointError, match=r"temperature=20 model\.position_embedding\.offset"):
        convert_checkpoint(str(tmp_path / "dino.pth"), output, config=config)
    assert not output.exists()
    options = ["model.position_embedding.temperature=20", "model.position_embedding.offset=0.0"]
    convert_checkpoint(str(tmp_path / "dino.pth"), output, config=config, overrides=options)
    predictor = Predictor.from_checkpoint(output, device="cpu")
    assert predictor.model.position_embedding.temperature == 20
    assert all(not predictor.model.state_dict()[name].any() for name in biases)
    # Without a config the settings travel along, and are said.
    notes = convert_checkpoint(str(tmp_path / "dino.pth"), tmp_path / "bare.safetensors")
    assert any("model.position_embedding.temperature=20" in note for note in notes)
    with pytest.raises(CheckpointError, match="temperature=20"):
        Predictor.from_checkpoint(tmp_path / "bare.safetensors", config, device="cpu")
    # So does what mmdetection's own config says of the training.
    meta = {"meta": {"cfg": "model = dict(bbox_head=dict(tau=1.5))"}}
    torch.save(torch.load(tmp_path / "dino.pth", weights_only=True) | meta, tmp_path / "dino.pth")
    *_, said = convert_checkpoint(str(tmp_path / "dino.pth"), tmp_path / "trained.safetensors")
    assert said == "they were trained with model.criterion.tau=1.5"


def test_no_file_is_overwritten(trained, tmp_path):
    (tmp_path / "a.safetensors").write_text("precious")
    with pytest.raises(FileExistsError, match=r"a\.safetensors.*name another"):
        convert_checkpoint(str(trained), tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").read_text() == "precious"
    (tmp_path / "model.safetensors").write_text("precious")
    with pytest.raises(FileExistsError, match=r"model\.safetensors.*name another folder"):
        save_pretrained(str(trained), tmp_path)
    assert (tmp_path / "model.safetensors").read_text() == "precious"


def test_preprocessing_of_a_config_without_any():
    assert preprocessing(config_from_yaml("train: {}", source="test")) == {}


def test_a_folder_for_sharing_is_a_detector_and_tells_nothing_of_this_machine(
    trained, expected, tmp_path
):
    folder = tmp_path / "cats"
    save_pretrained(str(trained), folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "config.yaml", "model.safetensors",
    ]  # fmt: skip
    assert_finds_the_same(Predictor.from_pretrained(folder, device="cpu"), expected)
    assert "3 classes: cat, bus, cup" in (folder / "README.md").read_text()
    for path in folder.iterdir():
        assert b"/home/me" not in path.read_bytes()
    assert load_config(folder / "config.yaml").model.num_classes == 3


def test_what_others_could_not_use_is_not_shared(trained, tmp_path):
    torch.save({"model": read_checkpoint(str(trained))["model"]}, tmp_path / "bare.pth")
    with pytest.raises(ValueError, match=r"bare\.pth.*holds no config"):
        save_pretrained(str(tmp_path / "bare.pth"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A server of this process that huggingface_hub takes for the Hub, with an empty cache."""
    constants = pytest.importorskip("huggingface_hub.constants")
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    address = f"{server.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # which the page sets for its process
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_to_the_hub_and_back(trained, expected, hub):
    assert push_to_hub(str(trained), "user/cats") == f"{hub.address}/user/cats"
    assert sorted(hub.models["user/cats"]) == ["README.md", "config.yaml", "model.safetensors"]
    assert_finds_the_same(Predictor.from_pretrained("user/cats", device="cpu"), expected)
    # A fine-tuning may start from it, here from a tag.
    again = read_checkpoint(local_checkpoint("hf://user/cats@v1"))
    # The second came out of the cache; and no file but the weights was asked for.
    fetched = [r for r in hub.requests if r.startswith("GET") and "resolve" in r]
    assert fetched == ["GET /user/cats/resolve/main/model.safetensors"]
    name = "label_enc.weight"
    assert torch.equal(again["model"][name], read_checkpoint(str(trained))["model"][name])


@pytest.mark.parametrize("name", ["user/dogs", "user/cats@v9", "user/empty", "no/such/name"])
def test_a_model_that_is_not_on_the_hub_is_named(hub, name):
    hub.models |= {"user/empty": {}, "user/cats": {"model.safetensors": b"x"}}
    name, _, revision = name.partition("@")
    with pytest.raises(CheckpointError, match=rf"hf://{name}.*Expected user/model"):
        Predictor.from_pretrained(name, revision=revision or None)


def test_a_hostile_config_on_the_hub_is_refused(trained, hub, tmp_path):
    content = read_checkpoint(str(trained))
    content["config"] = content["config"].replace(
        "_target_: projects.aligndetr.modeling.AlignDETR", "_target_: os.system", 1
    )
    write_weights(tmp_path / "evil.safetensors", content, "safetensors")
    hub.models["user/evil"] = {"model.safetensors": (tmp_path / "evil.safetensors").read_bytes()}
    with pytest.raises(ValueError, match=r"os\.system"):
        Predictor.from_pretrained("user/evil", device="cpu")


def run_tool(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["convert", *map(str, arguments)])
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    assert convert.main() == 0


def test_the_command_converts_and_names_mistakes_in_one_line(
    trained, tmp_path, monkeypatch, capsys
):
    output = tmp_path / "cats.pth"
    run_tool(monkeypatch, trained, output, "--to", "detrex")
    assert capsys.readouterr().out.splitlines()[-1] == str(output)
    state = torch.load(output, weights_only=True)["model"]
    assert state.keys() == read_checkpoint(str(trained))["model"].keys()  # heads twice
    with pytest.raises(SystemExit, match=r"^error: checkpoint 'no/such\.pth' does not exist"):
        run_tool(monkeypatch, "no/such.pth", tmp_path / "b")
    with pytest.raises(SystemExit, match="^error: .*is there already"):
        run_tool(monkeypatch, trained, output)


def test_the_command_pushes_to_the_hub(trained, monkeypatch, hub, capsys):
    run_tool(monkeypatch, trained, "hf://user/cats")
    assert capsys.readouterr().out.splitlines()[-1] == f"{hub.address}/user/cats"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(SystemExit, match=r"^error: 'user/dogs' could not be written to the Hub: "):
        run_tool(monkeypatch, trained, "hf://user/dogs")


DOCS = (ROOT / "docs/checkpoints.md").read_text(encoding="utf-8")


@pytest.fixture
def work_folder(trained, tmp_path, monkeypatch):
    """Where the commands and snippets of the page can be run."""
    monkeypatch.chdir(tmp_path)
    Path("output/demo").mkdir(parents=True)
    shutil.copy(trained, "output/demo/model_final.pth")
    shutil.copy(IMAGE, "image.jpg")


@pytest.mark.slow
@pytest.mark.usefixtures("work_folder")
def test_the_commands_of_the_page_run(monkeypatch, hub):
    commands = [
        shlex.split(line)
        for block in re.findall(r"```bash\n(.*?)```", DOCS, re.S)
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("python tools/convert_checkpoint.py output/demo")
    ]
    assert len(commands) == 4
    for command in commands:
        run_tool(monkeypatch, *command[2:])
        assert Path(command[3]).exists() or command[3] == "hf://user/trees"
    assert "model.safetensors" in hub.models["user/trees"]


@pytest.mark.usefixtures("work_folder")
def test_the_snippets_of_the_page_run(hub):
    namespace = {}
    for block in re.findall(r"```python\n(.*?)```", DOCS, re.S):
        exec(block, namespace)
    assert namespace["predictor"].class_names == tuple(NAMES)
    assert len(hub.models["user/trees"]) == 3


def test_the_command_knows_the_formats_without_loading_torch():
    assert convert.FORMATS == FORMATS
