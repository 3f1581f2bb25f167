"""One table of what was loaded and what was not."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from tabulate import tabulate

MAX_ROWS = 40
KEPT = "keeps its initial value"


@dataclass
class LoadReport:
    """How the tensors of a file and those of a model correspond."""

    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: dict[str, tuple[tuple, tuple]] = field(default_factory=dict)
    """Name to (shape in the file, shape in the model)."""
    dropped: list[str] = field(default_factory=list)
    """Names in the file that no detector has, such as a classifier's."""
    filled: list[str] = field(default_factory=list)
    """Loaded names whose value follows from the file's kind, and does not stand in it."""

    @property
    def complete(self) -> bool:
        return not (self.missing or self.unexpected or self.mismatched)

    def used_share(self) -> float:
        """Of the file's tensors, those that have a place in the model (of any size)."""
        used = len(self.loaded) + len(self.mismatched)
        return used / max(1, used + len(self.unexpected))

    def covered_share(self) -> float:
        """Of the tensors in the model's parts that the file is about, those that it has."""
        used = len(self.loaded) + len(self.mismatched)
        touched = self._touched_parts()
        missing = sum(_part(name) in touched for name in self.missing)
        return used / max(1, used + missing)

    def describe(self) -> str:
        """A line, and a table of all that was not simply loaded."""
        line = f"{len(self.loaded)} tensors loaded"
        rows = [
            (
                f"{name}: {in_file} in the file, {here} here",
                1,
                "other shape: keeps its initial value",
            )
            for name, (in_file, here) in self.mismatched.items()
        ]
        touched = self._touched_parts()
        absent = [name for name in self.missing if _part(name) not in touched]
        rows += _grouped(map(_part, absent), f"not in the file: {KEPT}")
        partly = [name for name in self.missing if _part(name) in touched]
        rows += _rows(partly, f"not in the file: {KEPT}")
        rows += _rows(self.filled, "not in the file: has one possible value, which was set")
        rows += _rows(self.unexpected, "in the file alone: not used")
        rows += _rows(self.dropped, "in the file alone: of no use to a detector")
        if not rows:
            return line
        table = tabulate(_cut(rows), headers=("name", "tensors", "what"), tablefmt="simple")
        return f"{line}\n{table}"

    def _touched_parts(self) -> set[str]:
        """Top-level modules of which something is in the file."""
        return {_part(name) for name in (*self.loaded, *self.mismatched)}


def _cut(rows: list[tuple]) -> list[tuple]:
    if len(rows) <= MAX_ROWS:
        return rows
    rest = sum(row[1] for row in rows[MAX_ROWS:])
    return [*rows[:MAX_ROWS], ("…", rest, f"{len(rows) - MAX_ROWS} rows more")]


def _rows(names: Iterable[str], what: str) -> list[tuple]:
    """A row per module, with the names of its tensors in braces: `conv1.{bias, weight}`."""
    modules = defaultdict(list)
    for name in names:
        module, _, tensor = name.rpartition(".")
        modules[module].append(tensor)
    rows = []
    for module, tensors in modules.items():
        together = tensors[0] if len(tensors) == 1 else "{" + ", ".join(tensors) + "}"
        rows.append((f"{module}.{together}" if module else together, len(tensors), what))
    return rows


def _grouped(parts: Iterable[str], what: str) -> list[tuple]:
    counts: dict[str, int] = defaultdict(int)
    for part in parts:
        counts[part] += 1
    return [(f"all of {part}", count, what) for part, count in counts.items()]


def _part(name: str) -> str:
    return name.partition(".")[0]
