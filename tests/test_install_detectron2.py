"""The installer, on small wheels made here; nothing is downloaded and nothing installed."""

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import setuptools  # noqa: F401 - looking for pip, as is done here, would spoil its first import

from aligndetr import install_detectron2 as installer

METADATA = """\
Metadata-Version: 2.1
Name: sal-detectron2
Version: 0.7.2
Requires-Dist: numpy<2
Requires-Dist: black
Provides-Extra: all

Requires-Dist: this line is part of the description
"""
# The tag inside differs from the one in the file name, as in the real wheel.
WHEEL = "Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: cp310-cp310-linux_x86_64\n"


@pytest.fixture
def fake_wheel(tmp_path) -> Path:
    """A wheel laid out like the pinned one: code, a binary, `tools`."""
    tree = tmp_path / "source" / "sal_detectron2-0.7.2"
    info = tree / "sal_detectron2-0.7.2.dist-info"
    files = {
        tree / "detectron2/__init__.py": "__version__ = '0.7.2'\n",
        tree / "detectron2/tools/kept.py": "",
        tree / "detectron2/_C.cpython-310-x86_64-linux-gnu.so": "binary",
        tree / "tools/__init__.py": "",
        tree / "tools/sub/train_net.py": "",
        info / "METADATA": METADATA,
        info / "WHEEL": WHEEL,
        info / "RECORD": "",
    }
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    shop = tmp_path / "shop"
    shop.mkdir()
    command = [sys.executable, "-m", "wheel", "pack", str(tree), "--dest-dir", str(shop)]
    subprocess.run(command, check=True, capture_output=True)
    (packed,) = shop.iterdir()
    return packed.rename(shop / "sal_detectron2-0.7.2-cp310-none-any.whl")


