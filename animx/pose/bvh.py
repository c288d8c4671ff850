"""BVH motion capture: the file parsed, and posed by forward kinematics.  `bvh_figure.py` makes a pose sequence of it.

In: BVH text (HIERARCHY and MOTION; any channel order, any rig).  Out: `Motion`, and world positions and rotations.
"""

from __future__ import annotations

import math
import re
import warnings
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from animx.errors import InputError
from animx.pose.sequence import MAX_FRAMES
from animx.pose.skeleton import JOINTS

MAX_JOINTS = 2000
MAX_POSED = 15_000_000
"""Most frames times joints that are read (42 minutes of a 134-joint rig at 30 fps)."""
MAX_TEXT = 256 << 20
"""Longest BVH text that is read [characters]; the part before MOTION may have 4 million."""

Array = NDArray[np.float64]


@dataclass
class Joint:
    """A joint of the rig: its offset from its parent at rest, and its channels in file order."""

    name: str
    parent: int
    offset: Array = field(default_factory=lambda: np.zeros(3))
    channels: tuple[str, ...] = ()
    is_end: bool = False


@dataclass
class Motion:
    """A parsed BVH: joints (parents before children), motion [T, channels of all joints] and the frame time [s]."""

    joints: list[Joint]
    values: Array
    frame_time: float


# ---- parsing -----------------------------------------------------------------------------------------------------


class _Tokens:
    """The words of a BVH text, with the line of each for messages."""

    def __init__(self, text: str, where: str) -> None:
        self.where = where
        self._found = [(m.group(), m.start()) for m in re.finditer(r"\S+", text)]
        self._text = text
        self.at = 0

    def next(self, expected: str) -> str:
        if self.at >= len(self._found):
            raise InputError(f"{self.where}: ends where {expected} should stand")
        self.at += 1
        return self._found[self.at - 1][0]

    def word(self, *expected: str) -> str:
        found = self.next(" or ".join(expected))
        if found.upper() not in expected:
            self.fail(f"'{found[:40]}' where {' or '.join(expected)} should stand")
        return found.upper()

    def name(self) -> str:
        """A joint's name (some rigs put spaces in it) and the brace after it."""
        words: list[str] = []
        while (found := self.next("a joint's name and {")) != "{":
            words.append(found)
            if len(words) > 8:
                self.fail("a joint's name of more than eight words")
        return " ".join(words)

    def number(self, what: str) -> float:
        found = self.next(what)
        try:
            value = float(found)
        except ValueError:
            self.fail(f"{what}: '{found[:40]}' is no number")
        if not math.isfinite(value):
            self.fail(f"{what}: not finite")
        return value

    def whole(self, what: str, low: int, high: int) -> int:
        value = self.number(what)
        if value != int(value) or not low <= value <= high:
            self.fail(f"{what}: {value:g}, expected a whole number from {low} to {high}")
        return int(value)

    def fail(self, what: str) -> NoReturn:
        line = self._text.count("\n", 0, self._found[self.at - 1][1]) + 1
        raise InputError(f"{self.where}: line {line}: {what}")


_CHANNELS = {f"{axis}{kind}".lower(): f"{axis}{kind}" for axis in "XYZ" for kind in ("position", "rotation")}


def parse(text: str, where: str) -> Motion:
    """Parse a BVH text.  `InputError` with the line for anything that is not BVH, and for sizes beyond reason."""
    parts = _MOTION.split(text, maxsplit=1)
    if len(text) > MAX_TEXT or len(parts[0]) > 4_000_000:
        raise InputError(f"{where}: {len(text)} characters are too many for a BVH file")
    tokens = _Tokens(parts[0], where)
    tokens.word("HIERARCHY")
    tokens.word("ROOT")
    joints = _hierarchy(tokens)
    if len(parts) < 2:
        raise InputError(f"{where}: MOTION: missing")
    motion = parts[1]
    channels = sum(len(joint.channels) for joint in joints)
    head = re.match(r"\s*Frames\s*:\s*(\d{1,12})\s+Frame\s+Time\s*:\s*(\S+)[ \t]*\r?\n?", motion, re.IGNORECASE)
    if head is None:
        raise InputError(f"{where}: MOTION: 'Frames: N' and 'Frame Time: S' are missing")
    frames = int(head[1])
    if not 1 <= frames <= MAX_FRAMES or frames * max(len(joints), JOINTS) > MAX_POSED:
        raise InputError(f"{where}: Frames: {frames}, expected 1 to {MAX_POSED // max(len(joints), JOINTS)}")
    try:
        frame_time = float(head[2])
    except ValueError as error:
        raise InputError(f"{where}: Frame Time: '{head[2][:40]}' is no number") from error
    if not 1e-4 <= frame_time <= 1e3:
        raise InputError(f"{where}: Frame Time: {frame_time:g} s is no frame time")
    values = _values(motion[head.end() :], f"{where}: MOTION")
    if values.size != frames * channels:
        raise InputError(f"{where}: MOTION: {values.size} numbers, expected {frames} frames of {channels}")
    if not np.isfinite(values).all() or np.abs(values).max(initial=0) > 1e9:
        raise InputError(f"{where}: MOTION: NaN, infinite or huge values")
    return Motion(joints, values.reshape(frames, channels), frame_time)


