"""What a built wheel holds and what it asks for, and that the other files agree with it."""

import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import aligndetr

ROOT = Path(__file__).parents[1]
# All that a build reads; the tree itself gets no build folder.
SOURCES = ["setup.py", "pyproject.toml", "LICENSE", "README.md", "aligndetr", "projects"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """The wheel that pip builds from this tree, opened."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        *(sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps"),
        *("--no-build-isolation", "--wheel-dir", str(folder), str(copy_of_the_tree(folder))),
    ]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def copy_of_the_tree(folder: Path) -> Path:
    copy = folder / "tree"
    copy.mkdir()
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name)
        elif source.exists():
            shutil.copy(source, copy)
    return copy


@pytest.fixture(scope="module")
def metadata(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return HeaderParser().parsestr(wheel.read(name).decode())


@pytest.fixture(scope="module")
def requirements(metadata) -> list[Requirement]:
    return [Requirement(text) for text in metadata.get_all("Requires-Dist")]


def files_of(folder: str) -> set[str]:
    """Files under `folder` that belong in a wheel, relative to the root."""
    suffixes = {".py", ".md", ".yaml", ".cpp"}
    paths = (path for path in (ROOT / folder).rglob("*") if path.suffix in suffixes)
    return {path.relative_to(ROOT).as_posix() for path in paths}


def test_wheel_holds_the_library_the_project_and_nothing_else(wheel):
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == files_of("aligndetr") | files_of("projects")


def test_wheel_holds_configs_whose_names_no_module_can_have(wheel):
    folder = "projects/aligndetr/configs"
    configs = {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).glob("*=*.py")}
    assert f"{folder}/aligndetr_k=2_r50_4scale_12ep.py" in configs
    assert configs <= set(wheel.namelist())


def test_wheel_brings_the_console_command(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "aligndetr = aligndetr.cli:main" in wheel.read(name).decode()


def test_wheel_holds_the_license(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith("LICENSE"))
    assert wheel.read(name) == (ROOT / "LICENSE").read_bytes()


def test_metadata(metadata):
    assert metadata["Name"] == "aligndetr"
    assert metadata["Version"] == aligndetr.__version__
    assert metadata["Requires-Python"] == ">=3.10"


def test_detectron2_is_no_requirement(requirements):
    """pip would install whatever carries that name on PyPI, or find nothing."""
    assert [r.name for r in requirements if "detectron2" in r.name] == []


def test_torch_2_4_is_enough(requirements):
    (torch,) = (r for r in requirements if r.name == "torch")
    assert torch.specifier.contains("2.4.0")
    assert not torch.specifier.contains("2.3.1")


def pins(name: str) -> dict[str, Requirement]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if re.match(r"\w", line)]
    return {requirement.name: requirement for requirement in found}


def test_every_requirement_has_a_tested_pin(requirements):
    files = (
        "requirements.txt",
        "requirements-dev.txt",
        "requirements-app.txt",
        "requirements-bench.txt",
        "requirements-docs.txt",
        "requirements-trackers.txt",
    )
    tested = {name: pin for file in files for name, pin in pins(file).items()}
    for requirement in requirements:
        (pin,) = tested[requirement.name].specifier
        assert pin.operator == "==", requirement.name
        assert requirement.specifier.contains(pin.version), requirement.name
