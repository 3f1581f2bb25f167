"""Reading a json of any size entry by entry, with the parser and the errors of `json.load`.

Python's own scanner decodes each entry, so values and types are exactly those of `json.load`,
and so is what it accepts: `NaN` too, which jsons written by Python hold and other parsers refuse.
"""

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

CHUNK = 1 << 20
"""Bytes read at once. An entry may be longer: the buffer grows to hold it."""

MAX_ENTRY = 256 << 20
"""Characters that one entry may have; a crowd's mask in a large image has a few million."""

_SPACE = " \t\n\r"
_skip_space = re.compile(rf"[{_SPACE}]*").match
_skip_separator = re.compile(rf"[{_SPACE}]*([,\]])[{_SPACE}]*").match
_decode = json.JSONDecoder().raw_decode

# An error this close to the end of the buffer may be a token cut in two, the longest of which
# that is no string is "-Infinity".
_LONGEST_TOKEN = 16


class JsonReader:
    """A cursor in a json. Only the text of the entry at hand is in memory.

    Every method raises json.JSONDecodeError (a ValueError) for what is not JSON, UnicodeDecodeError
    (a ValueError too) for what is not text, ValueError for an entry of more than `MAX_ENTRY`, and
    RecursionError for nesting too deep to decode.

    Args:
        file: opened for reading bytes; UTF-8, UTF-16 or UTF-32, with or without a byte order mark.
        chunk: bytes to read at once.
    """

    def __init__(self, file: BinaryIO, chunk: int = CHUNK):
        encoding = json.detect_encoding(file.read(4))
        file.seek(0)
        self._file = file
        # As json.load does: lone surrogates are let through.
        self._to_text = codecs.getincrementaldecoder(encoding)("surrogatepass").decode
        self._chunk = chunk
        self._text, self._pos = "", 0
        self._chars_before = 0
        self._at_end = False

    def peek(self) -> str:
        """The next character that is not white space, "" at the end of the file."""
        while True:
            # It matches nothing, too, so there is always a match.
            self._pos = _skip_space(self._text, self._pos).end()  # pyright: ignore[reportOptionalMemberAccess]
            if self._pos < len(self._text) or self._at_end:
                return self._text[self._pos : self._pos + 1]
            self._read_more()

    def value(self) -> Any:
        """Decode the value that starts here, whole."""
        if self._text[self._pos : self._pos + 1] in _SPACE:  # so is "", the end of the buffer
            self.peek()
        while True:
            try:
                value, end = _decode(self._text, self._pos)
            except json.JSONDecodeError as error:
                cut_off = error.pos + _LONGEST_TOKEN >= len(self._text)
                if self._at_end or not (cut_off or error.msg.startswith("Unterminated string")):
                    raise self._error(error.msg, error.pos) from None
            else:
                # At the end of the buffer 1.5 may be half of 1.5e+7, whose "e+" is no error yet.
                if end + 2 < len(self._text) or self._at_end:
                    self._pos = end
                    return value
            self._read_more()

    def items(self) -> Iterator[Any]:
        """The values of the list that starts here, one after the other."""
        self._take("[", "Expecting a list")
        if self.peek() == "]":
            self._pos += 1
            return
        while True:
            yield self.value()
            separator = _skip_separator(self._text, self._pos)
            if separator and separator.end() < len(self._text):  # nearly always, and quick
                self._pos = separator.end()
                found = separator[1]
            else:
                found = self._take(",]", "Expecting ',' delimiter")
            if found == "]":
                return

    def members(self) -> Iterator[str]:
        """The keys of the object that starts here; the caller reads each key's value."""
        self._take("{", "Expecting an object")
        if self.peek() == "}":
            self._pos += 1
            return
        while True:
            if self.peek() != '"':
                raise self._error("Expecting property name enclosed in double quotes", self._pos)
            key = self.value()
            self._take(":", "Expecting ':' delimiter")
            yield key
            if self._take(",}", "Expecting ',' delimiter") == "}":
                return

    def skip_value(self) -> None:
        """Read past the value that starts here; a list may be of any length."""
        if self.peek() == "[":
            for _ in self.items():
                pass
        else:
            self.value()

    def end(self) -> None:
        """Make sure that nothing follows."""
        if self.peek():
            raise self._error("Extra data", self._pos)

    def _take(self, allowed: str, message: str) -> str:
        found = self.peek()
        if not found or found not in allowed:
            raise self._error(message, self._pos)
        self._pos += 1
        return found

    def _read_more(self) -> None:
        """Drop what is behind the cursor. A long entry doubles the buffer each time."""
        self._chars_before += self._pos
        rest = self._text[self._pos :]
        if len(rest) > MAX_ENTRY:
            raise ValueError(f"an entry of more than {MAX_ENTRY} characters")
        more = self._file.read(max(self._chunk, len(rest)))
        self._at_end = not more
        self._text, self._pos = rest + self._to_text(more, final=not more), 0

    def _error(self, message: str, pos: int) -> json.JSONDecodeError:
        """An error that counts from the start of the file, near whose end it may be."""
        error = json.JSONDecodeError(message, self._text, pos)
        error.args = (f"{message}: char {self._chars_before + pos}",)
        return error
