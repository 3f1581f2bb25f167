"""Install detectron2 from a pinned wheel, its binary left out.

python -m aligndetr.install_detectron2

detectron2 publishes no package of its own on PyPI. The wheel taken here holds the Python of
its main branch at a59f0563 (2024-04-17) under another name and for Python 3.10 only, with a
compiled extension from an unknown source and a top-level package `tools` that would hide
ours. Nothing we use needs either: both are removed and the rest is installed for any Python.

A detectron2 that already imports is left alone. Needs the packages `pip` and `wheel`.
"""

import importlib.util
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REQUIREMENT = "sal-detectron2==0.7.2"
SHA256 = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"
OFFICIAL = "pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2'"
# What we use of detectron2: importing it shows that its requirements are there as well.
PARTS = "detectron2.config, detectron2.data, detectron2.engine, detectron2.modeling"


class InstallError(RuntimeError):
    """A step failed; the message says which, why, and what to do about it."""


def main() -> int:
    """Install detectron2 unless one imports; returns the exit code."""
    try:
        present = installed_detectron2()
        if present:
            print(f"detectron2 {present} imports; left alone")
            return 0
        check_tools()
        with tempfile.TemporaryDirectory() as folder:
            wheel = make_pure(download(Path(folder)), Path(folder))
            install(wheel)
        check_parts()
        print(f"installed detectron2 {installed_detectron2()}")
    except InstallError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def installed_detectron2() -> str | None:
    """Version and folder of the detectron2 that imports, None if there is none.

    Raises:
        InstallError: there is one but it does not import. It is not installed over: the
            files of two distributions would mix in one folder.
    """
    # A folder without __init__.py has no origin: what an uninstall left behind.
    spec = python("import importlib.util as u; print(u.find_spec('detectron2').origin)")
    if spec.returncode or last_line(spec.stdout) == "None":
        return None
    version = python(
        "import detectron2 as d; print(getattr(d, '__version__', ''), 'in', d.__path__[0])"
    )
    if version.returncode:
        raise InstallError(
            f"there is a detectron2 at {last_line(spec.stdout)}, but it does not import: "
            f"{last_line(version.stderr)}\nInstall what it misses (see requirements.txt), or "
            "run `pip uninstall detectron2 sal-detectron2` and then this again."
        )
    return last_line(version.stdout)


def check_tools() -> None:
    """Raise InstallError if `pip` or `wheel` is missing, before anything is downloaded."""
    for tool, remedy in (("pip", "python -m ensurepip"), ("wheel", "pip install wheel")):
        if importlib.util.find_spec(tool) is None:
            raise InstallError(f"{sys.executable} has no package `{tool}`; run `{remedy}` first")


def download(folder: Path) -> Path:
    """Download the pinned wheel into `folder`; pip refuses a file with any other hash."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{REQUIREMENT} --hash=sha256:{SHA256}\n", encoding="utf-8")
    run(
        *("pip", "download", "--no-input", "--no-deps", "--only-binary=:all:"),
        *("--python-version", "3.10"),
        *("--require-hashes", "--requirement", requirements, "--dest", folder),
        failure=f"cannot download {REQUIREMENT} with sha256 {SHA256}. Check the network and "
        f"pip's index settings, or install the official sources:\n    {OFFICIAL}\npip said:",
    )
    return only_wheel(folder)


def make_pure(wheel: Path, folder: Path) -> Path:
    """Repack `wheel` for any Python without its binary, its `tools` and its requirements.

    Args:
        wheel: a detectron2 wheel; its files are checked against its own list of hashes.
        folder: where the unpacked tree and the result go.

    Returns:
        The new wheel, tagged py3-none-any.
    """
    unpacked, repacked = folder / "unpacked", folder / "repacked"
    unpacked.mkdir()
    repacked.mkdir()
    failure = f"cannot repack {wheel.name}:"
    run("wheel", "unpack", wheel, "--dest", unpacked, failure=failure)
    (tree,) = unpacked.iterdir()
    drop_unwanted(tree)
    run("wheel", "pack", tree, "--dest-dir", repacked, failure=failure)
    tags = ("--python-tag", "py3", "--abi-tag", "none", "--platform-tag", "any")
    run("wheel", "tags", "--remove", *tags, only_wheel(repacked), failure=failure)
    return only_wheel(repacked)


def drop_unwanted(tree: Path) -> None:
    """Remove the binary, `tools` and the list of requirements from an unpacked wheel."""
    for binary in tree.rglob("_C*.so"):
        binary.unlink()
    if (tree / "tools").exists():
        shutil.rmtree(tree / "tools")
    # The list asks for numpy<2 and black, which the code does not need: every later
    # `pip install` would report a conflict. Ours is in requirements.txt.
    (metadata,) = tree.glob("*.dist-info/METADATA")
    head, blank, description = metadata.read_text(encoding="utf-8").partition("\n\n")
    kept = [line for line in head.splitlines() if not line.startswith("Requires-Dist:")]
    metadata.write_text("\n".join(kept) + blank + description, encoding="utf-8")


def install(wheel: Path) -> None:
    run("pip", "install", "--no-input", "--no-deps", wheel, failure=f"cannot install {wheel.name}:")


def check_parts() -> None:
    """Raise InstallError if a part of detectron2 that we use does not import."""
    result = python(f"import {PARTS}")
    if result.returncode:
        raise InstallError(
            f"detectron2 is installed but does not import: {last_line(result.stderr)}\n"
            "Install its requirements: pip install -r requirements.txt"
        )


def run(*command: str | Path, failure: str) -> None:
    """Run `python -m command`; raise InstallError (`failure` and its output) if it fails."""
    words = [sys.executable, "-m", *map(str, command)]
    # Nobody would see it ask for an index's password.
    result = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if result.returncode:
        raise InstallError(f"{failure}\n{result.stderr.strip() or result.stdout.strip()}")


def python(code: str) -> subprocess.CompletedProcess:
    """Run `code` in a new interpreter.

    Away from the working directory, so that a checkout of detectron2 there does not count.
    """
    with tempfile.TemporaryDirectory() as elsewhere:
        command = [sys.executable, "-c", code]
        return subprocess.run(command, capture_output=True, text=True, cwd=elsewhere)


def only_wheel(folder: Path) -> Path:
    (wheel,) = folder.glob("*.whl")
    return wheel


def last_line(text: str) -> str:
    return (text.strip() or "no message").splitlines()[-1]


if __name__ == "__main__":
    sys.exit(main())
