"""A pickle reader that admits numpy arrays and scalars, numbers, texts and plain containers, and nothing else.

A pickle is a program; its danger lies in the names it may call.  Here it runs on a small machine of our own, which
knows the instructions of plain data and calls nothing: the few names that arrays need (`numpy.dtype`, `_reconstruct`,
...) are plain marks, and the machine builds the array itself from checked type, shape and bytes.  Any other name or
instruction is an `InputError` that says which.  Memory is bounded by the file's size, whatever the file claims.
"""

from __future__ import annotations

import io
import pickletools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from animx.errors import InputError

MAX_BYTES = 1 << 30
"""Largest pickle that is read [bytes]."""
MAX_ITEMS = 20_000_000
"""Most numbers that one array built from plain lists may hold."""

_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")  # numpy 1, numpy 2
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
_NAMES: dict[str, str] = {
    **{f"{module} _reconstruct": "reconstruct" for module in _MULTIARRAY},
    **{f"{module} scalar": "scalar" for module in _MULTIARRAY},
    **{f"{module} _frombuffer": "frombuffer" for module in _NUMERIC},
    "numpy ndarray": "ndarray",
    "numpy dtype": "dtype",
    "_codecs encode": "encode",
    "collections OrderedDict": "dict",
    **{f"{module} {kind}": kind for module in ("builtins", "__builtin__") for kind in ("bytes", "bytearray")},
}


class _Refused(Exception):
    """Why the machine stopped."""


class _Name:
    """An admitted name.  It is a mark for the machine and does nothing by itself."""

    def __init__(self, kind: str) -> None:
        self.kind = kind


class _DType:
    """A number type under construction: `numpy.dtype("f8")`, then its state with the byte order."""

    def __init__(self, spec: object) -> None:
        if not isinstance(spec, str) or len(spec) > 8:
            raise _Refused("an array type that is no plain number")
        try:
            self.dtype: np.dtype[Any] = np.dtype(spec.lstrip("<>|="))
        except (TypeError, ValueError, SyntaxError) as error:
            raise _Refused(f"unknown array type '{spec}'") from error
        if self.dtype.kind not in "fiub" or not 0 < self.dtype.itemsize <= 16:
            raise _Refused(f"an array of type '{spec}', not of numbers")

    def set(self, state: object) -> None:
        if not (isinstance(state, tuple) and len(state) >= 5 and state[1] in ("<", ">", "|", "=")):
            raise _Refused("an array type with a strange state")
        if any(part is not None for part in state[2:5]):
            raise _Refused("an array type with fields")
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """An array under construction; `value` is read-only."""

    def __init__(self) -> None:
        self.value: NDArray[Any] = np.zeros(0)

    def set(self, state: object) -> None:
        if not (isinstance(state, tuple) and len(state) == 5):
            raise _Refused("an array with a strange state")
        self.value = _build(state[1], state[2], state[4], "F" if state[3] else "C")


def _build(shape: object, number: object, data: object, order: object) -> NDArray[Any]:
    if isinstance(data, str):  # Python 2 wrote bytes as text
        data = _latin1(data)
    if not isinstance(number, _DType) or not isinstance(data, bytes | bytearray):
        raise _Refused("an array without number type or bytes")
    sides = shape if isinstance(shape, tuple) else (shape,)
    if len(sides) > 8 or not all(isinstance(side, int) and 0 <= side <= MAX_BYTES for side in sides):
        raise _Refused("an array with a strange shape")
    count = 1
    for side in sides:
        count *= side
    if count * number.dtype.itemsize != len(data):
        raise _Refused(f"an array of shape {list(sides)} in {len(data)} bytes")
    return np.frombuffer(bytes(data), number.dtype).reshape(sides, order="F" if order == "F" else "C")


def _latin1(text: str) -> bytes:
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError as error:
        raise _Refused("bytes with a strange encoding") from error


