"""Reading a json by entries gives what `json.load` gives, wherever the buffer ends."""

import io
import json
import math
import random

import pytest

from aligndetr.data import json_stream
from aligndetr.data.json_stream import JsonReader

VALUES = [
    *(0, -1, 12345678901234567890, 1.5, -2.5e-7, 1e300, True, False, None, "", "ü€😀", "\ud800"),
    *('a"b\\c\n', {}, [], {"a": [1, {"b": []}]}, [[1, 2], [], [3.25]], math.inf, -math.inf),
]


def load(data: bytes, chunk: int):
    """The whole value, its top level read entry by entry."""
    reader = JsonReader(io.BytesIO(data), chunk)
    if reader.peek() == "[":
        value = list(reader.items())
    else:
        value = {key: reader.value() for key in reader.members()}
    reader.end()
    return value


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32-le"])
def test_values_are_those_of_json_load(chunk, indent, encoding):
    for value in (VALUES, {str(i): value for i, value in enumerate(VALUES)}, [], {}):
        text = json.dumps(value, indent=indent, ensure_ascii=chunk % 2 == 0)
        assert repr(load(text.encode(encoding, "surrogatepass"), chunk)) == repr(value)


def test_a_list_is_skipped_without_being_kept():
    reader = JsonReader(io.BytesIO(b'{"a": [1, [2], {}], "b": {"c": 3}, "d": 4}'), chunk=4)
    for key in reader.members():
        if key == "d":
            assert reader.value() == 4
        else:
            reader.skip_value()
    reader.end()


def test_what_json_load_refuses_is_refused():
    """Characters taken out of, or put into, a json at random: both accept it, or neither."""
    draw = random.Random(0)
    text = json.dumps({"images": [{"id": 1, "n": "a\\u00e9"}, {"id": -2.5e3}], "x": [], "y": None})
    accepted = 0
    for _ in range(2000):
        at = draw.randrange(len(text))
        changed = text[:at] + draw.choice(["", *'[]{},:"\\ 1e.-n']) + text[at + 1 :]
        try:
            expected = json.loads(changed)
        except ValueError:
            with pytest.raises(ValueError):  # noqa: PT011 - the message is json's
                load(changed.encode(), chunk=5)
        else:
            accepted += 1
            assert load(changed.encode(), chunk=5) == expected
    assert 50 < accepted < 1950


def test_an_error_in_the_middle_is_found_there():
    entries = ", ".join('{"id": 1}' for _ in range(5000))
    data = f'[{entries}, {{"id" 1}}, {entries}]'.encode()
    file = io.BytesIO(data)
    with pytest.raises(ValueError, match=f"delimiter: char {len(entries) + 9}"):
        list(JsonReader(file, chunk=100).items())
    assert file.tell() < len(data) / 2 + 500  # and the rest has not been read


def test_an_entry_without_end_does_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr(json_stream, "MAX_ENTRY", 1000)
    file = io.BytesIO(b'["' + b"x" * 100_000)
    with pytest.raises(ValueError, match="an entry of more than 1000 characters"):
        list(JsonReader(file, chunk=100).items())
    assert file.tell() < 5000
