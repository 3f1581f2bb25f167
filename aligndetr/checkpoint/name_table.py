"""Two codebases' names for the same tensors, as a table that is read in both directions."""

import re
from collections.abc import Iterable

WILDCARDS = {"#": r"(\d+)", "*": r"(.+)"}


class NameTable:
    """Rows of (their name, our name), of which the first that fits counts.

    `#` stands for a number and `*` for the rest of a name. Both names of a row have the same
    wildcards in the same order: `norms.#.*` and `layer_norms.#.*`.
    """

    def __init__(self, rows: Iterable[tuple[str, str]]):
        rows = list(rows)
        self._to_ours = [(_pattern(theirs), _template(ours)) for theirs, ours in rows]
        self._to_theirs = [(_pattern(ours), _template(theirs)) for theirs, ours in rows]

    def ours(self, name: str) -> str | None:
        """Our name of a tensor that they call `name`; None if no row fits."""
        return _translate(name, self._to_ours)

    def theirs(self, name: str) -> str | None:
        """Their name of a tensor that we call `name`; None if no row fits."""
        return _translate(name, self._to_theirs)


def _translate(name: str, rows: list[tuple[re.Pattern, str]]) -> str | None:
    for pattern, template in rows:
        if pattern.fullmatch(name):
            return pattern.sub(template, name)
    return None


def _pattern(name: str) -> re.Pattern:
    return re.compile("".join(WILDCARDS.get(char, re.escape(char)) for char in name))


def _template(name: str) -> str:
    parts = re.split(r"[#*]", name)
    return parts[0] + "".join(rf"\g<{i}>{part}" for i, part in enumerate(parts[1:], start=1))
