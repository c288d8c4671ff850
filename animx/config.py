"""Config: strict YAML -> frozen dataclass.

Defaults are code: a frozen dataclass beside what it configures, a sentence with a unit under each field.  YAML holds
only what differs.  `read_yaml` gives a plain mapping that remembers its lines, `apply_overrides` lays `--set a.b=c`
over it, `build` turns it into the dataclass and refuses every key and type it does not know.

YAML here is the plain part of YAML 1.2: one document, one mapping at the top, text keys, each key once, `true` and
`false` (not `yes`, `on`), decimal numbers (`1e-4` is a number), no aliases, no tags, no dates.
"""

from __future__ import annotations

import math
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields, is_dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import yaml

from animx.errors import AnimxError, InputError, UsageError, nearest

MAX_BYTES = 256_000
"""Largest YAML file that is read [bytes]."""
MAX_DEPTH = 32
"""Deepest nesting of a YAML file [levels]."""

T = TypeVar("T")


class Located(dict[str, Any]):
    """A mapping read from a file: `lines` holds the 1-based line of each key."""

    def __init__(self, items: Iterable[tuple[str, Any]] = (), lines: Mapping[str, int] | None = None) -> None:
        super().__init__(items)
        self.lines: dict[str, int] = dict(lines or {})


@dataclass(frozen=True)
class Range:
    """Bounds of a number, for `Annotated[float, Range(0, 1)]`; `above` excludes the lower bound itself."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False

    def refusal(self, value: float) -> str:
        """What is wrong with `value`, or `` when it lies inside."""
        if value > self.low or (value == self.low and not self.above):
            return f"{value:g} is larger than {self.high:g}" if value > self.high else ""
        return f"{value:g} is not above {self.low:g}" if self.above else f"{value:g} is less than {self.low:g}"


class FieldError(UsageError):
    """A refusal of a dataclass's own `__post_init__` that knows its key, so that `build` can name the line.

    `key` is the way to it in the mapping, as in ("rescale", "legs").
    """

    def __init__(self, what: str, key: tuple[str, ...]) -> None:
        self.key = key
        super().__init__(what)


# ---- reading -----------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """SafeLoader without aliases, tags, duplicate keys, YAML 1.1 booleans, dates or base-60 numbers."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own table; not that of YAML 1.1
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        mark: Any = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            raise yaml.MarkedYAMLError(None, None, "aliases (*name) are not allowed", mark)
        if getattr(event, "tag", None) is not None:
            raise yaml.MarkedYAMLError(None, None, f"tags ({event.tag}) are not allowed", mark)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(None, None, f"more than {MAX_DEPTH} levels", mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Located:  # type: ignore[override]
        found = Located()
        for key_node, value_node in node.value:
            mark = key_node.start_mark
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.MarkedYAMLError(None, None, f"key {key!r} is not text", mark)
            if key in found:
                raise yaml.MarkedYAMLError(None, None, f"key '{key}' stands twice", mark)
            found[key] = self.construct_object(value_node, deep=True)
            found.lines[key] = mark.line + 1
        return found


def _add(tag: str, pattern: str, first: str) -> None:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(rf"^(?:{pattern})$"), list(first))


