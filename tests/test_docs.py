"""What README and docs tell a user to type or click exists.

Every command is parsed here, in any case. `tests/test_docs_run.py` (slow) runs them, but for those
that `tests/docs_commands.py` lists with the reason.
"""

import ast
import re
import shlex
import shutil
import subprocess

import pytest
from packaging.requirements import Requirement

from aligndetr.cli import COMMANDS, main
from aligndetr.cli.parsing import config_file
from aligndetr.cli.train import parse_run
from aligndetr.config import apply_overrides, load_config
from aligndetr.sweeps import expand_words
from tests.docs_commands import NOT_RUN, PAGES, ROOT, commands
from tests.test_extend_page import files_of_the_page

# Languages of fenced blocks. What is typed into a shell says "bash", or no test would see it.
LANGUAGES = {"bash", "python", "text", "yaml", "json", "mermaid", "bibtex"}
# Pages with Python blocks, and what runs them.
SNIPPETS = {
    "benchmarks/README.md": "tests/test_benchmarks.py",
    "README.md": "tests/inference/test_predictor.py",
    "docs/alignment.md": "tests/evaluation/test_alignment_evaluator.py",
    "docs/analysis.md": "tests/analysis/test_compare.py",
    "docs/checkpoints.md": "tests/inference/test_sharing.py",
    "docs/from_detrex.md": "tests/test_docs_tables.py",
    "docs/export.md": "tests/test_docs_run.py",
    "docs/extend.md": "tests/test_extend_page.py",
    "docs/loss.md": "tests/losses/test_loss_page.py",
    "docs/predict.md": "tests/inference/test_predictor.py",
    "docs/training.md": "tests/test_docs.py",
}


def test_there_are_commands_to_check():
    found = commands()
    assert len(found) >= 70
    assert len([command for command in found if command.why_not_run is None]) >= 45


@pytest.mark.parametrize("pattern", NOT_RUN)
def test_what_is_not_run_is_there_and_says_why(pattern):
    assert NOT_RUN[pattern]
    assert any(command.is_like(pattern) for command in commands()), "remove it from NOT_RUN"


def check_run(words, monkeypatch):
    """Of a training or evaluation: options, config and every KEY=VALUE."""
    monkeypatch.setattr("sys.argv", list(words))
    args = parse_run("", eval_only=words[0] == "eval")
    if args.config_file in files_of_the_page():
        return  # one of docs/extend.md, which has a test of its own
    apply_overrides(load_config(ROOT / args.config_file), args.opts)


@pytest.mark.parametrize("command", commands(), ids=str)
def test_command_exists(command, monkeypatch, capsys):
    words = list(command.words)
    if words[0] in {"torchrun", "srun"}:  # start what follows their own options
        words = ["python", *words[words.index("tools/train_net.py") :]]
    if words[:3] == ["python", "-m", "aligndetr"]:
        words = words[2:]
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M)
        if shutil.which("make"):
            subprocess.run(["make", "-n", words[1]], cwd=ROOT, capture_output=True, check=True)
    elif words[0] == "pip":
        check_extras(words)
    elif words[0] == "python" and words[1] != "-m":
        check_tool(words[1:], monkeypatch)
    elif words[0] == "python":
        module = ROOT / (words[2].replace(".", "/") + ".py")
        assert module.is_file() or not words[2].startswith("aligndetr")
    elif words[0] == "trtexec":
        assert command.why_not_run
    elif words[0] == "aligndetr":
        check_console_command(words[1:], monkeypatch, capsys)
    else:
        pytest.fail(f"teach this test about {words}")


def check_extras(words):
    """That `aligndetr[a,b]` and `.[a]` name extras of setup.py."""
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    (extras,) = (
        ast.literal_eval(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword) and node.arg == "extras_require"
    )
    for word in words:
        if "[" in word:
            assert Requirement(word.replace(".[", "aligndetr[")).extras <= extras.keys()


def check_tool(words, monkeypatch):
    assert (ROOT / words[0]).is_file()
    if words[0] == "tools/train_net.py":
        check_run(words, monkeypatch)
    if words[0] == "tools/sweep.py":
        start = words.index("--config-file") + 1
        assert expand_words(words[start:], config_file)


