"""A config that is data builds parts of a detector, and nothing else runs."""

import os
import sys

import pytest
import torch
from detectron2.config import instantiate
from detectron2.utils.registry import locate

from aligndetr.config import allow_list, check_targets, config_from_yaml, load_config

TARGETS = [
    "projects.aligndetr.modeling.AlignDETR",
    "aligndetr.criterions.AlignDETRCriterion",
    "aligndetr.data.register_dataset",
    "aligndetr.engine.backbone_lr_factor",
    "aligndetr.engine.optim.backbone_lr_factor",
    "detectron2.data.build_detection_train_loader",
    "detectron2.data.transforms.ResizeShortestEdge",
    "detectron2.evaluation.COCOEvaluator",
    "detectron2.layers.ShapeSpec",
    "detectron2.modeling.ResNet.make_default_stages",
    "detectron2.modeling.backbone.BasicStem",
    "detectron2.solver.get_default_optimizer_params",
    "detectron2.solver.WarmupParamScheduler",
    "fvcore.common.param_scheduler.CosineParamScheduler",
    "torch.nn.GroupNorm",
    "torch.nn.modules.normalization.GroupNorm",
    "torch.optim.AdamW",
    # its module is torch.optim._adafactor; torch 2.4 does not have it
    *(["torch.optim.Adafactor"] if hasattr(torch.optim, "Adafactor") else []),
]

# Each would run code, read a pickle, write a file or reach for one of these.
HOSTILE_TARGETS = [
    "os.system",
    "posix.system",
    "builtins.eval",
    "builtins.open",
    "subprocess.run",
    "importlib.import_module",
    "pydoc.locate",
    "torch.load",
    "torch.hub.load",
    "torch.utils.cpp_extension.load",
    "aligndetr.engine.os.system",
    "aligndetr.data.datasets.os.system",
    "aligndetr.data.datasets.Path",
    "aligndetr.data.demo.main",
    "aligndetr.config.load_config",
    "aligndetr.config.loading.LazyConfig.load",
    "aligndetr.install_detectron2.main",
    "projects.aligndetr.modeling.align_detr.torch.load",
    "detectron2.config.LazyConfig.load",
    "detectron2.utils.collect_env.collect_env_info",
    "detectron2.data.build.pickle.load",
    "detectron2.data.common.pickle.loads",
    "detectron2.data.load_proposals_into_dataset",
    "detectron2.data.datasets.convert_to_coco_json",
    "detectron2.data.DatasetCatalog.register",
    "detectron2.modeling.build_model",
    "detectron2.modeling.MMDetDetector",
    "torch.nn.functional.importlib.import_module",
    "torch.nn.attention._fa3.register_flash_attention_fa3",  # imports any module by name
    "torch.nn.attention._fa3._fa3_import_module",
    "torch.nn.utils._deprecation_utils.lazy_deprecated_import",
    "torch.nn.Module.compile",  # with self= and a compiler's command line
    "torch.nn.Module.__init__.__globals__",
    "torch.nn.Module.__subclasses__",
    "torch.nn",
    "torch.nn.NoSuchLayer",
    "timm.models.load_checkpoint",
    "timm.data.create_dataset",
    "",
    "system",
    "torch..nn",
    "torch.nn.GroupNorm ",
    "torch/nn",
]


@pytest.mark.parametrize("name", TARGETS)
def test_parts_of_a_detector_are_allowed(name):
    check_targets({"part": {"_target_": name}})
    assert allow_list._resolve(name) is locate(name)  # what `instantiate` would call


@pytest.mark.parametrize("name", HOSTILE_TARGETS)
def test_anything_else_is_refused_and_named(name):
    with pytest.raises(ValueError, match=r"`model\.part\._target_` .* is refused") as error:
        check_targets({"model": {"part": {"_target_": name}}})
    assert repr(name) in str(error.value)


def test_own_code_that_is_elsewhere_is_told_where_python_looks():
    with pytest.raises(ValueError, match=r"projects\.mine does not exist; .* PYTHONPATH"):
        check_targets({"_target_": "projects.mine.Loss"})


