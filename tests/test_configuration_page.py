"""The configuration reference: what the generator reads, and that the page is what it writes."""

import importlib.util
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from aligndetr.config import load_config
from aligndetr.config.allow_list import walk
from aligndetr.criterions import AlignDETRCriterion

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/configuration.md"


@pytest.fixture(scope="module")
def generator():
    path = ROOT / "docs/generate/configuration.py"
    spec = importlib.util.spec_from_file_location("configuration_page", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(text):
    return re.findall(r"^\| `(.+?)` \| (.*?) \| (.*?) \|$", text, re.M)


def test_the_page_is_what_the_comments_say(generator):
    remedy = "run `python docs/generate/configuration.py` and commit docs/configuration.md"
    assert generator.page() == PAGE.read_text(encoding="utf-8"), remedy


def test_every_key_is_there_and_described(generator):
    described = {key for key, _, meaning in rows(PAGE.read_text(encoding="utf-8")) if meaning}
    assert [key for key, _, meaning in rows(generator.page()) if not meaning] == []
    cfg = OmegaConf.to_container(load_config(generator.CONFIG), resolve=False)
    for section in generator.SECTIONS:
        for key, value in walk(cfg[section], section):
            if isinstance(value, dict | list) or key.endswith("_target_"):
                continue
            names = key.split(".")
            whole = {".".join(names[:end]) for end in range(1, len(names) + 1)}
            assert whole & described, key


def test_a_comment_belongs_to_the_key_that_it_ends_or_stands_above(generator, tmp_path):
    source = tmp_path / "config.py"
    source.write_text(
        "# Of another time.\n"
        "\n"
        "train = {\n"
        "    # Two lines,\n"
        "    # one meaning.\n"
        '    "period": 1,\n'
        '    "amp": {"enabled": False},  # of the group\n'
        '    "plain": 2,\n'
        "}\n"
        'model = L(Model)(width=3, part=L(Part)(depth=4))  # "# no comment"\n'
        "train.late = 5  # set afterwards\n"
        "other = 6  # no section of the config\n"
    )
    assert generator.Comments(source).found == {
        "train.period": "Two lines, one meaning.",
        "train.amp": "of the group",
        "model": '"# no comment"',
        "train.late": "set afterwards",
    }


def test_a_helper_describes_every_key_that_it_makes(generator, tmp_path):
    source = tmp_path / "config.py"
    source.write_text(
        "def _data(split):\n"
        "    return L(load)(split=split, empty=False)  # not of one key\n"
        "\n"
        "\n"
        "def _mapper():\n"
        "    return L(Mapper)(\n"
        "        width=3,  # in pixels\n"
        "    )\n"
        "\n"
        "\n"
        "dataloader.train = L(build)(mapper=_mapper())\n"
        "dataloader.test = L(build)(mapper=_mapper())\n"
    )
    assert generator.Comments(source).found == {
        "dataloader.train.mapper.width": "in pixels",
        "dataloader.test.mapper.width": "in pixels",
    }


def test_docstrings_fill_in_and_point_to_their_bases(generator):
    meanings = generator.arguments_in_docstring(AlignDETRCriterion)
    assert meanings["tau"].startswith("how slowly the weights fall")  # of ManyToOneCriterion
    assert meanings["num_classes"].startswith("K, the number")  # of BaseCriterion
    assert meanings["two_stage_binary_cls"].startswith("the proposals only learn")
