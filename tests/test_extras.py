"""What needs an extra says so, by the extra's name, where its library is not installed."""

import ast
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from packaging.requirements import Requirement

from aligndetr.app.page import build_page
from aligndetr.checkpoint import local_checkpoint, upload_to_hub
from aligndetr.engine.slurm_job import submit
from aligndetr.engine.trackers import check_trackers
from aligndetr.export import check_output, load_onnx
from aligndetr.inference import Detections
from aligndetr.modeling import SwinTransformer, TimmBackbone, ViT
from aligndetr.utils.extras import MissingExtraError, require

ROOT = Path(__file__).parents[1]

# For people who work on AlignDETR: nothing in it imports them.
OF_DEVELOPERS = {"bench", "dev", "docs"}


def extras() -> dict[str, set[str]]:
    """Extra to its libraries, as setup.py has them."""
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.keyword))
    (node,) = (node.value for node in nodes if node.arg == "extras_require")
    return {
        extra: {Requirement(text).name for text in texts}
        for extra, texts in ast.literal_eval(node).items()
    }


def nothing_found() -> Detections:
    ids = np.zeros(0, np.int64)
    return Detections(np.zeros((0, 4)), np.zeros(0), ids, ["cat"], (4, 4), "image.png", 16)


def start_job():
    options = dict.fromkeys(("nodes", "processes_per_node", "gpus_per_node", "cpus_per_process"), 1)
    submit(["train"], Path(), cluster="local", hours=1, requeues=0, slurm={}, **options)


def enable(tracker):
    check_trackers(OmegaConf.create({tracker: {"enabled": True}}))


# (extra, module, what needs it)
USES = {
    "page": ("app", "gradio", lambda: build_page(None)),
    "ONNX file": ("export", "onnx", lambda: check_output("model.onnx")),
    "ONNX run": ("export", "onnxruntime", lambda: load_onnx("model.onnx")),
    "from the Hub": ("hub", "huggingface_hub", lambda: local_checkpoint("hf://user/model")),
    "to the Hub": ("hub", "huggingface_hub", lambda: upload_to_hub("folder", "user/model")),
    "pandas": ("predict", "pandas", lambda: nothing_found().to_pandas()),
    "supervision": ("predict", "supervision", lambda: nothing_found().to_supervision()),
    "job": ("slurm", "submitit", start_job),
    "timm": ("timm", "timm", lambda: TimmBackbone("resnet18")),
    "Swin": ("timm", "timm", SwinTransformer),
    "ViT": ("timm", "timm", ViT),
    "wandb": ("wandb", "wandb", lambda: enable("wandb")),
    "mlflow": ("mlflow", "mlflow", lambda: enable("mlflow")),
}
PACKAGE_OF = {"mlflow": "mlflow-skinny"}  # where it has another name than its module


def test_all_extras_are_here():
    tested = {(extra, PACKAGE_OF.get(module, module)) for extra, module, _ in USES.values()}
    assert tested == {
        (extra, package)
        for extra, packages in extras().items()
        for package in packages
        if extra not in OF_DEVELOPERS
    }


@pytest.mark.parametrize("use", USES)
def test_a_missing_library_is_named_with_its_extra(use, monkeypatch):
    extra, module, run = USES[use]
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError) as caught:
        run()
    command = f"{module}, which is not installed; pip install 'aligndetr[{extra}]'"
    assert re.match(rf"\S.* needs {re.escape(command)}", str(caught.value))
    assert caught.value.name == module


def test_programs_and_libraries_both_know_the_error():
    assert issubclass(MissingExtraError, ValueError)  # one line, no traceback
    assert issubclass(MissingExtraError, ImportError)


def test_a_tracker_that_is_not_enabled_needs_nothing(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    check_trackers(OmegaConf.create({"wandb": {"enabled": False}}))


def test_a_folder_of_the_librarys_name_is_no_library(tmp_path, monkeypatch):
    (tmp_path / "some_tracker").mkdir()  # as `wandb` leaves one where it runs
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingExtraError, match="some_tracker, which is not installed"):
        require("some_tracker", "tracker", "the test")


def test_a_library_that_is_there_but_fails_says_why(tmp_path, monkeypatch):
    (tmp_path / "broken_library.py").write_text("import what_it_needs_itself")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match="what_it_needs_itself") as caught:
        require("broken_library", "extra", "the test")
    assert not isinstance(caught.value, MissingExtraError)
