"""Broken files are read or refused; `python -m tests.fuzz` tries thousands of each format."""

import random

import pytest

from tests.fuzz.__main__ import outcome_of
from tests.fuzz.formats import make_formats

FORMATS = [".pth", ".pth, old", ".pkl", ".safetensors", ".yaml", "COCO .json", "YOLO labels"]
FORMATS += ["data.yaml", "images"]


@pytest.fixture(scope="module")
def formats(tmp_path_factory):
    made = make_formats(tmp_path_factory.mktemp("formats"))
    assert list(made) == FORMATS
    return made


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FORMATS)
def test_a_sound_file_is_read(name, formats, tmp_path):
    for number, data in enumerate(formats[name].samples):
        folder = tmp_path / str(number)
        folder.mkdir()
        outcome = outcome_of(formats[name].read, data, folder)
        # Some images are of another size than the mapper is told.
        assert outcome == "read" or (name == "images" and outcome == "refused")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FORMATS)
def test_broken_files_end_in_clear_errors(name, formats, tmp_path):
    rng = random.Random(f"{name} of every test run")
    outcomes = []
    for number in range(25):
        folder = tmp_path / str(number)
        folder.mkdir()
        outcomes.append(outcome_of(formats[name].read, formats[name].broken(rng), folder))
    assert set(outcomes) <= {"read", "refused"}, outcomes
    assert "refused" in outcomes


def test_an_unclear_end_would_be_seen(tmp_path):
    def fails(data, folder):
        raise KeyError("a")

    assert outcome_of(fails, b"", tmp_path) == "KeyError: 'a'"
    assert outcome_of(lambda data, folder: int("x" * 0), b"", tmp_path) == "refused"
