"""Strict JSON, read piece by piece: a clip's frames become arrays one at a time, never a whole tree of Python floats.

In: text.  Out: values.  Refused by name and place: NaN and Infinity, a key twice in one object, nesting too deep for
the parser, text after the end, bytes that are not UTF-8.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from animx.errors import InputError

_SPACE = re.compile(r"[ \t\n\r]*")


def decode(data: bytes, where: str) -> str:
    """UTF-8 bytes (a byte order mark allowed) as text; `InputError` with the place of the first wrong byte."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where}: not UTF-8 text (byte {error.start}). It is no JSON pose file, or damaged"
        ) from error


def parse(text: str, where: str) -> Any:
    """The whole of a JSON text as Python values."""
    walker = Walker(text, where)
    value = walker.value()
    walker.end()
    return value


class Walker:
    """A place in a JSON text.  `members` and `items` go through an object or array; the caller takes each value."""

    def __init__(self, text: str, where: str) -> None:
        self.text, self.where, self.at = text, where, 0
        self._decoder = json.JSONDecoder(object_pairs_hook=self._unique, parse_constant=self._constant)

    def peek(self) -> str:
        """The next character that is no white space, '' at the end."""
        found = _SPACE.match(self.text, self.at)
        self.at = found.end() if found else self.at
        return self.text[self.at : self.at + 1]

    def value(self) -> Any:
        """Take the next value, whatever it is."""
        self.peek()
        try:
            value, self.at = self._decoder.raw_decode(self.text, self.at)
        except json.JSONDecodeError as error:
            self.fail(error.msg, error.pos)
        except RecursionError as error:
            raise InputError(f"{self.where}: JSON is nested too deeply for a pose file") from error
        except ValueError as error:  # an integer of more digits than Python converts
            self.fail(str(error).partition(":")[0])
        return value

    def members(self) -> Iterator[str]:
        """The keys of the object that starts here.  The caller takes the value behind each key."""
        self._take("{")
        seen: set[str] = set()
        if self.peek() == "}":
            self.at += 1
            return
        while True:
            if self.peek() != '"':
                self.fail("expected a key in double quotes")
            key = str(self.value())
            if key in seen:
                self.fail(f"'{key}' stands here twice")
            seen.add(key)
            self._take(":")
            yield key
            if not self._more("}"):
                return

    def items(self) -> Iterator[None]:
        """Go through the array that starts here.  The caller takes one value each time."""
        self._take("[")
        if self.peek() == "]":
            self.at += 1
            return
        while True:
            yield
            if not self._more("]"):
                return

    def end(self) -> None:
        """Refuse anything but white space from here on."""
        if self.peek():
            self.fail("text after the end of the JSON value")

    def fail(self, what: str, at: int | None = None) -> NoReturn:
        """Raise an `InputError` with line and column."""
        place = self.at if at is None else at
        line = self.text.count("\n", 0, place) + 1
        column = place - (self.text.rfind("\n", 0, place) + 1) + 1
        raise InputError(f"{self.where}: line {line}, column {column}: {what}")

    def _take(self, character: str) -> None:
        if self.peek() != character:
            self.fail(f"expected '{character}'")
        self.at += 1

    def _more(self, closing: str) -> bool:
        found = self.peek()
        if found not in (",", closing) or not found:
            self.fail(f"expected ',' or '{closing}'")
        self.at += 1
        return found == ","

    def _unique(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                self.fail(f"'{key}' stands twice in one object")
            found[key] = value
        return found

    def _constant(self, name: str) -> NoReturn:
        self.fail(f"{name} is no number. Write a missing joint as 0 with score 0")
