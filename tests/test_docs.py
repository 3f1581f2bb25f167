"""What README and docs tell a user to type or click exists."""

import re
import shlex
from pathlib import Path

import pytest

from aligndetr.cli import COMMANDS, main
from aligndetr.cli.parsing import config_file
from aligndetr.cli.train import parse_run
from aligndetr.config import apply_overrides, load_config
from aligndetr.sweeps import expand_words

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands():
    """(page, command) of every line of every bash block, continued lines joined."""
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words:
                    yield pytest.param(words, id=f"{page.stem}: {' '.join(words)[:60]}")


def test_there_are_commands_to_check():
    assert len(list(commands())) >= 10


def check_run(words, monkeypatch):
    """Of a training or evaluation: options, config and every KEY=VALUE."""
    monkeypatch.setattr("sys.argv", words)
    args = parse_run("", eval_only=words[0] == "eval")
    apply_overrides(load_config(ROOT / args.config_file), args.opts)


@pytest.mark.parametrize("words", list(commands()))
def test_command_exists(words, monkeypatch, capsys):
    if words[0] in {"torchrun", "srun"}:  # start what follows their own options
        words = ["python", *words[words.index("tools/train_net.py") :]]
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M)
    elif words[0] == "python" and words[1] != "-m":
        assert (ROOT / words[1]).is_file()
        if words[1] == "tools/train_net.py":
            check_run(words[1:], monkeypatch)
        if words[1] == "tools/sweep.py":
            start = words.index("--config-file") + 1
            assert expand_words(words[start:], config_file)
    elif words[0] == "python":
        module = ROOT / (words[2].replace(".", "/") + ".py")
        assert module.is_file() or not words[2].startswith("aligndetr")
    elif words[0] == "aligndetr":
        assert words[1] in COMMANDS or words[1] == "--help"
        if words[1] in ("train", "eval"):
            check_run(words[1:], monkeypatch)
        elif words[1] in COMMANDS:
            monkeypatch.setattr("sys.argv", words[:1])
            with pytest.raises(SystemExit):
                main([words[1], "--help"])
            options = {word for word in words[2:] if word.startswith("--")}
            assert options <= set(re.findall(r"--[\w-]+", capsys.readouterr().out))
    else:
        assert words[0] in {"git", "pip"}, f"teach this test about {words}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []
