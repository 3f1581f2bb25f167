"""Writes docs/configuration.md: every key of the configs, its value and what it means.

    python docs/generate/configuration.py

A key's meaning is the comment at the end of its line or above it in the config that sets it, else
what the docstring of the class that takes it says. Keys that no config sets but a class of ours
takes are there as well, with the class's default.
"""

import ast
import inspect
import io
import re
import sys
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from omegaconf import OmegaConf

from aligndetr.config import load_config
from aligndetr.config.key_names import locate_target

PAGE = ROOT / "docs/configuration.md"
CONFIG = ROOT / "projects/aligndetr/configs/aligndetr_k=2_r50_4scale_12ep.py"
# In the order in which one is built upon the other: a later comment goes before an earlier one.
SOURCES = [
    ROOT / "aligndetr/config/common/train.py",
    ROOT / "aligndetr/config/common/optim.py",
    ROOT / "aligndetr/config/common/coco_schedule.py",
    ROOT / "aligndetr/config/common/data/coco.py",
    ROOT / "projects/aligndetr/configs/models/aligndetr_r50.py",
    ROOT / "projects/aligndetr/configs/base.py",
]
SECTIONS = ("dataset", "dataloader", "train", "optimizer", "lr_multiplier", "model")
OURS = ("aligndetr", "projects")

INTRO = """\
# Configuration reference

<!-- Written by docs/generate/configuration.py from the comments of the configs. Change those. -->

Every key, with its value in
[`aligndetr_k=2_r50_4scale_12ep`](../projects/aligndetr/configs/aligndetr_k=2_r50_4scale_12ep.py).
An experiment is a `.py` file that changes some of them; on the command line a key is changed by
`KEY=VALUE` after all options:

```bash
python tools/train_net.py --config-file projects/aligndetr/configs/finetune.py \\
    dataset.root=/path/to/data train.amp.enabled=True model.criterion.match_num=[3,3,3,3,3,3,1] \\
    dataloader.train.mapper.augmentation.0.prob=0.3
```

- `null` empties a key, `[a,b]` is a list, `{a: 1}` a group; a number in a key is a place in a list.
  Text with commas or brackets needs quotes.
- `${train.device}` is the value of another key, `${..lr}` of one beside the group. Change the other
  key, and both follow.
- A key that does not exist is an error that names the nearest. So is a value of another kind.
- A group that says *built by* holds the arguments of a class or function. Those that are *not set*
  have the class's default and may be set too; `_target_` names another class (what a command line
  may name is limited, see [security.md](security.md)).
- `config.yaml` in the output folder has all of them as a run used them, and is a `--config-file`.
"""


@dataclass
class Group:
    """A part of the config and its rows: (key, value, meaning)."""

    path: str
    target: Callable | None
    rows: list[tuple[str, str, str]] = field(default_factory=list)


class Comments:
    """The comments of one config file, by the dotted key of the config that they stand at."""

    def __init__(self, path: Path):
        text = path.read_text(encoding="utf-8")
        self._at_end, self._alone = _comments_by_line(text)
        tree = ast.parse(text)
        self._helpers = {
            node.name: node.body[-1].value
            for node in tree.body
            if isinstance(node, ast.FunctionDef) and isinstance(node.body[-1], ast.Return)
        }
        self.found: dict[str, str] = {}
        self._described: set[int] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    key = ast.unparse(target)
                    if key.split(".")[0] in SECTIONS:
                        self._describe(key, target.lineno)
                        self._enter(key, node.value)

    def _describe(self, key: str, line: int) -> None:
        """Of several keys in one line the first has the comment; a helper is used repeatedly."""
        text = self._at_end.get(line)
        if text is None:
            lines, above = [], line - 1
            while above in self._alone:
                lines.insert(0, self._alone[above])
                above -= 1
            text = " ".join(lines)
        if text and (key in self.found or line not in self._described):
            self.found[key] = text
        self._described.add(line)

    def _enter(self, key: str, node: ast.AST) -> None:
        children: list[tuple[str | None, int, ast.AST]] = []
        if isinstance(node, ast.Dict):
            children = [
                (name.value, name.lineno, value)
                for name, value in zip(node.keys, node.values, strict=True)
                if isinstance(name, ast.Constant)
            ]
        elif isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in self._helpers:
                self._described.clear()
                return self._enter(key, self._helpers[node.func.id])
            if node.args and isinstance(node.args[0], ast.Dict):  # OmegaConf.create({...})
                return self._enter(key, node.args[0])
            children = [(k.arg, k.lineno, k.value) for k in node.keywords]
        for name, line, value in children:
            if name:
                self._describe(f"{key}.{name}", line)
                self._enter(f"{key}.{name}", value)
        return None


