"""No line of ours reads a file in a way that could run it; found in the source with `ast`."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("aligndetr", "projects", "tools", "benchmarks")

# Calls by the end of their dotted name, and the files that may make them. (Tests may.)
FORBIDDEN = {
    r"(pickle|cPickle|dill|cloudpickle|joblib|marshal|shelve)\.(load|loads|open|Unpickler)": (),
    r"yaml\.(load|load_all)": ("aligndetr/utils/safe_yaml.py",),
    r"yaml\.(unsafe|full)_load(_all)?|OmegaConf\.load|LazyConfig\.load_rel": (),
    r"LazyConfig\.load": (
        *("aligndetr/config/loading.py", "aligndetr/config/shared.py"),
        "benchmarks/model.py",  # a config of ours
    ),
    r"torch\.hub\.(load|download_url_to_file)|torch\.jit\.load": (),
    r"model_zoo\.load_url|load_state_dict_from_url": (),
    r"(\w+\.)?(extractall|unpack_archive)": (),
    r"urlretrieve|urlopen|requests\.(get|post)": (),
    r"eval|exec": (),
    r"os\.(system|popen)": (),
}
# Imported under a bare name, these would not be found by the names above.
FORBIDDEN_IMPORTS = {"pickle", "yaml", "torch", "torch.hub", "numpy", "shutil", "urllib.request"}
LAST_PARTS = re.compile(r"load|Unpickler|open|extractall|unpack|url|get|post|eval|exec|system|hub")
CONCERNS_TESTS = re.compile(r"(torch|np|numpy)\.load|import load|shell=")
THIS = Path(__file__)
RISKY = re.compile(r"load|loads|Unpickler|unsafe_load|full_load|unpack_archive|urlopen|urlretrieve")


def problems(path: Path, tree: ast.AST) -> list[str]:
    name = path.relative_to(ROOT).as_posix()
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in FORBIDDEN_IMPORTS:
            names = [alias.name for alias in node.names if RISKY.fullmatch(alias.name)]
            found += [f"{name}:{node.lineno} imports {node.module}.{n} bare" for n in names]
        if not isinstance(node, ast.Call) or not _may_matter(node):
            continue
        called, where = ast.unparse(node.func), f"{name}:{node.lineno}"
        options = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
        if called == "torch.load" and options.get("weights_only") is not True:
            found.append(f"{where} torch.load without weights_only=True")
        if called in ("np.load", "numpy.load") and options.get("allow_pickle") is not False:
            found.append(f"{where} {called} without allow_pickle=False")
        if options.get("shell") is True:
            found.append(f"{where} {called} with shell=True")
        for pattern, allowed in FORBIDDEN.items():
            if name.startswith("tests/") or name in allowed:
                continue
            if re.fullmatch(rf"(.*\.)?({pattern})", called):
                # model.eval() is another thing
                if called.rpartition(".")[2] in ("eval", "exec") and "." in called:
                    continue
                found.append(f"{where} calls {called}")
    return found


def _may_matter(call: ast.Call) -> bool:
    """By the last part of its name, which is quick to see."""
    last = getattr(call.func, "attr", getattr(call.func, "id", ""))
    return bool(LAST_PARTS.search(last)) or any(k.arg == "shell" for k in call.keywords)


SOURCES = [path for folder in (*OURS, "tests") for path in sorted((ROOT / folder).rglob("*.py"))]


def test_every_file_is_read_as_data():
    texts = {path: path.read_text(encoding="utf-8") for path in SOURCES if path != THIS}
    found = [
        problem
        for path, text in texts.items()
        if path.relative_to(ROOT).parts[0] in OURS or CONCERNS_TESTS.search(text)
        for problem in problems(path, ast.parse(text))
    ]
    assert found == []


def test_there_is_no_switch_that_trusts_a_file():
    """Nobody can be talked into giving it."""
    option = re.compile(
        "--" + "trust|trust_" + r"(remote_code|repo)\b|weights_only\s*=\s*" + "False"
    )
    found = [p for p in SOURCES if option.search(p.read_text(encoding="utf-8"))]
    assert [p for p in found if p.relative_to(ROOT).parts[0] in OURS] == []


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=safe)",
        "np.load(path)",
        "pickle.load(file)",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.unsafe_load(text)",
        "OmegaConf.load(path)",
        "archive.extractall(folder)",
        "torch.hub.load('a/b', 'c')",
        "subprocess.run(command, shell=True)",
        "eval(text)",
        "from pickle import loads",
        "from torch import load",
        "urllib.request.urlretrieve(url)",
    ],
)
def test_the_rule_catches(line):
    assert len(problems(ROOT / "aligndetr/some_file.py", ast.parse(line))) == 1
