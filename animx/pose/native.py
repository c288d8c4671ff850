"""The native pose file, its fields and its JSON spelling (`*.pose.json`); `npz.py` is the other spelling.

Both hold the same fields and the same float32 bits: JSON numbers are the shortest decimals that give the bits back.
The JSON is written one frame a line, so that a person can read it and a diff shows the frames that changed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from animx.canvas import MAX_PIXELS, MAX_SIDE, Canvas
from animx.errors import InputError, nearest
from animx.pose.jsontext import Walker
from animx.pose.sequence import MAX_FRAMES, MAX_PERSONS, SCHEMA, PoseSequence
from animx.pose.skeleton import JOINTS, LAYOUT

log = logging.getLogger(__name__)

FIELDS = (
    "schema", "layout", "canvas", "fps", "person_ids", "source", "history", "times", "keypoints", "scores", "depth",
)  # fmt: skip
REQUIRED = ("schema", "canvas", "keypoints", "scores")
ARRAYS: dict[str, int] = {"keypoints": 4, "scores": 3, "depth": 3}
"""Fields that are arrays by frame, with their dimensions."""
MAX_POSES = 2_000_000
"""Most persons times frames that one file may hold; larger is refused before memory is taken."""


def check_shape(name: str, shape: tuple[int, ...]) -> None:
    """Refuse the shape of an array field before memory is taken for it.  `name` is `FILE: FIELD`."""
    tail = (JOINTS, 2) if name.endswith("keypoints") else (JOINTS,)
    if shape[2:] != tail:
        raise InputError(f"{name}: shape {list(shape)}, expected [T, P, {', '.join(map(str, tail))}]")
    frames, persons = shape[:2]
    if not 1 <= frames <= MAX_FRAMES:
        raise InputError(f"{name}: {frames} frames, expected 1 to {MAX_FRAMES}")
    if not 1 <= persons <= MAX_PERSONS:
        raise InputError(f"{name}: {persons} persons, expected 1 to {MAX_PERSONS}")
    if frames * persons > MAX_POSES:
        raise InputError(f"{name}: {frames} frames of {persons} persons are more than {MAX_POSES} poses. Cut the clip")


def build(fields: Mapping[str, Any], where: str) -> PoseSequence:
    """A `PoseSequence` from the fields of a file.  Every refusal is an `InputError` with the file and the field.

    `keypoints`, `scores`, `depth` and `times` may be numpy arrays; an own read-only float32 array is not copied.
    """
    try:
        for name in fields:
            if name not in FIELDS:
                log.warning("%s: unknown field '%s' is ignored.%s", where, name, nearest(name, FIELDS))
        missing = [name for name in REQUIRED if name not in fields]
        if missing:
            raise InputError(f"{missing[0]}: missing")
        schema = fields["schema"]
        if not _is_int(schema) or schema < 1:
            raise InputError(f"schema: expected the number {SCHEMA}")
        if schema > SCHEMA:
            raise InputError(f"schema: {schema} is newer than this animx reads ({SCHEMA}). Update animx")
        layout = fields.get("layout", LAYOUT)
        if not isinstance(layout, str):
            raise InputError("layout: expected a text")
        return PoseSequence(
            keypoints=fields["keypoints"],
            scores=fields["scores"],
            canvas=read_canvas(fields["canvas"]),
            fps=_fps(fields.get("fps", [25, 1])),
            times=_times(fields.get("times")),
            person_ids=_person_ids(fields.get("person_ids", [])),
            layout=layout,
            source=_mapping("source", fields.get("source", {})),
            history=_history(fields.get("history", [])),
            depth=fields.get("depth"),
        )
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def read_canvas(value: Any) -> Canvas:
    """`[width, height]` px as a canvas; `InputError` for anything else or a size no picture may have."""
    if not (_is_list(value) and len(value) == 2 and all(_is_int(side) for side in value)):
        raise InputError("canvas: expected [width, height] in whole px")
    width, height = (int(side) for side in value)
    if width < 1 or height < 1:
        raise InputError(f"canvas: {width}x{height} px has no pixels")
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        size = f"{width}x{height}" if max(width, height) < 1 << 40 else "this many"
        raise InputError(f"canvas: {size} px is larger than any picture read here ({MAX_SIDE} px a side)")
    return Canvas(width, height)


def _fps(value: Any) -> Fraction:
    if not (_is_list(value) and len(value) == 2 and all(_is_int(part) for part in value)):
        raise InputError("fps: expected [numerator, denominator], for example [30000, 1001]")
    top, bottom = (int(part) for part in value)
    if top < 1 or bottom < 1 or not Fraction(1, 86400) <= Fraction(top, bottom) <= 10000:
        raise InputError(f"fps: {top}/{bottom} is no frame rate")
    return Fraction(top, bottom)


def _times(value: Any) -> NDArray[np.float64]:
    if value is None:
        return np.zeros(0)
    times = numbers("times", value)
    if times.ndim != 1 or not len(times):
        raise InputError("times: expected one number for each frame")
    return times.astype(np.float64)


def _person_ids(value: Any) -> tuple[int, ...]:
    if not (_is_list(value) and all(_is_int(entry) for entry in value) and len(value) <= MAX_PERSONS):
        raise InputError("person_ids: expected a list of whole numbers")
    ids = tuple(int(entry) for entry in value)
    if len(set(ids)) != len(ids):
        raise InputError("person_ids: an id stands twice")
    return ids


def _mapping(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{name}: expected an object")
    return value


def _history(value: Any) -> tuple[dict[str, Any], ...]:
    if not _is_list(value):
        raise InputError("history: expected a list of objects")
    return tuple(_mapping(f"history[{i}]", step) for i, step in enumerate(value))


def _is_int(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim == 1)


def numbers(name: str, value: Any) -> NDArray[Any]:
    """Nested lists as an array of numbers; `InputError` by field name for texts, objects, ragged lists, NaN."""
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise InputError(f"{name}: lists of unequal length or not of numbers") from error
    if array.dtype.kind not in "fiu":
        raise InputError(f"{name}: not an array of numbers")
    if not np.isfinite(array).all():
        raise InputError(f"{name}: NaN or infinite values")
    return array


# ---- JSON --------------------------------------------------------------------------------------------------------


def read_json_fields(walker: Walker) -> dict[str, Any]:
    """All members of the JSON object at `walker`; array fields come as float32 arrays, converted frame by frame."""
    fields: dict[str, Any] = {}
    for name in walker.members():
        if name in ARRAYS and walker.peek() == "[":
            fields[name] = _frames(name, walker)
        else:
            fields[name] = walker.value()
    walker.end()
    return fields


def _frames(name: str, walker: Walker) -> NDArray[np.float32]:
    """An array field, one frame after the other, so that Python floats of one frame exist at a time."""
    frames: list[NDArray[np.float32]] = []
    for _ in walker.items():
        place = f"{walker.where}: {name}[{len(frames)}]"
        frame = numbers(place, walker.value())
        if frame.ndim != ARRAYS[name] - 1 or (frames and frame.shape != frames[0].shape):
            expected = list(frames[0].shape) if frames else ["P", JOINTS, *([2] if name == "keypoints" else [])]
            raise InputError(f"{place}: shape {list(frame.shape)}, expected {expected}".replace("'", ""))
        if not frames:
            check_shape(f"{walker.where}: {name}", (1, *frame.shape))
        if len(frames) >= MAX_FRAMES or (len(frames) + 1) * frame.shape[0] > MAX_POSES:
            raise InputError(f"{walker.where}: {name}: more than {MAX_POSES} poses. Cut the clip")
        with np.errstate(over="ignore"):
            frames.append(frame.astype(np.float32))
    if not frames:
        raise InputError(f"{walker.where}: {name}: no frames")
    stacked = np.stack(frames)
    stacked.flags.writeable = False
    return stacked


def header(poses: PoseSequence) -> dict[str, Any]:
    """The fields that are no arrays, as JSON values, in file order."""
    return {
        "schema": SCHEMA,
        "layout": poses.layout,
        "canvas": [poses.canvas.width, poses.canvas.height],
        "fps": [poses.fps.numerator, poses.fps.denominator],
        "person_ids": [int(i) for i in poses.person_ids],
        "source": dict(poses.source),
        "history": [dict(step) for step in poses.history],
    }


def to_json(name: str, value: Any) -> str:
    """`value` as JSON text.  numpy numbers and arrays, fractions, paths and mappings are written as plain values."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{name}: cannot be written to a pose file ({error})") from error


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Fraction | Path):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple | set | frozenset):
        return sorted(value) if isinstance(value, set | frozenset) else list(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def json_lines(poses: PoseSequence) -> Iterator[str]:
    """The JSON spelling, piece by piece (each ends with a line break).  Same poses, same bytes."""
    yield "{\n"
    for name, value in header(poses).items():
        if name == "history" and value:
            steps = ",\n".join(to_json(f"history[{i}]", step) for i, step in enumerate(value))
            yield f'"history": [\n{steps}\n],\n'
        else:
            yield f'"{name}": {to_json(name, value)},\n'
    times = [repr(t) for t in np.asarray(poses.times, np.float64).tolist()]
    yield '"times": [\n' + ",\n".join(", ".join(times[i : i + 10]) for i in range(0, len(times), 10)) + "\n],\n"
    arrays = [("keypoints", poses.keypoints), ("scores", poses.scores)]
    if poses.depth is not None:
        arrays.append(("depth", poses.depth))
    for i, (name, array) in enumerate(arrays):
        yield f'"{name}": [\n'
        step = 64
        for first in range(0, len(array), step):
            part = shortest(array[first : first + step])
            tail = ",\n" if first + step < len(array) else "\n"
            yield ",\n".join(map(_numbers_text, part)) + tail
        yield "]\n" if i == len(arrays) - 1 else "],\n"
    yield "}\n"


def _numbers_text(values: NDArray[np.float64]) -> str:
    text = json.dumps(values.tolist(), separators=(",", ":"))
    # `12.0` is written `12`; a negative zero keeps its sign, which a JSON integer would lose.
    text = text.replace(".0,", ",").replace(".0]", "]")
    return text.replace("-0,", "-0.0,").replace("-0]", "-0.0]")


def shortest(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """float64 numbers whose `repr` is the shortest plain decimal that gives back the same float32 bits."""
    exact = values.astype(np.float64)
    found = exact.copy()
    open_ = np.abs(values) < 1e7
    for digits in range(10):
        factor = 10.0**digits
        short = np.rint(exact * factor) / factor
        hit = open_ & (short.astype(np.float32) == values)
        np.copyto(found, short, where=hit)
        open_ &= ~hit
        if not open_.any():
            break
    # Tiny and huge numbers: numpy knows their shortest form, one at a time.
    rest = open_ | (np.abs(values) >= 1e7)
    found[rest] = [float(str(value)) for value in values[rest]]
    return found


def load(walker: Walker) -> PoseSequence:
    """Read a native pose file whose object starts at `walker`."""
    return build(read_json_fields(walker), walker.where)
