"""docs/troubleshooting.md quotes messages that the source still has, and remedies that exist."""

import ast
import re
from pathlib import Path

import pytest

from aligndetr.config import apply_overrides, load_config

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
OURS, OTHERS = PAGE.split("## Messages of other libraries")
# Python's own, before anything of ours runs.
NOT_OURS = {"No module named 'detectron2'"}


def quoted():
    """The messages: lines that are bold and one span of code, without Markdown's marks."""
    spans = re.findall(r"^\*\*(?:`` (.+?) ``|`([^`]+)`)\*\*$", OURS, re.M)
    return [ticked or plain for ticked, plain in spans]


def texts():
    """Every text of the source, "…" where a value is filled in, and without backticks."""
    for path in [*(ROOT / "aligndetr").rglob("*.py"), *(ROOT / "projects").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (
                    part.value if isinstance(part, ast.Constant) else "…" for part in node.values
                )
                yield "".join(parts).replace("`", "")
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield re.sub(r"%[.\d]*[sdrfg]", "…", node.value).replace("`", "")


@pytest.fixture(scope="module")
def source():
    return list(texts())


def says(text, message):
    """Whether the fixed words of `message` stand in `text`, in their order."""
    fixed = [part.strip() for part in message.replace("`", "").split("…")]
    return all(part in text for part in fixed) and (
        re.search(".*?".join(map(re.escape, fixed)), text, re.S) is not None
    )


def test_there_are_messages_to_check():
    assert len(quoted()) >= 60
    # No bold line escapes the check because it is written in another way.
    assert len(re.findall(r"^\*\*`.*`\*\*$", OURS, re.M)) == len(quoted())
    for message in quoted():
        words = re.findall(r"\w{2,}", message)
        assert len(words) >= 3, f"{message!r} would be found anywhere"


@pytest.mark.parametrize("message", [m for m in quoted() if m not in NOT_OURS])
def test_the_message_is_in_the_source(message, source):
    assert any(says(text, message) for text in source)


def test_another_message_would_be_noticed(source):
    assert not any(says(text, "config file … is nowhere") for text in source)
    assert not any(says(text, "does not exist … config file") for text in source)


@pytest.mark.parametrize(
    "override",
    sorted(
        set(re.findall(r"`((?:train|dataset|dataloader|model|optimizer)\.[\w.]+=[^`…]+)`", PAGE))
    ),
)
def test_the_override_that_is_advised_is_one(override):
    config = ROOT / "projects/aligndetr/configs/aligndetr_k=2_r50_4scale_12ep.py"
    apply_overrides(load_config(config), [override.replace("FOLDER", "folder")])
