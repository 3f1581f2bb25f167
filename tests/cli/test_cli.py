"""The console command: what it says, what it starts, and that it starts fast."""

import importlib
import importlib.metadata
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import aligndetr
from aligndetr.cli import COMMANDS, info, main, predict
from aligndetr.cli.parsing import config_file
from aligndetr.layers.ms_deform_attn import cpp_build

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = sorted((ROOT / "tools").glob("*.py")) + sorted((ROOT / "benchmarks").glob("*.py"))
HEAVY = {"torch", "detectron2", "numpy", "matplotlib", "omegaconf", "PIL"}


def run(*words, cwd=ROOT, **environment):
    """The console command in a process of its own, as if it were installed."""
    return subprocess.run(
        [sys.executable, "-m", "aligndetr", *words],
        cwd=cwd,
        env=os.environ
        | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "-1", "PYTHONPATH": str(ROOT)}
        | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def help_of(command, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["aligndetr"])
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    return capsys.readouterr().out


def examples(text):
    """Command lines in a help text, continued lines joined."""
    joined = text.replace("\\\n", " ")
    lines = (line.strip() for line in joined.splitlines())
    found = [shlex.split(line)[1:] for line in lines if line.startswith("aligndetr ")]
    return [words for words in found if words[0] != "COMMAND"]


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    for name, (_, summary) in COMMANDS.items():
        assert re.search(rf"^  {name} +{summary}$", printed, re.M)


def test_without_a_command_it_says_how_to_call_it(capsys):
    assert main([]) == 2
    assert capsys.readouterr().out.startswith("usage: aligndetr COMMAND")


def test_it_says_its_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"aligndetr {aligndetr.__version__}\n"


def test_an_unknown_command_is_an_error_that_names_the_others():
    with pytest.raises(SystemExit, match=r"error: unknown command 'trian'; choose one of train, "):
        main(["trian"])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_program(command):
    assert callable(importlib.import_module(COMMANDS[command][0]).main)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example_of_the_command_as_it_was_called(command, capsys, monkeypatch):
    printed = help_of(command, capsys, monkeypatch)
    assert printed.startswith(f"usage: aligndetr {command}")
    assert command in [words[0] for words in examples(printed)]


def test_no_help_loads_what_takes_seconds():
    """In one process: whatever one of them imports is still there after the last."""
    code = f"""
import contextlib, io, sys
from aligndetr.cli import COMMANDS, main
for command in COMMANDS:
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        main([command, "--help"])
print(sorted({HEAVY!r} & set(sys.modules)))
"""
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert found.stdout == "[]\n", found.stdout + found.stderr


def test_a_shipped_config_goes_by_its_name():
    path = Path(config_file("aligndetr_k=2_r50_4scale_12ep"))
    assert path == ROOT / "projects/aligndetr/configs/aligndetr_k=2_r50_4scale_12ep.py"


def test_a_shipped_config_may_lie_in_a_folder():
    path = Path(config_file("ladder/r50_1_dino"))
    assert path == ROOT / "projects/aligndetr/configs/ladder/r50_1_dino.py"


def test_a_shipped_config_may_be_of_the_second_project():
    path = Path(config_file("align_dab_detr_r50_50ep"))
    assert path == ROOT / "projects/align_dab_detr/configs/align_dab_detr_r50_50ep.py"


def test_a_file_goes_before_a_shipped_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "finetune").touch()
    assert config_file("finetune") == "finetune"
    assert config_file("missing/finetune.py") == "missing/finetune.py"  # load_config says so


def test_an_unknown_name_of_a_config_is_an_error_that_names_the_others(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["aligndetr"])
    with pytest.raises(SystemExit):
        main(["train", "--config-file", "aligndetr_dmo"])
    printed = capsys.readouterr().err
    assert "'aligndetr_dmo' is no file and no shipped config" in printed
    assert "aligndetr_demo, " in printed


def test_info_says_what_there_is(tmp_path):
    result = run("info", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    facts = dict(line.split(maxsplit=1) for line in result.stdout.splitlines() if line[:1] != "a")
    assert facts["Python"].startswith(".".join(map(str, sys.version_info[:3])))
    for name in ("torch", "torchvision", "detectron2"):
        assert re.match(r"\d+\.\d+", facts[name]), name
    assert "attention on cpu         reference: can run" in result.stdout
    assert "attention on cpu         auto takes " in result.stdout
    assert not result.stderr


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_program_repeats_a_warning_filter(path):
    assert "filterwarnings" not in path.read_text(encoding="utf-8")


def test_programs_start_without_a_warning():
    """In one process, for importing torch and detectron2 takes seconds."""
    code = """
import contextlib, runpy, sys
for program in ("tools/visualize_data.py", "benchmarks/engine.py"):
    sys.argv = [program, "--help"]
    with contextlib.suppress(SystemExit):
        runpy.run_path(program, run_name="__main__")
"""
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert found.stdout.count("usage: ") == 2
    assert found.stderr == ""


def test_an_override_behind_files_is_an_override(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("a.b=c.jpg").touch()  # a file of such a name is a file
    words = "--checkpoint m.pth --output out --input a.jpg a.b=c.jpg train.device=cpu --ema"
    monkeypatch.setattr("sys.argv", ["aligndetr predict", *words.split()])
    args = predict._parse()
    assert args.input == ["a.jpg", "a.b=c.jpg"]
    assert args.opts == ["train.device=cpu"]
    assert args.ema


def test_overrides_alone_are_no_files(monkeypatch, capsys):
    words = "--checkpoint m.pth --output out --input train.device=cpu"
    monkeypatch.setattr("sys.argv", ["aligndetr predict", *words.split()])
    with pytest.raises(SystemExit):
        predict._parse()
    assert "--input names no file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    ["alignment none.pth", "app --checkpoint none.pth", "benchmark --checkpoint none.pth"],
)
def test_a_checkpoint_that_is_not_there_is_one_line(words, monkeypatch):
    monkeypatch.setattr("sys.argv", ["aligndetr"])
    with pytest.raises(SystemExit, match="^error: checkpoint 'none.pth' does not exist"):
        main(words.split())


def test_info_tells_what_is_not_there_yet(monkeypatch):
    def not_installed(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.requires", not_installed)
    monkeypatch.setattr(cpp_build, "is_to_be_compiled", lambda: True)
    facts = [*info._attention(), *info._extras()]
    assert ("attention on cpu", "cpp: is compiled on first use") in facts
    unknown = "unknown: aligndetr is not installed here, it runs from a folder"
    assert facts[-1] == ("extras", unknown)


def test_a_benchmark_prints_a_row_for_each_size_and_writes_all(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("sys.argv", ["aligndetr"])
    words = "benchmark --config-file aligndetr_demo --device cpu --repeats 1 --warm-up 0 --sizes"
    main([*words.split(), "64x96", "96x64", "--json", str(tmp_path / "out.json")])
    rows = [
        line for line in capsys.readouterr().out.splitlines() if re.search(r"\d+ ?x ?\d+", line)
    ]
    assert len(json.loads((tmp_path / "out.json").read_text())["latencies"]) == len(rows) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--sizes 800", "'800' is not HEIGHTxWIDTH, such as 800x1333"),
        ("--device cpu", "give --checkpoint, or --config-file for random weights"),
    ],
)
def test_a_benchmark_of_nothing_is_refused(words, message, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["aligndetr"])
    with pytest.raises(SystemExit):
        main(["benchmark", *words.split()])
    assert message in capsys.readouterr().err
