"""A saved config is plain YAML and the same config when it is read again."""

import builtins
import os
from pathlib import Path

import pytest
import yaml
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling import ResNet
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import nn

from aligndetr.config import config_from_yaml, config_to_yaml, load_config, save_config

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text().filter(lambda text: "$" not in text and text != "???")
    | st.sampled_from(
        [
            "1e5",
            "1e-5",
            "1.5e3",
            "no",
            "0x1F",
            "1:30",
            "2024-01-01",
            "null",
            "~",
            "\x85 a",
            "\u2028",
            "",
        ]
    )
)
names = st.text("abcxyz_019", min_size=1)
configs = st.dictionaries(
    names,
    st.recursive(
        scalars, lambda child: st.lists(child) | st.dictionaries(names, child), max_leaves=8
    ),
)


@settings(max_examples=60)
@given(configs)
def test_reading_undoes_writing(plain):
    assert (
        OmegaConf.to_container(config_from_yaml(config_to_yaml(OmegaConf.create(plain)))) == plain
    )


def test_targets_become_names_tuples_lists_and_references_stay():
    cfg = OmegaConf.create({"train": {"device": "cpu"}})
    cfg.norm = L(nn.GroupNorm)(num_groups=32, num_channels="${.num_groups}")
    cfg.stages = [L(ResNet.make_default_stages)(depth=50)]
    cfg.betas = (0.9, 0.999)
    cfg.device = "${train.device}"
    text = config_to_yaml(cfg)
    assert "!!" not in text
    assert yaml.safe_load(text) == {
        "train": {"device": "cpu"},
        "norm": {
            "_target_": "torch.nn.GroupNorm",
            "num_groups": 32,
            "num_channels": "${.num_groups}",
        },
        "stages": [{"_target_": "detectron2.modeling.ResNet.make_default_stages", "depth": 50}],
        "betas": [0.9, 0.999],
        "device": "${train.device}",
    }
    assert next(iter(yaml.safe_load(text)["norm"])) == "_target_"


def test_a_resolver_is_saved_as_what_it_gave(monkeypatch):
    monkeypatch.setenv("MY_DATA", "/data")
    cfg = OmegaConf.create({"a": [{"root": "${oc.env:MY_DATA}/coco"}]})
    assert yaml.safe_load(config_to_yaml(cfg)) == {"a": [{"root": "/data/coco"}]}
    assert cfg.a[0]._get_node("root")._value() == "${oc.env:MY_DATA}/coco"  # cfg is not changed


@pytest.mark.parametrize(
    "value", [nn.GroupNorm, len, lambda name: 1.0, ShapeSpec(channels=8), Path("x"), b"x", 1j]
)
def test_what_yaml_cannot_hold_is_an_error_with_its_key(value):
    cfg = OmegaConf.create({"model": {"parts": [1, None]}}, flags={"allow_objects": True})
    cfg.model.parts[1] = value
    with pytest.raises(ValueError, match=r"`model\.parts\.1`"):
        config_to_yaml(cfg)


def test_a_target_without_a_name_is_an_error_with_its_key():
    cfg = OmegaConf.create({"optimizer": {"params": L(lambda factor: factor)(factor=0.1)}})
    with pytest.raises(ValueError, match=r"`optimizer\.params\._target_` is <function"):
        config_to_yaml(cfg)


def test_numbers_in_scientific_notation_are_numbers():
    cfg = config_from_yaml("{a: 1e-4, b: 2E+3, c: .5e1, d: '1e-4', e: 1e, f: 1_000}")
    assert dict(cfg) == {"a": 1e-4, "b": 2000.0, "c": 5.0, "d": "1e-4", "e": "1e", "f": 1000}