class _Machine:
    """Runs the instructions of a pickle of plain data."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        for opcode, argument, position in pickletools.genops(io.BytesIO(data)):
            if opcode.name == "STOP":
                return self.pop()
            try:
                self.step(opcode.name, argument)
            except _Refused as error:
                raise _Refused(f"{error} (byte {position})") from error
        raise _Refused("no end")

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise _Refused("nothing on the stack")
        return self.stack.pop()

    def top(self) -> Any:
        value = self.pop()
        self.stack.append(value)
        return value

    def above_mark(self) -> list[Any]:
        if not self.marks:
            raise _Refused("no mark on the stack")
        at = self.marks.pop()
        values = self.stack[at:]
        del self.stack[at:]
        return values

    def step(self, name: str, argument: Any) -> None:
        push = self.stack.append
        if name in _CONSTANTS:
            push(_CONSTANTS[name]())
        elif name in _VALUES:
            push(argument)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if name == "MEMOIZE" else argument] = self.top()
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            if argument not in self.memo:
                raise _Refused(f"nothing stored under {argument}")
            push(self.memo[argument])
        elif name == "MARK":
            self.marks.append(len(self.stack))
        elif name == "POP":
            self.pop()
        elif name == "POP_MARK":
            self.above_mark()
        elif name == "DUP":
            push(self.top())
        elif name in ("LIST", "TUPLE"):
            values = self.above_mark()
            push(values if name == "LIST" else tuple(values))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            push(tuple([self.pop() for _ in range(int(name[-1]))][::-1]))
        elif name in ("APPEND", "APPENDS"):
            values = [self.pop()] if name == "APPEND" else self.above_mark()
            target = self.top()
            if not isinstance(target, list):
                raise _Refused("appending to what is no list")
            target.extend(values)
        elif name in ("DICT", "SETITEM", "SETITEMS"):
            self.items(name)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            self.named(argument if name == "GLOBAL" else " ".join(map(str, [self.pop(), self.pop()][::-1])))
        elif name == "REDUCE":
            arguments = self.pop()
            push(self.call(self.pop(), arguments))
        elif name == "BUILD":
            state = self.pop()
            target = self.top()
            if not isinstance(target, _Array | _DType):
                raise _Refused("state for what takes none")
            target.set(state)
        elif name not in ("PROTO", "FRAME"):
            raise _Refused(f"instruction {name}, which pose data does not need")

    def items(self, name: str) -> None:
        values = [self.pop(), self.pop()][::-1] if name == "SETITEM" else self.above_mark()
        if name == "DICT":
            self.stack.append({})
        target = self.top()
        if not isinstance(target, dict) or len(values) % 2:
            raise _Refused("entries for what is no dictionary")
        for key, value in zip(values[::2], values[1::2], strict=True):
            # Nothing else as a key: hashing nested tuples can take forever.
            if not isinstance(key, str | int | float | bytes):
                raise _Refused(f"a dictionary key of type {type(key).__name__}")
            target[key] = value

    def named(self, name: str) -> None:
        kind = _NAMES.get(name)
        if kind is None:
            dotted = name.replace(" ", ".")[:80]
            raise _Refused(f"the name {dotted}, which pose data does not need. It may be harmful: not read")
        self.stack.append(_Name(kind))

    def call(self, name: object, arguments: object) -> Any:
        kind = name.kind if isinstance(name, _Name) else ""
        given = arguments if isinstance(arguments, tuple) else ()
        first = given[0] if given else None
        if kind == "dtype" and given:
            return _DType(first)
        if kind == "reconstruct" and isinstance(first, _Name) and first.kind == "ndarray":
            return _Array()
        if kind == "scalar" and len(given) == 2:
            return _build((), given[0], given[1], "C").item()
        if kind == "frombuffer" and len(given) == 4:
            array = _Array()
            array.value = _build(given[2], given[1], given[0], given[3])
            return array
        if kind == "encode" and len(given) == 2 and isinstance(first, str) and given[1] in ("latin1", "latin-1"):
            return _latin1(first)
        if kind in ("bytes", "bytearray") and (not given or isinstance(first, bytes | bytearray)):
            return bytes(first or b"")
        if kind == "dict" and not given:
            return {}
        raise _Refused("a call that pose data does not need")


_CONSTANTS: dict[str, Any] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
}
_VALUES = frozenset({
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
})  # fmt: skip


def read_pickle(data: bytes, where: str) -> Any:
    """The plain data in a pickle: dicts, lists, tuples, texts, numbers, and arrays, which `array_of` gives out.

    `InputError` for anything else: other names, damage, oversize.  Nothing of the file is ever called.
    """
    if len(data) > MAX_BYTES:
        raise InputError(f"{where}: larger than {MAX_BYTES >> 20} MB. It is no pose file")
    try:
        return _Machine().run(data)
    except _Refused as error:
        raise InputError(f"{where}: the pickle holds {error}") from error
    except (ValueError, TypeError, KeyError, OverflowError, MemoryError, SyntaxError, AttributeError) as error:
        raise InputError(f"{where}: damaged, or no pickle ({error or type(error).__name__})") from error


def array_of(value: Any, name: str) -> NDArray[Any] | None:
    """`value` from a pickle as an array; lists of numbers or arrays are stacked.  None for None."""
    if value is None:
        return None
    made = _plain(value, name, {}, 0)
    if made.dtype.kind not in "fiu":
        raise InputError(f"{name}: not an array of numbers")
    return made


def _plain(value: Any, name: str, done: dict[int, NDArray[Any]], depth: int) -> NDArray[Any]:
    """Nested lists as an array.  A list that stands in several places is read once, and the size is checked before the
    array is made, so that lists sharing parts cannot explode.
    """
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, int | float):
        return _number(value, name)
    if not isinstance(value, list | tuple) or depth >= 8:
        raise InputError(f"{name}: not an array of numbers")
    if id(value) not in done:
        parts: Any = value
        if not all(type(entry) is float or type(entry) is int for entry in value):
            parts = [_plain(entry, name, done, depth + 1) for entry in value]
            if sum(part.size for part in parts) > MAX_ITEMS:
                raise InputError(f"{name}: more than {MAX_ITEMS} numbers")
        try:
            done[id(value)] = np.asarray(parts)
        except (ValueError, TypeError, OverflowError) as error:
            raise InputError(f"{name}: lists of unequal length or not of numbers") from error
    return done[id(value)]


def _number(value: float, name: str) -> NDArray[Any]:
    try:
        return np.asarray(value, np.float64)
    except OverflowError as error:
        raise InputError(f"{name}: a number that is too large") from error
