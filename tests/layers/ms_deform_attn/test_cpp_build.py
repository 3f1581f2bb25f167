"""Building the C++ backend: once per machine, announced, and never in the way of a run."""

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aligndetr.layers.ms_deform_attn import cpp_build

ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="is built on Linux only")

# What a process does with the tiny library instead of the real one, which takes longer to build.
LOAD_TINY_LIBRARY = """
import logging, sys
from pathlib import Path
from aligndetr.layers.ms_deform_attn import cpp_build
logging.basicConfig(level=logging.INFO, format="%(message)s")
cpp_build.SOURCE = Path(sys.argv[1])
print(cpp_build.obstacle(), flush=True)
"""
# A compiler that says in a file that it was called, and compiles when it may.
SLOW_COMPILER = """#!/bin/sh
case " $* " in *" --version "*|*" -dump"*|*" -v "*) exec c++ "$@" ;; esac
echo called >> {folder}/calls
while [ ! -e {folder}/go ]; do sleep 0.05; done
exec c++ "$@"
"""


@pytest.fixture
def tiny_source(tmp_path, monkeypatch):
    """Source of a library that is built in a second, and an empty folder for it."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    source = tmp_path / "tiny.cpp"
    source.write_text("int answer() { return 42; }\n")
    monkeypatch.setattr(cpp_build, "SOURCE", source)
    return source


@pytest.fixture
def needs_compiler():
    obstacle = cpp_build.obstacle()
    if obstacle:
        pytest.skip(f"cpp {obstacle}")


@pytest.fixture
def slow_compiler(tmp_path, monkeypatch):
    compiler = tmp_path / "c++"
    compiler.write_text(SLOW_COMPILER.format(folder=tmp_path))
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))


def ask():
    """`obstacle()` as a process that has not asked yet."""
    return cpp_build.obstacle.__wrapped__()


def start(source):
    return subprocess.Popen(
        [sys.executable, "-c", LOAD_TINY_LIBRARY, str(source)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(condition):
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_is_built_once_and_announced(needs_compiler, tiny_source, caplog):
    with caplog.at_level(logging.INFO, logger="aligndetr"):
        assert ask() is None
    library = cpp_build.library_path()
    assert f"once per machine; kept in {library.parent}" in caplog.messages[0]
    assert caplog.messages[1].startswith("Compiled tiny.cpp in")
    assert sorted(path.name for path in library.parent.iterdir()) == [
        "aligndetr_cpp.lock",
        "aligndetr_cpp.so",
    ]
    caplog.clear()
    assert ask() is None
    assert caplog.messages == []


def test_processes_that_start_at_once_build_once(
    needs_compiler, tiny_source, slow_compiler, tmp_path
):
    first = start(tiny_source)
    wait_for((tmp_path / "calls").exists)
    second = start(tiny_source)
    line = next(line for line in second.stdout if "CUDA runtime" not in line)
    assert line == "Waiting for another process that compiles tiny.cpp\n"
    (tmp_path / "go").touch()
    assert second.communicate()[0].splitlines()[-1] == "None"
    assert first.communicate()[0].splitlines()[-1] == "None"
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == 2  # to compile and to link


def test_a_builder_that_was_killed_blocks_nobody(
    needs_compiler, tiny_source, slow_compiler, tmp_path, monkeypatch
):
    builder = start(tiny_source)
    wait_for((tmp_path / "calls").exists)
    builder.kill()
    builder.communicate()
    assert (cpp_build.library_path().parent / "build").exists()
    monkeypatch.setenv("CXX", "c++")
    assert ask() is None
    (tmp_path / "go").touch()  # ends the compiler that was left behind


def test_waits_for_another_builder_no_longer_than_it_says(
    needs_compiler, tiny_source, tmp_path, monkeypatch
):
    monkeypatch.setattr(cpp_build, "WAIT_SECONDS", 0.2)
    library = cpp_build.library_path()
    library.parent.mkdir(parents=True)
    with cpp_build._turn(library.with_suffix(".lock")):
        assert "waited 0.2 s for another process to compile it" in ask()


def test_says_which_line_does_not_compile(needs_compiler, tiny_source):
    tiny_source.write_text("#include <no_such_header.h>\n")
    reason = ask()
    assert "could not be compiled" in reason
    assert "tiny.cpp:1:10: fatal error: no_such_header.h" in reason
    assert "\n" not in reason
    assert not (cpp_build.library_path().parent / "build").exists()
    tiny_source.write_text("int mended;\n")
    assert ask() is None


def test_says_that_the_compiler_is_missing(tiny_source, monkeypatch):
    monkeypatch.setenv("CXX", "/nonexistent")
    assert ask() == "needs a C++ compiler, and there is no '/nonexistent' (variable CXX)"


def test_says_that_ninja_is_missing(tiny_source, monkeypatch):
    monkeypatch.setenv("CXX", sys.executable)  # any program
    monkeypatch.setenv("PATH", "")
    assert "needs ninja" in ask()


def test_is_not_compiled_by_a_data_loading_worker(needs_compiler, tiny_source, monkeypatch):
    monkeypatch.setattr(cpp_build, "get_worker_info", lambda: "worker 3")
    assert ask() == "is not compiled inside a data loading worker"


def test_what_was_compiled_for_another_cpu_or_torch_is_not_taken(monkeypatch):
    here = cpp_build.library_path()
    assert cpp_build.library_path() == here
    with monkeypatch.context() as changed:
        changed.setattr(cpp_build, "_cpu", lambda: "x86_64 flags: sse2")
        assert cpp_build.library_path() != here
    with monkeypatch.context() as changed:
        changed.setattr(cpp_build.torch, "__version__", "2.4.0")
        assert cpp_build.library_path() != here


def test_a_run_goes_on_without_a_compiler(tmp_path):
    program = (
        "import logging, torch; logging.basicConfig(format='%(levelname)s %(message)s')\n"
        "from aligndetr.layers import multi_scale_deformable_attn as attend\n"
        "for _ in range(2):\n"
        "    out = attend(torch.ones(1, 6, 2, 4), [(2, 3)], torch.full((1, 5, 2, 1, 1, 2), 0.5),"
        " torch.ones(1, 5, 2, 1, 1))\n"
        "print(out.sum().item())"
    )
    settings = {
        "ALIGNDETR_MS_DEFORM_ATTN": "cpp",
        "CXX": "/nonexistent",
        "TORCH_EXTENSIONS_DIR": str(tmp_path),
        "PYTHONPATH": str(ROOT),
    }
    process = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(process.stdout) == 40.0
    ours = [line for line in process.stderr.splitlines() if line.startswith("WARNING Deform")]
    assert len(ours) == 1
    assert "(cpp needs a C++ compiler, and there is no '/nonexistent'" in ours[0]