def check_console_command(words, monkeypatch, capsys):
    assert words[0] in COMMANDS or words[0] in ("--help", "--version")
    if words[0] in ("train", "eval"):
        check_run(words, monkeypatch)
    elif words[0] in COMMANDS:
        monkeypatch.setattr("sys.argv", ["aligndetr"])
        with pytest.raises(SystemExit):
            main([words[0], "--help"])
        options = {word for word in words[1:] if word.startswith("--")}
        assert options <= set(re.findall(r"--[\w-]+", capsys.readouterr().out))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page):
    text = re.sub(
        r"```.*?```|^    .*?$|`[^`]*`", "", page.read_text(encoding="utf-8"), flags=re.S | re.M
    )
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_anchors_lead_to_a_heading(page):
    """On GitHub; `make docs` checks them for the site."""
    links = re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", page.read_text(encoding="utf-8"))
    wrong = [
        f"{path}#{anchor}"
        for path, anchor in links
        if anchor not in anchors_of(page.parent / path if path else page)
    ]
    assert wrong == []


def anchors_of(page):
    """Of the headings of a Markdown file, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w -]", "", h.strip().lower()).replace(" ", "-") for h in headings}


def test_anchors_of_a_page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Two runs, or more\n## Keys of `train`\n```bash\n# no heading\n```\n")
    assert anchors_of(page) == {"two-runs-or-more", "keys-of-train"}


def test_every_page_is_in_the_navigation_of_the_site():
    """Which `make docs` checks as well, where mkdocs is installed."""
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    listed = set(re.findall(r": (\S+\.md)$", navigation, re.M))
    outside = {"index.md", "repository/CONTRIBUTING.md"}
    here = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert {path for path in listed if not path.startswith("repository/")} == here | {"index.md"}
    assert outside <= listed


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_fenced_block_says_what_it_is(page):
    fences = re.findall(r"^ *```(.*)$", page.read_text(encoding="utf-8"), re.M)
    assert len(fences) % 2 == 0
    assert set(fences[::2]) <= LANGUAGES
    assert set(fences[1::2]) <= {""}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_page_with_python_has_a_test_that_runs_it(page):
    name = page.relative_to(ROOT).as_posix()
    has_python = re.search(r"^ *```python", page.read_text(encoding="utf-8"), re.M) is not None
    assert has_python == (name in SNIPPETS), "change SNIPPETS"
    if has_python:
        assert page.name in (ROOT / SNIPPETS[name]).read_text(encoding="utf-8")


def test_the_schedules_of_training_md_follow_the_length_of_the_run():
    from detectron2.config import LazyCall, instantiate
    from omegaconf import OmegaConf

    from aligndetr.engine import cosine_lr, multi_step_lr

    page = (ROOT / "docs/training.md").read_text(encoding="utf-8")
    block, _ = re.findall(r" *```python\n(.*?)```", page, re.S)
    factors = []
    for line in block.strip().splitlines():
        names = {"L": LazyCall, "cosine_lr": cosine_lr, "multi_step_lr": multi_step_lr}
        exec(line.strip(), names)
        cfg = OmegaConf.create({"train": {"max_iter": 5000}}, flags={"allow_objects": True})
        cfg.lr_multiplier = names["lr_multiplier"]
        schedule = instantiate(cfg.lr_multiplier)
        factors.append([round(schedule(share), 3) for share in (0.05, 0.5, 0.95)])
    (rising, half, late), (first, middle, last) = factors
    assert rising < 1 > half > late
    assert (first, middle, last) == (1, 1, 0.1)


def test_another_optimizer_of_training_md_has_the_rates_it_says():
    import torch
    from detectron2.config import LazyCall, instantiate
    from detectron2.solver import get_default_optimizer_params
    from omegaconf import OmegaConf

    from aligndetr.engine import backbone_lr_factor

    page = (ROOT / "docs/training.md").read_text(encoding="utf-8")
    _, block = re.findall(r" *```python\n(.*?)```", page, re.S)
    names = {
        "L": LazyCall,
        "torch": torch,
        "get_default_optimizer_params": get_default_optimizer_params,
        "backbone_lr_factor": backbone_lr_factor,
    }
    exec(block, names)
    cfg = OmegaConf.create({"optimizer": names["optimizer"]}, flags={"allow_objects": True})
    cfg.optimizer.params.model = torch.nn.ModuleDict(
        {"backbone": torch.nn.Linear(2, 2), "head": torch.nn.Linear(2, 2)}
    )
    optimizer = instantiate(cfg.optimizer)
    assert isinstance(optimizer, torch.optim.SGD)
    assert {group["lr"] for group in optimizer.param_groups} == {0.01, 0.001}


def test_commands_are_read_as_a_shell_reads_them():
    (command,) = (c for c in commands() if c.words[1:2] == ("examples/onnx_predict.py",))
    assert command.page == "docs/export.md"
    assert command.words == tuple(
        shlex.split(
            "python examples/onnx_predict.py output/demo/model.onnx "
            "datasets/trees/val/x0000_y0000.png"
        )
    )


def test_the_readme_is_short():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 200
    sizes = [path.stat().st_size for path in (ROOT / "docs/images").iterdir()]
    assert sum(sizes) < 500_000
