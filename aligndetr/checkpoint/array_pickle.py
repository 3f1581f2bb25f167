"""Reading pickles of numpy arrays and plain containers, in which nothing can run.

A pickle is a program: it may call whatever it names, and `BUILD` sets the state of whatever it has
made. Allowing numpy's own functions is not enough: a dtype takes a state that says where its
memory lies, and wrong ones make numpy read and free what is not its own. So every name stands
here for a method that checks its arguments, and arrays are made from bytes of a checked length.
"""

import math
import pickle
import re
import struct
from collections.abc import Callable
from typing import Any, BinaryIO, Literal, cast

import numpy as np

_NUMBERS = re.compile(r"[<>=|]?([biu][1248]|f[248]|c(8|16))")
_DEFAULT_STATE = (None, None, None, -1, -1, 0)  # of a dtype of numbers, behind its byte order
_ARRAY_CLASS = "numpy.ndarray"  # what a pickle gets where it asks for the class


def load_arrays(file: BinaryIO) -> Any:
    """What a pickle holds: dicts, lists, tuples, text, bytes, numbers and arrays of numbers.

    Args:
        file: opened for reading bytes. Pickles of Python 2 are read too.

    Raises:
        pickle.UnpicklingError: it asks for anything else, is damaged, or is no pickle.
    """
    try:
        return _ArrayUnpickler(file, encoding="latin1").load()
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # unpicklers raise anything on bytes that are no pickle
        raise pickle.UnpicklingError(
            f"it is damaged, or no pickle of arrays ({type(error).__name__}: {error})"
        ) from error


class _ArrayUnpickler(pickle._Unpickler):
    """Python's own unpickler rather than the one in C, which allots memory as the file says."""

    # Of the class above; its stub lacks them.
    stack: list[Any]
    append: Callable[[Any], None]
    read: Callable[[int], bytes]
    load_setitem: Callable[[], None]
    load_setitems: Callable[[], None]
    load_dict: Callable[[], None]

    def find_class(self, module: str, name: str) -> Any:
        # Bound methods: a pickle cannot set attributes of them, as it could of functions.
        known: dict[tuple[str, str], Any] = {
            ("numpy", "ndarray"): _ARRAY_CLASS,
            ("numpy", "dtype"): self._make_dtype,
            ("numpy.core.multiarray", "_reconstruct"): self._new_array,
            ("numpy.core.multiarray", "scalar"): self._make_scalar,
            ("numpy.core.numeric", "_frombuffer"): self._array_of_buffer,
            ("collections", "OrderedDict"): self._make_dict,
            ("_codecs", "encode"): self._encode,
            ("__builtin__", "bytes"): self._no_bytes,
        }
        try:
            return known[module.replace("numpy._core.", "numpy.core."), name]  # as numpy 2 says
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for `{module}.{name}`, which could run code; only arrays, numbers, "
                "strings and containers are accepted"
            ) from None

    def _make_dtype(self, name: str, *_flags: Any) -> "_Dtype":
        return _Dtype(name)

    def _new_array(self, kind: Any, *_ignored: Any) -> np.ndarray:
        _require(kind == _ARRAY_CLASS, f"an array of the class {kind!r}")
        return np.ndarray.__new__(_Array, (0,), np.uint8)

    def _make_scalar(self, dtype: Any, raw: Any) -> Any:
        return _array(dtype, (), raw)[()]

    def _array_of_buffer(self, raw: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
        _require(order in ("C", "F"), f"an array in the order {order!r}")
        return _array(dtype, shape, bytes(raw), order)

    def _make_dict(self, pairs: Any = ()) -> dict:
        _require(type(pairs) in (list, tuple), "a dict of something else than pairs")
        for key, _ in pairs:
            _check_key(key)
        return dict(pairs)

    def _encode(self, text: str, encoding: str) -> bytes:
        """As Python 3 writes bytes to old pickles."""
        _require(encoding == "latin1", f"the encoding {encoding!r}")
        return text.encode("latin1")

    def _no_bytes(self) -> bytes:
        """As it writes those that are empty."""
        return b""

    # Tuples as keys may hold each other so that to hash one takes forever.

    def _load_setitem(self) -> None:
        _check_key(self.stack[-2])
        self.load_setitem()

    def _load_setitems(self) -> None:
        for key in self.stack[::2]:
            _check_key(key)
        self.load_setitems()

    def _load_dict(self) -> None:
        for key in self.stack[::2]:
            _check_key(key)
        self.load_dict()

    def _load_bytearray(self) -> None:
        """Python's own makes room for as many bytes as the file says, before it reads them."""
        (size,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(size)))

    def _refuse_set(self) -> None:
        raise pickle.UnpicklingError("it holds a set, which no weight file needs")

    dispatch: dict[int, Callable] = {
        **pickle._Unpickler.dispatch,
        pickle.SETITEM[0]: _load_setitem,
        pickle.SETITEMS[0]: _load_setitems,
        pickle.DICT[0]: _load_dict,
        pickle.BYTEARRAY8[0]: _load_bytearray,
        pickle.EMPTY_SET[0]: _refuse_set,
        pickle.FROZENSET[0]: _refuse_set,
    }


class _Dtype:
    """Stands for a numpy dtype of numbers while a pickle is read."""

    __slots__ = ("value",)

    def __init__(self, name: Any):
        _require(type(name) is str and _NUMBERS.fullmatch(name), f"an array of {name!r}")
        self.value = np.dtype(name)

    def __setstate__(self, state: Any) -> None:
        _require(type(state) is tuple and len(state) >= 8, "a dtype without its state")
        order: Any = state[1]
        plain = state[2:8] == _DEFAULT_STATE and type(order) is str and order in "<>=|"
        _require(plain and len(order) == 1, "a dtype with a layout of its own")
        self.value = self.value.newbyteorder(cast(Any, order))


class _Array(np.ndarray):
    """An array that takes no state but a shape, a dtype of numbers, and as many bytes."""

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        checked = _array(dtype, shape, raw)
        whole: Any = (1, shape, checked.dtype, bool(fortran), checked.tobytes())
        super().__setstate__(whole)  # its stub knows no version number


def _array(dtype: Any, shape: Any, raw: Any, order: Literal["C", "F"] = "C") -> np.ndarray:
    """Read-only."""
    _require(type(dtype) is _Dtype, "an array of something else than numbers")
    whole = type(shape) is tuple and all(type(n) is int and n >= 0 for n in shape)
    _require(whole and len(shape) <= 32, "an array of a shape that is none")
    if isinstance(raw, str):  # bytes of Python 2
        raw = raw.encode("latin1")
    _require(type(raw) is bytes, "an array of something else than bytes")
    fits = math.prod(shape) * dtype.value.itemsize == len(raw)
    _require(fits, f"an array of shape {shape} and type {dtype.value} of {len(raw)} bytes")
    return np.frombuffer(raw, dtype.value).reshape(shape, order=order)


def _check_key(key: Any) -> None:
    _require(type(key) in (str, int, bytes), f"a dict with a {type(key).__name__} as its key")


def _require(condition: Any, what: str) -> None:
    if not condition:
        raise pickle.UnpicklingError(f"it asks for {what}; only plain arrays are accepted")
