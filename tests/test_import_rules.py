"""Who may import whom, read from the source with `ast`, so no import can hide in a function.

    utils <- layers <- {losses, matchers, modeling} <- criterions <- projects

`layers` needs torch (and scipy for a sort), `losses` and `matchers` do not know each other,
`engine` knows no model, `data` neither, and nothing in the library knows `projects` or `tools`.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = {"aligndetr", "projects", "tools", "tests", "benchmarks"}

# A package may also import itself, and anybody the version.
MAY_IMPORT = {
    "aligndetr": set(),
    "aligndetr.__main__": {"cli"},
    "aligndetr.install_detectron2": set(),
    "aligndetr.quiet": set(),
    "aligndetr.shipped": set(),
    "aligndetr.utils": set(),
    "aligndetr.layers": {"utils"},
    "aligndetr.losses": {"layers", "utils"},
    "aligndetr.matchers": {"layers", "utils"},
    "aligndetr.modeling": {"layers", "utils"},
    "aligndetr.criterions": {"losses", "matchers", "modeling", "layers", "utils"},
    "aligndetr.data": {"utils"},
    "aligndetr.evaluation": {"data", "utils"},
    "aligndetr.checkpoint": {"utils"},
    "aligndetr.engine": {"checkpoint", "data", "evaluation", "inference", "utils"},
    "aligndetr.inference": {"checkpoint", "data", "utils"},
    "aligndetr.analysis": {"checkpoint", "data", "engine", "evaluation", "inference", "utils"},
    "aligndetr.export": {"data", "evaluation", "inference", "utils"},
    "aligndetr.profiling": {"utils"},
    "aligndetr.config": {"checkpoint", "shipped", "utils"},
    "aligndetr.sweeps": {"config", "engine", "shipped", "utils"},
    "aligndetr.app": {"inference", "utils"},
    # Programs, as those in tools/ are: all of the library.
    "aligndetr.cli": {path.stem for path in (ROOT / "aligndetr").iterdir()},
    "projects.aligndetr": {"criterions", "losses", "matchers", "modeling", "layers", "utils"},
    "projects.align_dab_detr": {"criterions", "losses", "matchers", "modeling", "layers", "utils"},
}
# A run checks its config and saves it, in its folder and in its checkpoints; it does not choose
# it. And it says how deformable attention is computed, which is compiled before the first step.
EXCEPTIONS = {
    "aligndetr.engine": {
        "aligndetr.config.CONFIG_FILE",
        "aligndetr.config.check_arguments",
        "aligndetr.config.check_known_keys",
        "aligndetr.config.config_to_yaml",
        "aligndetr.config.save_config",
        "aligndetr.config.saved_value",
        "aligndetr.layers.check_backend_name",
        "aligndetr.layers.set_default_backend",
    },
    # Two runtimes are compared on one ranking of the tokens.
    "aligndetr.export": {"aligndetr.modeling.TokenRanking"},
    # A checkpoint is a model only together with the config in it or named beside it.
    "aligndetr.inference": {
        "aligndetr.config.CONFIG_FILE",
        "aligndetr.config.apply_overrides",
        "aligndetr.config.config_from_yaml",
        "aligndetr.config.config_to_yaml",
        "aligndetr.config.load_config",
        "aligndetr.layers.set_default_backend",
    },
    # A finished run is read with the config beside it or in its checkpoint.
    "aligndetr.analysis": {
        "aligndetr.config.CONFIG_FILE",
        "aligndetr.config.apply_overrides",
        "aligndetr.config.load_config",
        "aligndetr.layers.set_default_backend",
    },
}
# Configs and tools put the parts together and may import all of the library.
CONFIG_FOLDERS = (
    "aligndetr/config/common",
    "projects/aligndetr/configs",
    "projects/align_dab_detr/configs",
)
MAX_LINES = {"tools": 60, "cli": 100}

STDLIB_AND_TORCH = sys.stdlib_module_names | {"torch"}


def source_files(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def imported_modules(path: Path, tree: ast.AST | None = None) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of every import in `path`, wherever it stands."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(tree or ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from aligndetr import engine` imports aligndetr.engine.
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def owner(name: str) -> str:
    """The part of ours that a dotted name belongs to: `aligndetr.layers`, `projects.aligndetr`."""
    return ".".join(name.split(".")[:2])


def part_of(path: Path) -> str:
    return owner(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))


def is_config(path: Path) -> bool:
    return path.relative_to(ROOT).as_posix().startswith(CONFIG_FOLDERS)


def violations(path: Path, tree: ast.AST | None = None) -> list[str]:
    part = part_of(path)
    assert part in MAY_IMPORT, f"{part} is new: say in MAY_IMPORT what it may know"
    allowed = {f"aligndetr.{name}" for name in MAY_IMPORT[part]}
    allowed |= {part, "aligndetr", "aligndetr.__version__", "aligndetr.quiet"}
    return [
        f"{path.relative_to(ROOT)}:{line} imports {name}; "
        f"{part} may import only {sorted(MAY_IMPORT[part]) or 'nothing of ours'}"
        for line, name in imported_modules(path, tree)
        if name.split(".")[0] in OURS
        and owner(name) not in allowed
        and name not in EXCEPTIONS.get(part, ())
    ]


LIBRARY = source_files("aligndetr", "projects")


@pytest.mark.parametrize(
    "path",
    [path for path in LIBRARY if not is_config(path)],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_imports_only_what_its_part_may_know(path):
    assert violations(path) == []


@pytest.mark.parametrize("folder", ["aligndetr", "benchmarks", "tests", "tools", "projects"])
def test_nothing_imports_a_script(folder):
    # Benchmarks share a clock and baselines, which are tested against ours.
    scripts = {"tools"} if folder in {"benchmarks", "tests"} else {"tools", "benchmarks"}
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in source_files(folder)
        for line, name in imported_modules(path)
        if name.split(".")[0] in scripts
    ]
    assert found == []


def test_configs_of_the_library_do_not_know_the_projects():
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in source_files("aligndetr/config")
        for line, name in imported_modules(path)
        if name.split(".")[0] == "projects"
    ]
    assert found == []


def test_layers_need_torch_alone():
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in source_files("aligndetr/layers")
        for line, name in imported_modules(path)
        if name.split(".")[0] not in STDLIB_AND_TORCH | {"aligndetr"}
        # Comes with torch's CUDA builds; nothing imports these files where it is not installed.
        and not (name.split(".")[0] == "triton" and path.name.startswith("triton_"))
        and not (name.split(".")[0] == "scipy" and path.name == "sparse_products.py")
    ]
    assert found == []


def test_installer_runs_before_anything_is_installed():
    found = set()
    for name in ("__init__.py", "quiet.py", "install_detectron2.py"):
        path = ROOT / "aligndetr" / name
        found |= {name.split(".")[0] for _, name in imported_modules(path)}
    assert found <= sys.stdlib_module_names | {"aligndetr"}


def test_top_package_holds_its_version_and_re_exports_nothing():
    tree = ast.parse((ROOT / "aligndetr/__init__.py").read_text(encoding="utf-8"))
    docstring, quiet, version = tree.body
    assert ast.unparse(quiet) == "from . import quiet"
    assert ast.get_docstring(tree)
    assert isinstance(docstring, ast.Expr)
    assert isinstance(version, ast.Assign)
    assert ast.unparse(version).startswith("__version__ = ")


def test_projects_is_a_namespace_package():
    assert not (ROOT / "projects/__init__.py").exists()


@pytest.mark.parametrize(
    "path",
    source_files("tools", "aligndetr/cli"),
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_tools_are_thin(path):
    text = path.read_text(encoding="utf-8")
    limit = MAX_LINES["cli" if path.parent.name == "cli" else "tools"]
    assert len(text.splitlines()) <= limit, "move the logic into the library"
    classes = [node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef)]
    assert classes == [], "move the class into the library"


@pytest.mark.parametrize(
    ("part", "statement"),
    [
        ("layers", "from aligndetr.modeling import ChannelMapper"),
        ("layers", "def f():\n    import aligndetr.modeling"),
        ("layers", "from ..modeling.levels import FeatureLevels"),
        ("layers", "from aligndetr import modeling"),
        ("losses", "from aligndetr.matchers import MixedMatcher"),
        ("matchers", "from .. import losses"),
        ("modeling", "from projects.aligndetr.modeling import AlignDETR"),
        ("engine", "from aligndetr.modeling import ChannelMapper"),
        ("engine", "from aligndetr.config import load_config"),
        ("data", "from aligndetr.config import get_config"),
    ],
)
def test_the_rules_catch(part, statement):
    path = ROOT / "aligndetr" / part / "some_file.py"
    assert len(violations(path, ast.parse(statement))) == 1
