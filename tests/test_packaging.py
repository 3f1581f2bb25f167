"""What built archives hold and ask for, and that the other files agree with them."""

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import aligndetr

ROOT = Path(__file__).parents[1]
# All that a build reads; the tree itself gets no build folder.
DOCUMENTS = ["CHANGELOG.md", "CITATION.cff", "LICENSE", "README.md"]
SOURCES = [
    *("setup.py", "pyproject.toml", "MANIFEST.in", "requirements.txt", "aligndetr", "projects"),
    *DOCUMENTS,
]


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """What a clone holds, and what lies in one after some work."""
    tree = copy_of_the_tree(tmp_path_factory.mktemp("clone"))
    for name in ("tests/test_it.py", "benchmarks/speed.py", "tools/tool.py", "output/model.py"):
        (tree / name).parent.mkdir()
        (tree / name).touch()
    return tree


@pytest.fixture(scope="module")
def sdist(tree, tmp_path_factory) -> set[str]:
    """Names in the source archive, relative to its top folder."""
    folder = tmp_path_factory.mktemp("sdist")
    code = f"from setuptools.build_meta import build_sdist; build_sdist({str(folder)!r})"
    command = [sys.executable, "-c", code]
    built = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.tar.gz")
    assert path.name == f"aligndetr-{aligndetr.__version__}.tar.gz"
    with tarfile.open(path) as archive:
        return {m.name.partition("/")[2] for m in archive.getmembers() if m.isfile()}


@pytest.fixture(scope="module")
def wheel(tree, tmp_path_factory) -> zipfile.ZipFile:
    """The wheel that pip builds from this tree, opened."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        *(sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps"),
        *("--no-build-isolation", "--wheel-dir", str(folder), str(tree)),
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
            # Other tests may be writing there.
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
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
    suffixes = {".py", ".md", ".yaml", ".cpp", ".typed"}
    paths = (path for path in (ROOT / folder).rglob("*") if path.suffix in suffixes)
    return {path.relative_to(ROOT).as_posix() for path in paths}


def test_wheel_holds_the_library_the_project_and_nothing_else(wheel):
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == files_of("aligndetr") | files_of("projects")


def test_source_archive_holds_what_a_wheel_is_built_from_and_the_documents(sdist):
    own = {name for name in sdist if not name.startswith("aligndetr.egg-info/")}
    made = {"PKG-INFO", "setup.cfg"}
    files = {name for name in SOURCES if (ROOT / name).is_file()}
    assert own - made == files_of("aligndetr") | files_of("projects") | files


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
    )
    tested = {name: pin for file in files for name, pin in pins(file).items()}
    for requirement in requirements:
        (pin,) = tested[requirement.name].specifier
        assert pin.operator == "==", requirement.name
        assert requirement.specifier.contains(pin.version), requirement.name


# ---------------------------------------------------------------------------------------------
# the documents beside them


def newest_release() -> tuple[str, str]:
    """(version, date) of the first dated heading in CHANGELOG.md."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    return re.search(r"^## \[(\d[^]]*)\] - (\d{4}-\d\d-\d\d)$", text, re.MULTILINE).groups()


@pytest.fixture(scope="module")
def citation() -> dict:
    return yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))


def test_changelog_and_citation_are_of_this_version(citation):
    version, date = newest_release()
    assert version == aligndetr.__version__ == str(citation["version"])
    assert date == str(citation["date-released"])


def test_the_paper_to_cite_is_the_readmes(citation):
    paper = citation["preferred-citation"]
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert paper["url"] in readme
    assert paper["title"] in readme
    names = [f"{author['given-names']} {author['family-names']}" for author in paper["authors"]]
    assert [name for name in names if name not in readme] == []


def test_pre_commit_runs_the_pinned_ruff():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    (rev,) = (repo["rev"] for repo in config["repos"] if "ruff" in repo["repo"])
    assert f"=={rev.removeprefix('v')}" == str(pins("requirements-dev.txt")["ruff"].specifier)


def test_workflows_test_the_oldest_torch_and_the_pinned_one():
    text = (ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8")
    matrix = yaml.safe_load(text)["jobs"]["tests"]["strategy"]["matrix"]
    oldest, newest = matrix["torch"]
    pinned, torchvision = (
        str(pins("requirements.txt")[n].specifier) for n in ("torch", "torchvision")
    )
    assert pinned == f"=={newest}"
    of_torch = f"matrix.torch == '{oldest}' && '0.19.1' || '{torchvision.removeprefix('==')}'"
    assert of_torch in text
    assert oldest.startswith("2.4.")


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github/workflows").glob("*.yml")), ids=lambda path: path.name
)
def test_workflows_may_only_read(path):
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    assert all("permissions" not in job for job in workflow["jobs"].values())
    assert "secrets." not in path.read_text(encoding="utf-8")
