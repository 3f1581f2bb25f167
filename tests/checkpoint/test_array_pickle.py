"""Pickles of arrays are read; one that asks for anything else is refused before it gets it."""

import io
import pickle
import struct
import tracemalloc
from collections import OrderedDict

import numpy as np
import pytest

from aligndetr.checkpoint import CheckpointError, read_checkpoint
from aligndetr.checkpoint.array_pickle import load_arrays

ARRAYS = {
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
    "columns first": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "halves": np.array([0.5, -1.0], np.float16),
    "big-endian": np.arange(3, dtype=">i4"),
    "bits": np.array([True, False]),
    "empty": np.zeros((0, 4)),
    "scalar array": np.array(2.5),
    "scalar": np.int64(7),
    "complex": np.array([1 + 2j], np.complex64),
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
def test_an_array_is_what_it_was(array, protocol):
    found = load_arrays(io.BytesIO(pickle.dumps({"a": [array, "text", b"\xff", None]}, protocol)))
    ours, text, raw, nothing = found["a"]
    assert (ours.dtype.newbyteorder("="), ours.shape) == (
        array.dtype.newbyteorder("="),
        array.shape,
    )
    assert np.array_equal(ours, array)
    assert (text, raw, nothing) == ("text", b"\xff", None)


def test_python_2_wrote_bytes_as_text():
    raw = np.float32([1, 2]).tobytes()
    text = (
        b"(dS'a'\ncnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
        b"(I1\n(I2\ntcnumpy\ndtype\n(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\n"
        + b"S%s\n" % repr(raw)[1:].encode()
        + b"tbs."
    )
    assert load_arrays(io.BytesIO(text))["a"].tolist() == [1, 2]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_ordered_dict_is_a_dict(protocol):
    pairs = [("b", np.float32([1, 2])), ("a", 3)]
    found = load_arrays(io.BytesIO(pickle.dumps(OrderedDict(pairs), protocol)))
    assert type(found) is dict
    assert list(found) == ["b", "a"]
    assert found["b"].tolist() == [1, 2]


def test_an_ordered_dict_of_python_2_comes_with_its_pairs():
    text = b"ccollections\nOrderedDict\n((lp0\n(lp1\nS'a'\naI1\naatR."
    assert load_arrays(io.BytesIO(text)) == {"a": 1}


def array_pickle(shape="I2\nt", dtype=b"S'f4'\n", state=b"NNNI-1\nI-1\nI0\n", raw=b"S'12345678'\n"):
    """A pickle of one array, in parts that can be replaced."""
    return (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n("
        + shape.encode()
        + b"cnumpy\ndtype\n(%bI0\nI1\ntR(I3\nS'<'\n%btbI00\n%btb." % (dtype, state, raw)
    )


def test_the_parts_below_are_those_of_an_array():
    assert load_arrays(io.BytesIO(array_pickle())).shape == (2,)


HOSTILE = {
    # numpy would believe all of these, and read or free memory that is not the array's
    "pointers for numbers": array_pickle(state=b"NNNI-1\nI-1\nI63\n"),
    "length of its own": array_pickle(state=b"NNNI900\nI-1\nI0\n"),
    "fields": array_pickle(dtype=b"S'V4'\n", state=b"N(S'a'\nt(dI4\nI1\nI0\n"),
    "objects": array_pickle(dtype=b"S'O'\n"),
    "text of any length": array_pickle(dtype=b"S'S999999999'\n"),
    "dtype by a list": array_pickle(dtype=b"((S'a'\nS'f4'\ntl"),
    "larger than its bytes": array_pickle(shape="I3\nt"),
    "larger than any memory": array_pickle(shape="I1000000\nI1000000\nI1000000\nt"),
    "negative": array_pickle(shape="I-1\nI-2\nt"),
    "shape that is no tuple": array_pickle(shape="I2\n"),
    "bytes that are a list": array_pickle(raw=b"(l"),
    # attributes of what a pickle can name
    "attribute of a function": b"cnumpy\ndtype\n(N(dS'__class__'\nI1\nstb.",
    "attribute of a name": b"cnumpy\nndarray\n(N(dS'__setstate__'\nI1\nstb.",
    "another class": b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\n(I0\ntS'b'\ntR.",
    # what takes all memory or all time
    "memo at 4 billion": b"\x80\x02N" + b"r\xff\xff\xff\xff" + b"00.",
    "set": b"\x80\x04\x8f(I1\n\x90.",
    "tuples in tuples as keys": b"\x80\x02}I1\n" + b"2\x86" * 60 + b"I1\ns.",
    "the same of a dict": b"(I1\n" + b"2\x86" * 60 + b"I1\nd.",
    "the same of pairs": b"ccollections\nOrderedDict\n(((I1\n" + b"2\x86" * 60 + b"I1\nttttR.",
    "ordered dict of a text": b"ccollections\nOrderedDict\n(S'ab'\ntR.",
    "the same of several": b"\x80\x02}(I1\n" + b"2\x86" * 60 + b"I1\nu.",
    "bytes without end": b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.",
    "frame without end": b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f.",
    # ways to a name
    "by its number": b"\x80\x02\x82\x01.",
    "by the class of an instance": b"(ios\nsystem\n.",
    "by a class on the stack": b"(cos\nsystem\nS'true'\no.",
    "in pieces": b"\x80\x04\x8c\x08builtins\x8c\x0fgetattr.__call__\x93.",
    "from outside": b"\x80\x04Pother\n.",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_anything_else_is_refused(content, tmp_path):
    path = tmp_path / "weights.pkl"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"weights.pkl' is not readable as data: .*[a-z]"):
        read_checkpoint(str(path))


def test_a_pickle_changes_nothing_for_the_next():
    for content in HOSTILE.values():
        with pytest.raises(pickle.UnpicklingError):
            load_arrays(io.BytesIO(content))
    assert np.dtype("f4").itemsize == 4
    assert load_arrays(io.BytesIO(array_pickle())).tobytes() == b"12345678"


@pytest.mark.parametrize("opcode", [b"\x8d", b"\x8e", b"\x95", b"\x96"])
def test_no_room_is_made_for_bytes_that_do_not_come(opcode):
    tracemalloc.start()
    with pytest.raises(pickle.UnpicklingError):
        load_arrays(io.BytesIO(b"\x80\x05" + opcode + struct.pack("<Q", 1 << 31) + b"x"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20
