"""Broken variants of sound files: the same variant for the same seed, on every machine."""

import io
import random
import re
import struct
import zipfile

INTERESTING = [
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x7FFFFFFF,
    0xFFFFFFFF,
    1 << 40,
    (1 << 63) - 1,
]
NUMBER = re.compile(rb"-?\d+(\.\d+)?")
TOKENS = [
    b"null", b"true", b"NaN", b"-Infinity", b"1e999", b"-1", b"0", b"1" + b"0" * 400, b"0.1e-400",
    b"[]", b"{}", b"[[[[", b"]]", b"}", b'"', b'"\\ud800"', b"\x00", b"\xff\xfe", b"../" * 9,
    b"/etc", b"!!python/object/apply:os.system ['true']", b"&a [*a]", b"*a", b"${x}",
    b"${oc.env:HOME}",
    b"_target_: os.system", b"!!timestamp x", b"!!int ''", b"? [a]", b"<<: 1", b"\t", b"\n- ",
    b"1:1:1", b"0x", b"---\n", b"%YAML 9\n", b"|\n",
]  # fmt: skip


def mutate(data: bytes, rng: random.Random, is_text: bool) -> bytes:
    """One to four changes at random places."""
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        change = rng.choice(TEXT_CHANGES if is_text else BYTE_CHANGES)
        data = change(bytearray(data or b"\0"), rng)
    return data


def mutate_zip(data: bytes, rng: random.Random) -> bytes:
    """A zip whose entry with the pickle is changed, and whose check sums are right."""
    changed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(changed, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith(".pkl") or rng.random() < 0.1:
                content = mutate(content, rng, is_text=False)
            new.writestr(name, content)
    return changed.getvalue()


def mutate_safetensors(data: bytes, rng: random.Random) -> bytes:
    """A file whose header is changed, and of the length it says."""
    (length,) = struct.unpack("<Q", data[:8])
    header = mutate(data[8 : 8 + length], rng, is_text=True)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def _flip(data: bytearray, rng: random.Random) -> bytes:
    for _ in range(rng.choice([1, 3, 10])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def _overwrite(data: bytearray, rng: random.Random) -> bytes:
    value, size = rng.choice(INTERESTING), rng.choice([1, 2, 4, 8])
    order = rng.choice(["little", "big"])
    place = rng.randrange(len(data))
    data[place : place + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, order)
    return bytes(data)


def _cut(data: bytearray, rng: random.Random) -> bytes:
    return bytes(data[: rng.randrange(len(data))])


def _delete(data: bytearray, rng: random.Random) -> bytes:
    place = rng.randrange(len(data))
    del data[place : place + rng.choice([1, 2, 8, 64])]
    return bytes(data)


def _repeat(data: bytearray, rng: random.Random) -> bytes:
    place = rng.randrange(len(data))
    part = bytes(data[place : place + rng.choice([1, 4, 16, 256])])
    data[place:place] = part * rng.choice([1, 2, 50])
    return bytes(data)


def _insert(data: bytearray, rng: random.Random) -> bytes:
    place = rng.randrange(len(data) + 1)
    data[place:place] = rng.randbytes(rng.choice([1, 2, 16]))
    return bytes(data)


def _put_token(data: bytearray, rng: random.Random) -> bytes:
    place = rng.randrange(len(data) + 1)
    data[place : place + rng.choice([0, 0, 1, 5])] = rng.choice(TOKENS)
    return bytes(data)


def _replace_number(data: bytearray, rng: random.Random) -> bytes:
    found = list(NUMBER.finditer(data))
    if not found:
        return _put_token(data, rng)
    match = rng.choice(found)
    data[match.start() : match.end()] = rng.choice(TOKENS)
    return bytes(data)


def _swap(data: bytearray, rng: random.Random) -> bytes:
    words = re.split(rb"(\W+)", bytes(data))
    a, b = rng.randrange(len(words)), rng.randrange(len(words))
    words[a], words[b] = words[b], words[a]
    return b"".join(words)


BYTE_CHANGES = [_flip, _flip, _overwrite, _overwrite, _cut, _delete, _repeat, _insert]
TEXT_CHANGES = [_flip, _cut, _delete, _repeat, _swap, *2 * [_put_token], *2 * [_replace_number]]