@pytest.mark.parametrize("module", ["evil_module", "projects_evil", "timm_evil"])
def test_a_foreign_module_is_not_even_imported(module, tmp_path, monkeypatch):
    (tmp_path / f"{module}.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in (f"{module}.run", f"torch.nn.{module}.run", f"aligndetr.engine.{module}.run"):
        with pytest.raises(ValueError, match="refused"):
            check_targets({"_target_": name})
    assert module not in sys.modules


COMMAND = "touch {sentinel}"
HOSTILE_YAML = {
    "python tag": "model: !!python/object/apply:os.system ['{command}']",
    "python tag of a new object": "model: !!python/object/new:os.system ['{command}']",
    "python name": "model: {{_target_: !!python/name:os.system '', command: '{command}'}}",
    "python module": "model: !!python/module:os ''",
    "target": "model: {{_target_: os.system, command: '{command}'}}",
    "through an import": "model: {{_target_: aligndetr.engine.os.system, command: '{command}'}}",
    "through a real import": (
        "model: {{_target_: aligndetr.data.datasets.os.system, command: '{command}'}}"
    ),
    "in a list": "train: {{hooks: [1, [{{_target_: os.system, command: '{command}'}}]]}}",
    "as an argument": (
        "a: {{_target_: torch.nn.Sequential, m: {{_target_: os.system, command: '{command}'}}}}"
    ),
    "target of a target": "model: {{_target_: {{_target_: os.system, command: '{command}'}}}}",
    "target by reference": "x: os.system\nmodel: {{_target_: '${{x}}', command: '{command}'}}",
    "target by concatenation": "model: {{_target_: 'os.${{x}}', command: '{command}'}}\nx: system",
    "resolver that makes a config": (
        "model: \"${{oc.create:{{_target_: os.system, command: '{command}'}}}}\""
    ),
    "resolver in a resolver": "model: '${{oc.decode:${{oc.env:X}}}}'",
    "environment": "train: {{output_dir: '${{oc.env:HOME}}'}}",
    "key given twice": (
        "model: {{_target_: torch.nn.Identity, _target_: os.system, command: '{command}'}}"
    ),
    "pickled proposals": (
        "d: {{_target_: detectron2.data.get_detection_dataset_dicts, names: x, "
        "proposal_files: [p]}}"
    ),
    "config of a loader": (
        "d: {{_target_: detectron2.data.build_detection_train_loader, cfg: {{MODEL: 1}}}}"
    ),
    "config of a model": "model: {{_target_: detectron2.modeling.GeneralizedRCNN, cfg: {{M: 1}}}}",
}


@pytest.mark.parametrize("text", HOSTILE_YAML.values(), ids=HOSTILE_YAML)
def test_hostile_yaml_is_refused_and_runs_nothing(text, tmp_path):
    sentinel = tmp_path / "it_ran"
    path = tmp_path / "config.yaml"
    path.write_text(text.format(command=COMMAND.format(sentinel=sentinel)))
    with pytest.raises(ValueError, match="config.yaml"):
        instantiate(load_config(path))
    assert not sentinel.exists()


def test_the_sentinel_would_show_an_attack(tmp_path):
    """Without the check, `instantiate` does run the command: the test above can fail."""
    sentinel = tmp_path / "it_ran"
    instantiate({"_target_": "os.system", "command": COMMAND.format(sentinel=sentinel)})
    assert sentinel.exists()


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [1,1,1,1,1,1,1,1,1,1]\n"
        + "".join(f"{y}: &{y} [{','.join([f'*{x}'] * 10)}]\n" for x, y in zip("abcdef", "bcdefg")),
        "a: &a [*a]",
        "[" * 1500 + "]" * 1500,
        "- 1",
        "",
        "a: [",
        "a: '${'",
        "? [1, 2]\n: 3",
        "a: 2024-01-01",
        "a: !!binary aGVsbG8=",
        "a: !!set {x}",
        "a: !mine 3",
        "null: 1",
    ],
    ids=range(13),
)
def test_what_is_no_config_is_a_clear_error(text):
    with pytest.raises(ValueError, match="my config: "):
        config_from_yaml(text, source="my config")


def test_references_between_keys_are_data():
    cfg = config_from_yaml(
        "train: {device: cpu}\nmodel: {device: '${train.device}', x: '${.device}'}"
    )
    assert (cfg.model.device, cfg.model.x) == ("cpu", "cpu")


@pytest.fixture
def timm(tmp_path, monkeypatch):
    """A package laid out like timm, whose functions report that they were called."""
    for folder in ("timm/models", "timm/layers"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "__init__.py").touch()
    (tmp_path / "timm/__init__.py").write_text("from .models._factory import create_model")
    (tmp_path / "timm/models/_factory.py").write_text("def create_model(model_name, **kwargs): ...")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "timm"]:
        del sys.modules[name]


@pytest.mark.usefixtures("timm")
def test_timm_models_by_name_only():
    call = {"_target_": "timm.create_model", "model_name": "resnet50.a1_in1k", "pretrained": True}
    check_targets(call)
    for attack in (
        {"checkpoint_path": "evil.pth"},
        {"pretrained_cfg": {"file": "evil.pth"}},
        {"pretrained_cfg_overlay": {"url": "evil"}},
        {"model_name": "hf-hub:evil/model"},
        {"model_name": "${name}"},
    ):
        with pytest.raises(ValueError, match=r"checkpoint|pretrained_cfg|model_name"):
            check_targets(call | attack)


def test_python_config_is_code(tmp_path):
    path = tmp_path / "config.py"
    path.write_text("import os\ntrain = dict(pid=os.getpid())")
    assert load_config(path).train.pid == os.getpid()


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)  # as if it were not
    monkeypatch.setattr(sys, "path", [])
    del sys.modules["timm"]
    with pytest.raises(ValueError, match="timm is not installed"):
        check_targets({"_target_": "timm.create_model", "model_name": "resnet50"})


def test_what_a_users_module_lacks_is_named(tmp_path, monkeypatch):
    (tmp_path / "projects" / "mine").mkdir(parents=True)
    (tmp_path / "projects" / "mine" / "__init__.py").write_text("import not_installed_anywhere")
    monkeypatch.setattr("projects.__path__", [str(tmp_path / "projects")])
    with pytest.raises(ValueError, match=r"projects\.mine cannot be imported: .*not_installed_any"):
        check_targets({"_target_": "projects.mine.Model"})


def test_a_config_nested_by_aliases_is_nested_too_deeply():
    """Its text is flat, so only what reads the values meets their depth."""
    text = "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 190))
    with pytest.raises(ValueError, match="my config: nested too deeply for a config"):
        config_from_yaml(text, source="my config")