def test_saved_config_loads_again(tmp_path):
    cfg = OmegaConf.create({"train": {"lr": 1e-5}, "norm": L(nn.GroupNorm)(num_groups=1)})
    save_config(cfg, tmp_path / "new" / "config.yaml")
    loaded = load_config(tmp_path / "new" / "config.yaml")
    assert loaded == {"train": {"lr": 1e-5}, "norm": {"_target_": "torch.nn.GroupNorm",
                                                      "num_groups": 1}}  # fmt: skip


def test_a_config_that_cannot_be_saved_leaves_the_earlier_file(tmp_path):
    path = tmp_path / "config.yaml"
    save_config(OmegaConf.create({"a": 1}), path)
    bad = OmegaConf.create({"a": 2, "b": None}, flags={"allow_objects": True})
    bad.b = len
    with pytest.raises(ValueError, match="`b`"):
        save_config(bad, path)
    assert load_config(path) == {"a": 1}
    assert os.listdir(tmp_path) == ["config.yaml"]


def test_a_config_that_data_may_not_hold_is_saved_with_a_warning(tmp_path, caplog):
    save_config(OmegaConf.create({"a": L(print)()}), tmp_path / "config.yaml")
    assert "`a._target_` (='builtins.print') is refused" in caplog.text


@pytest.mark.parametrize("name", ["config.yml", "config.yaml", "config.py"])
def test_missing_file_names_the_nearest(tmp_path, name):
    (tmp_path / "confog.py").touch()
    with pytest.raises(FileNotFoundError, match=f"{name}' does not exist; did you mean.*confog"):
        load_config(tmp_path / name)


def test_other_suffixes_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.py, \.yaml or \.yml"):
        load_config(tmp_path / "config.pkl")


def test_a_shipped_config_goes_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config("aligndetr_k=2_r50_4scale_12ep").train.max_iter == 90_000
    with pytest.raises(ValueError, match="'aligndetr_dmo' is no file and no .*aligndetr_demo, "):
        load_config("aligndetr_dmo")


def test_no_file_at_all_is_named():
    with pytest.raises(ValueError, match="--config-file FILE is required"):
        load_config("")


def test_python_config_that_fails_shows_file_and_line(tmp_path):
    (tmp_path / "base.py").write_text("train = {}\nx = int('a')\n")
    path = tmp_path / "config.py"
    path.write_text("\nfrom .base import train\n")
    before = builtins.__import__
    with pytest.raises(ValueError, match="(?s)config.py' failed.*invalid literal") as error:
        load_config(path)
    assert f'File "{path}", line 2' in str(error.value)
    assert f'File "{tmp_path}/base.py", line 2' in str(error.value)
    assert "LazyConfig.load" not in str(error.value)
    assert builtins.__import__ is before


def test_a_config_that_imports_detrex_is_told_where_its_names_are_translated(tmp_path):
    path = tmp_path / "config.py"
    path.write_text("from detrex.config import get_config\n")
    with pytest.raises(ValueError, match=r"(?s)No module named 'detrex'.*docs/from_detrex\.md"):
        load_config(path)


def test_python_config_with_a_syntax_error_shows_file_and_line(tmp_path):
    path = tmp_path / "config.py"
    path.write_text("train = {}\nx = = 3\n")
    with pytest.raises(ValueError, match=r"(?s)config\.py.*line 2.*invalid syntax"):
        load_config(path)


def test_a_resolver_may_give_a_group(monkeypatch):
    monkeypatch.setenv("MY_SIZES", "[480, 800]")
    cfg = OmegaConf.create({"sizes": "${oc.decode:${oc.env:MY_SIZES}}"})
    cfg.more = {"sizes": "${oc.create:{a: ${sizes}}}"}
    assert yaml.safe_load(config_to_yaml(cfg)) == {
        "sizes": [480, 800],
        "more": {"sizes": {"a": [480, 800]}},
    }


def test_a_large_file_is_named(tmp_path):
    (tmp_path / "config.yaml").write_text("#" * (1 << 19))
    with pytest.raises(ValueError, match=r"config\.yaml: 524288 bytes are more"):
        load_config(tmp_path / "config.yaml")
