"""YAML becomes plain values or one error, whatever it would take to read it whole."""

import datetime
import sys

import pytest

from aligndetr.utils.safe_yaml import MAX_BYTES, MAX_VALUES, load_yaml, read_yaml_text

LAUGHS = "a: &a [1, 1]\n" + "".join(
    f"{y}: &{y} [*{x}, *{x}]\n" for x, y in zip("abcdefghijklmnopqrs", "bcdefghijklmnopqrst")
)


def test_plain_values_are_those_of_yaml():
    text = "{a: 1, b: 1.5, c: [x, null, true], d: 0x1F, e: 2024-01-01, f: &f [1], g: *f}"
    assert load_yaml(text) == {
        "a": 1, "b": 1.5, "c": ["x", None, True], "d": 31, "e": datetime.date(2024, 1, 1),
        "f": [1], "g": [1],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "more than 20000 values, aliases counted"),
        ("a: &a [*a]", "more than 20000 values, aliases counted"),
        (LAUGHS.replace("[", "{? ").replace(", ", " : 0, ? ").replace("]", " : 0}"), "unhashable"),
        ("[" + "1," * MAX_VALUES + "]", "more than 20000 values"),
        ("[" * 100_000, "nested too deeply"),
        ("- " * 9_000 + "x", "nested too deeply"),  # in blocks, which no bracket counts
        ("x" * (MAX_BYTES + 1), "262145 bytes are more"),
        ("a: " + "9" * 5000, "a number of 5000 digits"),
        ("a: 0x" + "f" * 5000, "a number of 5002 digits"),
        ("a: " + "1:" * 2000 + "1", "a number of 4001 digits"),
        ("a: " + "1:" * 2000 + "1.5", "a number of 4003 digits"),
        ("a: !!python/object/apply:os.system [true]", "python/object/apply:os.system"),
        ("a: !!python/tuple [1]", "python/tuple"),
        ("a: !!timestamp x", "not YAML"),
        ("a: !!int ''", "not YAML"),
        ("a: !!bool x", "not YAML"),
        ("a: 2024-99-99", "month"),
        ("a: [", "expected"),
        ("\0", "special characters"),
    ],
    ids=range(19),
)
def test_anything_else_is_one_error(text, message):
    with pytest.raises(ValueError, match=message):
        load_yaml(text)


@pytest.mark.skipif(sys.platform == "win32", reason="its files take the space")
def test_a_large_file_is_not_read(tmp_path):
    path = tmp_path / "config.yaml"
    with open(path, "wb") as file:
        file.truncate(1 << 40)  # a terabyte that takes no space
    with pytest.raises(ValueError, match="1099511627776 bytes are more than the 262144"):
        read_yaml_text(path)