def _comments_by_line(text: str) -> tuple[dict[int, str], dict[int, str]]:
    """Comments at the end of a line of code, and those with a line of their own."""
    at_end, alone = {}, {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and not token.string.startswith("# noqa"):
            comment = token.string.lstrip("# ")
            where = at_end if token.line[: token.start[1]].strip() else alone
            where[token.start[0]] = comment
    return at_end, alone


def arguments_in_docstring(target: Callable) -> dict[str, str]:
    """What "Args:" of a class (or its bases) or function says about each argument.

    An entry that only points to another class ("as `BaseCriterion`.") is looked up there if that
    is a base.
    """
    found: dict[str, str] = {}
    for owner in inspect.getmro(target) if inspect.isclass(target) else [target]:
        text = inspect.cleandoc(owner.__doc__ or "")
        section = re.search(r"^Args:\n((?:    .*\n?|\n(?=    ))+)", text, re.M)
        if not section or not owner.__module__.startswith(OURS):
            continue
        entries = re.findall(r"^    (\w[\w,\s]*?): *((?:.*\n?)(?:^      .*\n?)*)", section[1], re.M)
        for names, meaning in entries:
            meaning = " ".join(meaning.split())
            if not re.match(r"as `\w+`", meaning):
                for name in re.split(r",\s*", names):
                    found.setdefault(name, meaning)
    return found


def groups(cfg: dict, comments: dict[str, str]) -> Iterator[Group]:
    for section in SECTIONS:
        yield from _groups_of(section, cfg[section], comments)


def _groups_of(path: str, part: dict, comments: dict[str, str]) -> Iterator[Group]:
    target = locate_target(part["_target_"]) if "_target_" in part else None
    meanings = arguments_in_docstring(target) if target else {}
    group, inner = Group(path, target), []
    for key, value in _entries(path, part):
        if isinstance(value, dict) and "_target_" in value:
            inner.append((key, value))
        elif isinstance(value, dict) and target is None:
            if key in comments:
                group.rows.append((f"{key}.*", "", sentence(comments[key])))
        else:
            meaning = comments.get(key) or meanings.get(key.rpartition(".")[2], "")
            group.rows.append((key, shown(value), sentence(meaning)))
    for name, default in _other_arguments(target, part):
        meaning = sentence(comments.get(f"{path}.{name}") or meanings.get(name, ""))
        group.rows.append((f"{path}.{name}", f"{shown(default)} (not set)", meaning))
    yield group
    for key, value in inner:
        yield from _groups_of(key, value, comments)


def _entries(path: str, part: dict) -> Iterator[tuple[str, Any]]:
    """Keys and values of `part` and of the plain groups in it."""
    for name, value in part.items():
        if name != "_target_":
            yield f"{path}.{name}", value
        # The entries of a dict that is an argument (loss weights) are no keys of the config's own.
        if isinstance(value, dict) and "_target_" not in value and "_target_" not in part:
            yield from _entries(f"{path}.{name}", value)


def _other_arguments(target: Callable | None, part: dict) -> Iterator[tuple[str, Any]]:
    """What the config does not set of the arguments of a class or function of ours."""
    if target and target.__module__.startswith(OURS):
        for name, parameter in inspect.signature(target).parameters.items():
            if name not in part and parameter.default is not inspect.Parameter.empty:
                yield name, parameter.default


def shown(value: Any) -> str:
    """As it is written on a command line, in one short line."""
    if value is None:
        return "`null`"
    if isinstance(value, str):
        return f"`{value}`" if value else '`""`'
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return ", ".join(f"`{locate_target(entry['_target_']).__name__}`" for entry in value)
    if isinstance(value, list) and len(value) > 8 and len({b - a for a, b in _pairs(value)}) == 1:
        return f"`[{value[0]}, {value[1]}, … {value[-1]}]`"
    if isinstance(value, dict) and len(value) > 6:
        return f"{len(value)} entries"
    plain = str(value).replace("'", "")
    return f"`{plain}`"


def _pairs(values: list) -> list[tuple]:
    return list(zip(values, values[1:]))


def sentence(text: str) -> str:
    """One way of writing for what comes from comments and from docstrings; safe in a table."""
    text = re.sub(r"\bNone\b", "`null`", text.strip().rstrip(".").replace("|", "\\|"))
    first = re.match(r"[a-z]+(?=[\s',:])", text)
    return text[:1].upper() + text[1:] if first else text


def page() -> str:
    comments: dict[str, str] = {}
    for source in SOURCES:
        comments |= Comments(source).found
    cfg = OmegaConf.to_container(load_config(CONFIG), resolve=False)
    lines, section = [INTRO], ""
    for group in groups(cfg, comments):
        if group.path in SECTIONS:
            section = group.path
            lines += [f"## {section}", ""]
            if comments.get(section):
                lines += [comments[section], ""]
        elif group.rows:
            lines += [f"### {group.path}", ""]
            if comments.get(group.path):
                lines += [f"{sentence(comments[group.path])}.", ""]
        if group.target and group.rows:
            lines += [_built_by(group.target), ""]
        if group.rows:
            lines += ["| key | value | |", "|---|---|---|"]
            lines += [f"| `{key}` | {value} | {meaning} |" for key, value, meaning in group.rows]
            lines += [""]
    return "\n".join(lines)


def _built_by(target: Callable) -> str:
    name = f"`{target.__module__}.{target.__qualname__}`"
    if not target.__module__.startswith(OURS):
        return f"Built by {name}."
    package = target.__module__.rpartition(".")[0]
    source = Path(inspect.getsourcefile(target)).resolve().relative_to(ROOT).as_posix()
    return f"Built by [`{package}.{target.__qualname__}`](../{source})."


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