_add("bool", "true|True|TRUE|false|False|FALSE", "tTfF")
_add("null", "~|null|Null|NULL|", "~nN")
_Loader.yaml_implicit_resolvers[""] = list(_Loader.yaml_implicit_resolvers["~"])
_add("int", r"[-+]?[0-9]+", "-+0123456789")
_add("float", r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?", "-+0123456789.")


def _construct_float(loader: Any, node: Any) -> float:
    return float(loader.construct_scalar(node))


def _construct_int(loader: Any, node: Any) -> int:
    return int(loader.construct_scalar(node))  # 010 is ten, not eight


def _construct_map(loader: Any, node: Any) -> Any:
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Loader.add_constructor("tag:yaml.org,2002:map", _construct_map)


def _parse(text: str, where: str, error: type[AnimxError]) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark or problem.context_mark
        line = f":{mark.line + 1}" if mark is not None and error is InputError else ""
        what = problem.problem or problem.context or "not YAML"
        if "expected a single document" in str(problem):
            what = "more than one document"
        raise error(f"{where}{line}: {what}") from problem
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as problem:
        raise error(f"{where}: not YAML ({str(problem).splitlines()[0]})") from problem


def read_text(path: str | Path, max_bytes: int = MAX_BYTES) -> str:
    """The text of a small UTF-8 file.  Missing, a folder, too large or not UTF-8 is an `InputError` that names it."""
    file = Path(path)
    try:
        if file.is_dir():
            raise InputError(f"{path}: a folder, not a file")
        with file.open("rb") as stream:
            raw = stream.read(max_bytes + 1)
    except FileNotFoundError as problem:
        raise InputError(f"{path}: no such file") from problem
    except (OSError, ValueError) as problem:
        raise InputError(f"{path}: cannot be read ({getattr(problem, 'strerror', None) or problem})") from problem
    if len(raw) > max_bytes:
        raise InputError(f"{path}: larger than {max_bytes} bytes, too large for a YAML file of animx")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = raw[: problem.start].count(b"\n") + 1
        raise InputError(f"{path}:{line}: not UTF-8 text. Save the file as UTF-8") from problem


def read_yaml(path: str | Path, *, max_bytes: int = MAX_BYTES) -> Located:
    """The mapping in a YAML file, with the line of every key (`.lines`; nested mappings are `Located` too).

    Refused with an `InputError` that names file and line: larger than `max_bytes`, not UTF-8, not YAML, no mapping,
    a key that stands twice, aliases, tags, more than one document, deeper than `MAX_DEPTH`.
    """
    found = _parse(read_text(path, max_bytes), str(path), InputError)
    if found is None:
        raise InputError(f"{path}: empty. Expected 'key: value' lines")
    if not isinstance(found, Located):
        raise InputError(f"{path}:1: a {_kind(found)}, expected 'key: value' lines")
    return found


# ---- overrides ---------------------------------------------------------------------------------------------------


def parse_override(text: str) -> tuple[tuple[str, ...], Any]:
    """`a.b=c` -> (("a", "b"), value); the value is read like YAML (`0.5`, `true`, `[1, 2]`, `text`).

    A missing `=`, an empty key or a value that is no YAML is a `UsageError`.
    """
    key, equals, value = text.partition("=")
    path = tuple(part.strip() for part in key.split("."))
    if not equals or not all(path):
        raise UsageError(f"--set {text}: expected KEY=VALUE, for example legs=0.5")
    if not value.strip():
        raise UsageError(f"--set {text}: no value behind '='")
    if len(value) > 10_000:
        raise UsageError(f"--set {path[0]}=...: the value is too long")
    return path, _parse(value, f"--set {text}", UsageError)


def apply_overrides(mapping: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A copy of `mapping` with `a.b=c` texts laid over it, later ones win; `mapping` stays as it is.

    Missing levels are made; a path through a value that is no mapping is a `UsageError`.
    """
    result: dict[str, Any] = _copy(mapping)
    for text in overrides:
        path, value = parse_override(text)
        level = result
        for depth, part in enumerate(path[:-1]):
            inner = level.setdefault(part, {})
            if not isinstance(inner, dict):
                raise UsageError(f"--set {text}: '{'.'.join(path[: depth + 1])}' is a {_kind(inner)}, it has no keys")
            level = inner
        level[path[-1]] = value
        if isinstance(level, Located):  # the line of the file no longer tells where the value is from
            level.lines.pop(path[-1], None)
    return result


def _copy(value: Any) -> Any:
    if isinstance(value, Located):
        return Located(((key, _copy(inner)) for key, inner in value.items()), value.lines)
    if isinstance(value, Mapping):
        return {key: _copy(inner) for key, inner in value.items()}
    return [_copy(inner) for inner in value] if isinstance(value, list) else value


# ---- building ----------------------------------------------------------------------------------------------------


def build(cls: type[T], mapping: Mapping[str, Any], where: str | Path, *, error: type[AnimxError] = InputError) -> T:
    """An instance of the dataclass `cls` from `mapping`; keys left out keep their defaults.

    Field types may be bool, int, float, str, Path, Fraction, Literal, `X | None`, list, tuple, Mapping[str, X],
    `Annotated[X, Range(...)]` and dataclasses of these.  An int serves as a float, nothing else is converted.  Unknown
    key (with the nearest known one), missing key, wrong type, out of range, or a refusal of the dataclass's own
    `__post_init__`: one line with `where`, the line in the file if known, and the key, raised as `error`.
    """
    return typing.cast("T", _Builder(str(where), error).dataclass(cls, mapping, ()))


def build_with(cls: type[T], mapping: Mapping[str, Any], where: str | Path, sets: Iterable[str]) -> T:
    """`build` of a file's `mapping` with the texts `sets` of `--set` laid over it.

    What the file does wrong is an `InputError` with `where` and its line; what a `--set` does wrong is a `UsageError`
    that begins with `--set KEY=VALUE`: the text without which, or up to which, the rest could be built.
    """
    given = list(sets)
    try:
        return build(cls, apply_overrides(mapping, given), where)
    except InputError:
        for number, text in enumerate(given):
            if _is_good(cls, mapping, [*given[:number], *given[number + 1 :]]):
                build(cls, _plain(apply_overrides(mapping, given)), f"--set {text}", error=UsageError)
        for count, text in enumerate(given):
            if _is_good(cls, mapping, given[:count]):
                build(cls, _plain(apply_overrides(mapping, given[: count + 1])), f"--set {text}", error=UsageError)
        raise


def _is_good(cls: type[T], mapping: Mapping[str, Any], sets: Iterable[str]) -> bool:
    try:
        build(cls, apply_overrides(mapping, sets), "")
    except AnimxError:
        return False
    return True


def _plain(value: Any) -> Any:
    """The same without the lines of a file."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def as_mapping(config: Any) -> Any:
    """A config as plain YAML/JSON values, all fields, ready for `build` again."""
    if is_dataclass(config) and not isinstance(config, type):
        return {field.name: as_mapping(getattr(config, field.name)) for field in fields(config)}
    if isinstance(config, Mapping):
        return {key: as_mapping(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [as_mapping(value) for value in config]
    return str(config) if isinstance(config, Path | Fraction) else config


def _kind(value: Any) -> str:
    names = {bool: "truth value", int: "number", float: "number", str: "text", list: "list"}
    return "mapping" if isinstance(value, Mapping) else names.get(type(value), type(value).__name__)


class _Builder:
    """One run of `build`: where the values come from and how a refusal is worded."""

    def __init__(self, where: str, error: type[AnimxError]) -> None:
        self.where, self.error, self.line = where, error, 0

    def refuse(self, path: Sequence[str], what: str) -> AnimxError:
        line = f":{self.line}" if self.line else ""
        key = f"{'.'.join(path)}: " if path else ""
        return self.error(f"{self.where}{line}: {key}{what}")

    def wrong(self, value: Any, expected: str, path: Sequence[str]) -> AnimxError:
        shown = repr(value) if len(repr(value)) <= 40 else f"{repr(value)[:40]}..."
        what = "nothing" if value is None else f"{shown} is a {_kind(value)}"
        return self.refuse(path, f"{what}, expected {expected}")

    @contextmanager
    def at(self, mapping: Mapping[str, Any], key: str) -> Iterator[None]:
        before = self.line
        self.line = mapping.lines.get(key, before) if isinstance(mapping, Located) else before
        try:
            yield
        finally:
            self.line = before

    def dataclass(self, cls: Any, mapping: Any, path: tuple[str, ...]) -> Any:
        if not isinstance(mapping, Mapping):
            raise self.wrong(mapping, "'key: value' lines", path)
        hints = typing.get_type_hints(cls, include_extras=True)
        known = {field.name: field for field in fields(cls) if field.init}
        values: dict[str, Any] = {}
        for key, value in mapping.items():
            with self.at(mapping, key):
                if key not in known:
                    raise self.refuse(path, f"unknown key '{key}'.{nearest(key, known)} Known: {', '.join(known)}")
                values[key] = self.value(hints[key], value, (*path, key))
        for key, field in known.items():
            if key not in values and field.default is MISSING and field.default_factory is MISSING:
                raise self.refuse(path, f"key '{key}' is missing")
        try:
            return cls(**values)
        except (AnimxError, ValueError) as problem:
            level: Any = mapping
            for key in problem.key if isinstance(problem, FieldError) else ():
                if not isinstance(level, Located):
                    break
                self.line, level = level.lines.get(key, self.line), level.get(key)
            raise self.refuse(path, str(problem)) from problem

    def value(self, hint: Any, value: Any, path: tuple[str, ...]) -> Any:
        origin, args = typing.get_origin(hint), typing.get_args(hint)
        if origin is typing.Annotated:
            result = self.value(args[0], value, path)
            bounds = [note for note in args[1:] if isinstance(note, Range)]
            refusal = next(filter(None, (bound.refusal(result) for bound in bounds if result is not None)), "")
            if refusal:
                raise self.refuse(path, refusal)
            return result
        if hint is Any:
            return value
        if origin is typing.Literal:
            if value not in args or type(value) is not type(args[list(args).index(value)]):
                near = nearest(value, map(str, args)) if isinstance(value, str) else ""
                raise self.refuse(path, f"{value!r} is none of {', '.join(map(str, args))}.{near}")
            return value
        if origin in (typing.Union, types.UnionType):
            return self.union(args, value, path)
        if origin in (tuple, list, Sequence):
            return self.sequence(origin, args, value, path)
        if origin is not None and issubclass(origin, Mapping):
            return self.mapping(args[1], value, path)
        if is_dataclass(hint):
            return self.dataclass(hint, value, path)
        return self.scalar(hint, value, path)

    def scalar(self, hint: Any, value: Any, path: tuple[str, ...]) -> Any:
        if hint is float and type(value) in (int, float):
            try:
                number = float(value)
            except OverflowError:
                number = math.inf
            if not math.isfinite(number):
                raise self.refuse(path, "not a finite number")
            return number
        if hint is Fraction and type(value) in (int, float, str):
            try:
                return Fraction(str(value))
            except (ValueError, ZeroDivisionError) as problem:
                raise self.refuse(path, f"'{value}' is no number like 25, 23.976 or 30000/1001") from problem
        if hint is Path and type(value) is str:
            return Path(value)
        if hint in (bool, int, str) and type(value) is hint:
            return value
        if hint is type(None) and value is None:
            return None
        names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}
        raise self.wrong(value, names.get(hint, str(hint)), path)

    def union(self, args: tuple[Any, ...], value: Any, path: tuple[str, ...]) -> Any:
        if value is None and type(None) in args:
            return None
        choices = [arg for arg in args if arg is not type(None)]
        refusal: AnimxError | None = None
        for choice in choices:
            try:
                return self.value(choice, value, path)
            except self.error as problem:
                # the refusal of the choice that fits the shape of the value tells the user most
                shape = typing.get_origin(choice) in (tuple, list, Sequence)
                refusal = problem if refusal is None or shape == isinstance(value, list) else refusal
        assert refusal is not None
        raise refusal

    def sequence(self, origin: Any, args: tuple[Any, ...], value: Any, path: tuple[str, ...]) -> Any:
        if not isinstance(value, list | tuple):
            raise self.wrong(value, "a list like [a, b]", path)
        open_end = origin is not tuple or (len(args) == 2 and args[1] is ...)
        if not open_end and len(value) != len(args):
            raise self.refuse(path, f"{len(value)} entries, expected {len(args)}")
        kinds = [args[0]] * len(value) if open_end else list(args)
        items = [self.value(kind, item, path) for kind, item in zip(kinds, value, strict=True)]
        return items if origin is list else tuple(items)

    def mapping(self, kind: Any, value: Any, path: tuple[str, ...]) -> Any:
        if not isinstance(value, Mapping):
            raise self.wrong(value, "'key: value' lines", path)
        result: dict[str, Any] = {}
        for key, inner in value.items():
            with self.at(value, key):
                result[key] = self.value(kind, inner, (*path, key))
        return types.MappingProxyType(result)