_MOTION = re.compile(r"(?im)^\s*MOTION\s*$")


def _values(text: str, where: str) -> Array:
    """The numbers in a text, read in C without a Python object for each."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            values: Array = np.fromstring(text, np.float64, sep=" ")
        except (DeprecationWarning, ValueError) as error:
            raise InputError(f"{where}: holds what is no number") from error
    return values


def _hierarchy(tokens: _Tokens) -> list[Joint]:
    joints = [Joint(tokens.name(), -1)]
    open_ = [0]
    while open_:
        word = tokens.word("OFFSET", "CHANNELS", "JOINT", "END", "}")
        joint = joints[open_[-1]]
        if word == "OFFSET":
            joint.offset = np.array([tokens.number(f"OFFSET of {joint.name}") for _ in range(3)])
            if np.abs(joint.offset).max() > 1e9:
                tokens.fail(f"OFFSET of {joint.name}: too large")
        elif word == "CHANNELS":
            count = tokens.whole(f"CHANNELS of {joint.name}", 0, 6)
            names = [tokens.next("a channel").lower() for _ in range(count)]
            if any(name not in _CHANNELS for name in names) or len(set(names)) != count or joint.channels:
                tokens.fail(f"CHANNELS of {joint.name}: {' '.join(names)[:80]}")
            joint.channels = tuple(_CHANNELS[name] for name in names)
        elif word == "}":
            open_.pop()
        else:
            if len(joints) >= MAX_JOINTS:
                tokens.fail(f"more than {MAX_JOINTS} joints")
            name, end = tokens.name(), word == "END"
            joints.append(Joint(f"{joint.name} end" if end else name, open_[-1], is_end=end))
            open_.append(len(joints) - 1)
    return joints


# ---- forward kinematics ------------------------------------------------------------------------------------------


def positions(motion: Motion) -> tuple[Array, Array]:
    """World positions [T, J, 3] and rotations [T, J, 3, 3] of all joints, in the file's own axes and unit.

    Rotation channels apply in file order, first outermost: R = R1 R2 R3, as BVH means it.
    """
    frames, count = len(motion.values), len(motion.joints)
    place = np.zeros((frames, count, 3))
    turn = np.zeros((frames, count, 3, 3))
    at = 0
    for j, joint in enumerate(motion.joints):
        local = np.broadcast_to(np.eye(3), (frames, 3, 3))
        offset = np.broadcast_to(joint.offset, (frames, 3)).copy()
        for channel in joint.channels:
            value, axis = motion.values[:, at], "XYZ".index(channel[0])
            at += 1
            if channel.endswith("position"):
                # A position replaces the offset, as exporters mean it, axis by axis.
                offset[:, axis] = value
            else:
                local = local @ _rotation(axis, np.radians(value))
        if joint.parent < 0:
            place[:, j], turn[:, j] = offset, local
        else:
            place[:, j] = place[:, joint.parent] + np.einsum("tij,tj->ti", turn[:, joint.parent], offset)
            turn[:, j] = turn[:, joint.parent] @ local
    return place, turn


def _rotation(axis: int, angle: Array) -> Array:
    """[T, 3, 3] rotations about a coordinate axis, right-handed, angle in radians."""
    a, b = (axis + 1) % 3, (axis + 2) % 3
    made = np.zeros((len(angle), 3, 3))
    cos, sin = np.cos(angle), np.sin(angle)
    made[:, axis, axis] = 1
    made[:, a, a], made[:, a, b], made[:, b, a], made[:, b, b] = cos, -sin, sin, cos
    return made
