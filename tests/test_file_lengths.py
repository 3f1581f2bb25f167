"""A file is one idea: one that is long says in CONTRIBUTING.md why it is."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("aligndetr", "benchmarks", "docs", "projects", "tests", "tools")
MOST_LINES = 300


def test_long_files_are_those_that_contributing_names():
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    sources = [path for path in files if path.suffix in (".py", ".cpp")]
    assert len(sources) > 100
    long = {
        path.relative_to(ROOT).as_posix()
        for path in sources
        if len(path.read_text(encoding="utf-8").splitlines()) > MOST_LINES
    }
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    said = text.split("one that is longer says here why", 1)[1].split("##")[0]
    unsaid = [path for path in sorted(long) if f"`{path}`" not in said]
    assert not unsaid, unsaid