@pytest.fixture
def shop(fake_wheel, monkeypatch) -> Path:
    """pip finds packages in the fake wheel's folder and nowhere else."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(fake_wheel.parent))
    return fake_wheel.parent


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def put_detectron2(folder: Path, init: str, monkeypatch) -> None:
    """Let new interpreters import a detectron2 with this `__init__.py`, before any other."""
    (folder / "detectron2").mkdir(parents=True)
    (folder / "detectron2/__init__.py").write_text(init, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(folder))


@pytest.fixture
def no_steps(monkeypatch):
    """Any step after looking for detectron2 fails the test."""
    for step in ("download", "make_pure", "install"):
        monkeypatch.setattr(installer, step, lambda *_, step=step: pytest.fail(f"ran {step}"))


def test_the_pure_wheel_has_neither_binary_nor_tools(fake_wheel, tmp_path):
    pure = installer.make_pure(fake_wheel, tmp_path)
    assert pure.name == "sal_detectron2-0.7.2-py3-none-any.whl"
    with zipfile.ZipFile(pure) as archive:
        files = [name for name in archive.namelist() if "dist-info" not in name]
        tag = archive.read("sal_detectron2-0.7.2.dist-info/WHEEL").decode()
        record = archive.read("sal_detectron2-0.7.2.dist-info/RECORD").decode()
    # A package's own folder called `tools` stays.
    assert sorted(files) == ["detectron2/__init__.py", "detectron2/tools/kept.py"]
    assert "Tag: py3-none-any" in tag
    assert "cp310" not in tag
    assert "_C" not in record


def test_the_pure_wheel_requires_nothing(fake_wheel, tmp_path):
    with zipfile.ZipFile(installer.make_pure(fake_wheel, tmp_path)) as archive:
        metadata = archive.read("sal_detectron2-0.7.2.dist-info/METADATA").decode()
    head, _, description = metadata.partition("\n\n")
    assert "Requires-Dist" not in head
    assert "Name: sal-detectron2" in head
    assert description == METADATA.partition("\n\n")[2]


def test_a_damaged_wheel_is_refused(fake_wheel, tmp_path):
    with zipfile.ZipFile(fake_wheel, "a") as archive:
        archive.writestr("detectron2/stowaway.py", "")
    with pytest.raises(installer.InstallError, match="cannot repack sal_detectron2-0.7.2"):
        installer.make_pure(fake_wheel, tmp_path)


@pytest.mark.usefixtures("shop")
def test_a_wheel_with_another_hash_is_refused(tmp_path):
    target = tmp_path / "download"
    target.mkdir()
    with pytest.raises(installer.InstallError, match=installer.SHA256) as error:
        installer.download(target)
    assert "HASH" in str(error.value).upper()
    assert list(target.glob("*.whl")) == []


def test_the_wheel_with_the_pinned_hash_is_taken(shop, tmp_path, monkeypatch):
    (offered,) = shop.iterdir()
    monkeypatch.setattr(installer, "SHA256", sha256(offered))
    target = tmp_path / "download"
    target.mkdir()
    assert sha256(installer.download(target)) == sha256(offered)


def test_no_network_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(installer.InstallError, match="Check the network") as error:
        installer.download(tmp_path)
    assert installer.OFFICIAL in str(error.value)


@pytest.mark.usefixtures("no_steps")
def test_an_importable_detectron2_is_left_alone(tmp_path, monkeypatch, capsys):
    put_detectron2(tmp_path / "own", "__version__ = '0.6+mine'", monkeypatch)
    assert installer.main() == 0
    output = capsys.readouterr().out
    assert "left alone" in output
    assert f"0.6+mine in {tmp_path / 'own' / 'detectron2'}" in output


@pytest.mark.usefixtures("no_steps")
def test_a_broken_detectron2_is_not_installed_over(tmp_path, monkeypatch, capsys):
    put_detectron2(tmp_path / "own", "import no_such_module", monkeypatch)
    assert installer.main() == 1
    message = capsys.readouterr().err
    assert "No module named 'no_such_module'" in message
    assert str(tmp_path / "own") in message
    assert "pip uninstall" in message


def test_a_checkout_in_the_working_directory_does_not_count(tmp_path, monkeypatch):
    put_detectron2(tmp_path, "__version__ = 'checkout'", monkeypatch)
    monkeypatch.delenv("PYTHONPATH")
    monkeypatch.chdir(tmp_path)
    assert "checkout" not in (installer.installed_detectron2() or "")


def test_what_an_uninstall_left_behind_does_not_count(tmp_path, monkeypatch):
    def python_without_site_packages(code):
        return subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True)

    (tmp_path / "detectron2/__pycache__").mkdir(parents=True)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(installer, "python", python_without_site_packages)
    assert installer.installed_detectron2() is None


@pytest.mark.parametrize("step", [installer.download, installer.install])
def test_pip_asks_for_no_password(step, tmp_path, monkeypatch):
    def run(command, **options):
        calls.append((command, options.get("stdin")))
        return subprocess.CompletedProcess(command, 1, "", "401")

    calls = []
    monkeypatch.setattr(installer.subprocess, "run", run)
    with pytest.raises(installer.InstallError, match="401"):
        step(tmp_path)
    ((command, stdin),) = calls
    assert "--no-input" in command
    assert stdin == subprocess.DEVNULL


def test_a_missing_tool_is_named(monkeypatch):
    monkeypatch.setattr(installer.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(installer.InstallError, match="no package `pip`; run `python -m ensurepip"):
        installer.check_tools()


def test_the_steps_in_order(shop, monkeypatch, capsys):
    """Download, repack and hand to pip: `main` as a whole, but for the installation."""
    (offered,) = shop.iterdir()
    installed = []
    answers = iter([None, "0.7.2 in site-packages"])
    monkeypatch.setattr(installer, "SHA256", sha256(offered))
    monkeypatch.setattr(installer, "installed_detectron2", lambda: next(answers))
    monkeypatch.setattr(installer, "install", lambda wheel: installed.append(wheel.name))
    monkeypatch.setattr(installer, "check_parts", lambda: None)
    assert installer.main() == 0
    assert installed == ["sal_detectron2-0.7.2-py3-none-any.whl"]
    assert "installed detectron2 0.7.2" in capsys.readouterr().out


def test_the_wheel_is_installed_without_what_it_requires(fake_wheel, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_TARGET", str(tmp_path / "site"))  # not where the tests run
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    installer.install(installer.make_pure(fake_wheel, tmp_path))
    assert (tmp_path / "site" / "detectron2" / "__init__.py").is_file()
    with pytest.raises(installer.InstallError, match="(?s)cannot install none-1-py3-none-any.whl:"):
        installer.install(tmp_path / "none-1-py3-none-any.whl")


def test_a_part_that_does_not_import_is_named(tmp_path, monkeypatch):
    put_detectron2(tmp_path / "own", "import no_such_module", monkeypatch)
    with pytest.raises(installer.InstallError, match="does not import: .*'no_such_module'"):
        installer.check_parts()
