"""What the site has besides docs/: hooks that mkdocs.yml names.

The pages are written to be read on GitHub too, so they link to files all over the repository. On
the site README.md is the first page, other Markdown files and sources that a page links to become
pages under repository/, and links follow them. Formulas become MathML, which browsers draw without
a script.
"""

import html
import json
import posixpath
import re
from collections.abc import Callable
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "CONTRIBUTING.md")  # that are there whether a page links to them or not
PROSE = (".md", ".ipynb")  # have links; all others are shown as they are
LANGUAGES = {".py": "python", ".cpp": "cpp", ".yaml": "yaml", ".toml": "toml"}

# Code is passed over: group 2 is there for links only.
_LINK = re.compile(r"```.*?```|`[^`\n]*`|(\]\()([^)\s]+)(?=\))", re.S)
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.S)


def on_files(files: Files, config) -> Files:
    """Adds README, CONTRIBUTING and every file outside docs/ that a page leads to."""
    waiting = list(PAGES)
    for file in files.documentation_pages():
        waiting += linked_files(f"docs/{file.src_uri}", file.content_string)
    done = set()
    while waiting:
        path = waiting.pop()
        if path in done or path.startswith("docs/") or not (ROOT / path).exists():
            continue
        done.add(path)
        text = page_text(path)
        if path.endswith(PROSE):
            waiting += linked_files(path, text)
        # Sources are not in the navigation; a Markdown file is, or mkdocs says that it is not.
        level = InclusionLevel.INCLUDED if path.endswith(".md") else InclusionLevel.NOT_IN_NAV
        page = File.generated(config, site_path(path), content=text, inclusion=level)
        page.repository_path = path
        files.append(page)
    return files


def on_page_markdown(markdown: str, page: Page, **_) -> str:
    """Leads links to where the site has what they name; broken ones stay, for mkdocs to report."""
    own_path = getattr(page.file, "repository_path", f"docs/{page.file.src_uri}")
    if not own_path.endswith(PROSE):
        return markdown
    folder = posixpath.dirname(page.file.src_uri)

    def on_site(path: str) -> str:
        return posixpath.relpath(site_path(path), folder or ".")

    return with_links(markdown, own_path, on_site)


def on_page_content(content: str, **_) -> str:
    """LaTeX, which arithmatex has marked, to MathML."""

    def to_mathml(match: re.Match) -> str:
        display = "inline" if match[1] == "span" else "block"
        return convert(html.unescape(match[2]), display=display)

    return _FORMULA.sub(to_mathml, content)


def linked_files(path: str, markdown: str) -> list[str]:
    """Paths from the root of the repository that the page at `path` links to and that exist."""
    found: list[str] = []
    with_links(markdown, path, lambda target: found.append(target) or "")
    return found


def with_links(markdown: str, path: str, place: Callable[[str], str]) -> str:
    """`markdown` with `place(file)` for each link to a file of the repository."""

    def replace(match: re.Match) -> str:
        if not match[2] or re.match(r"[a-z]+:|#|/", match[2]):
            return match[0]
        target, hash_sign, anchor = match[2].partition("#")
        file = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
        if file.startswith("..") or not (ROOT / file).exists():
            return match[0]
        return f"{match[1]}{place(file)}{hash_sign}{anchor}"

    return _LINK.sub(replace, markdown)


def site_path(path: str) -> str:
    """Where the site has what lies at `path` in the repository, as mkdocs' `src_uri`."""
    if path == "README.md":
        return "index.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if (ROOT / path).is_dir():
        path = f"{path}/README.md"
    return f"repository/{path}" if path.endswith(".md") else f"repository/{path}.md"


def page_text(path: str) -> str:
    """Markdown of the page: the file itself, a source in a block of code, a folder's list."""
    file = ROOT / path
    if file.is_dir():
        readme = file / "README.md"
        if readme.exists():
            return readme.read_text(encoding="utf-8")
        names = sorted(child.name for child in file.iterdir() if not child.name.startswith("__"))
        return f"# {path}\n\n" + "\n".join(f"- `{name}`" for name in names) + "\n"
    text = file.read_text(encoding="utf-8")
    if path.endswith(".md"):
        return text
    if path.endswith(".ipynb"):
        return notebook_text(json.loads(text))
    language = LANGUAGES.get(file.suffix, "text")
    return f"# {path}\n\n````{language}\n{text}\n````\n"


def notebook_text(notebook: dict) -> str:
    """Its cells, and what they have printed and drawn."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                picture = "".join(data["image/png"]).replace("\n", "")
                parts.append(f"![what the cell drew](data:image/png;base64,{picture})")
            else:
                printed = "".join(output.get("text", data.get("text/plain", "")))
                parts.append(f"````text\n{printed}\n````")
    return "\n\n".join(parts)
