"""Dances in joint angles, and the skeleton that turns them into joints: the motion half of the synthetic characters.

A dance is a table of key poses, one a beat, free of proportions: arms as directions, feet as places on the floor, the
hips above them.  `skeleton` puts it on a body: arms by forward kinematics, legs by two-bone inverse kinematics (so
standing feet stay where they stand), everything in 3D (x right, y down, z towards the viewer) and then seen from the
front.  Left and right are the character's own; its left is on the picture's right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from animx.canvas import Canvas
from animx.errors import UsageError, nearest
from animx.pose import skeleton as sk

Vector = NDArray[np.float64]

Arm = tuple[float, float, float, float]
"""Upper arm and forearm as (swing, forward, swing, forward) [degrees]: swing 0 down, 90 out to the side, 180 up, below
0 across the body; forward 90 points at the viewer."""
Foot = tuple[float, float, float]
"""Ankle as (outward, lift, forward) from under the middle of the body, in leg lengths."""

HANG: Arm = (14, 0, 8, 12)
STAND: Foot = (0.13, 0.0, 0.0)


@dataclass(frozen=True)
class Key:
    """One key pose."""

    x: float = 0.0
    """Hips to the picture's right, in figure heights."""
    high: float = 0.975
    """Hips above the floor, in leg lengths; above 1 in a jump."""
    lean: float = 0.0
    """Torso to the picture's right [degrees]."""
    sway: float = 0.0
    """Hips tilted, the picture's right side up [degrees]."""
    yaw: float = 0.0
    """Torso turned to the picture's right [degrees]."""
    tilt: float = 0.0
    """Head tilted to the picture's right [degrees]."""
    look: float = 0.0
    """Head turned to the picture's right, on top of `yaw` [degrees]."""
    left: Arm = HANG
    right: Arm = HANG
    left_foot: Foot = STAND
    right_foot: Foot = STAND
    smile: float = 0.4
    """Mouth, 0 closed to 1 wide open."""

    def flipped(self) -> Key:
        """The same pose seen in a mirror: sides swapped."""
        return replace(
            self,
            x=-self.x, lean=-self.lean, sway=-self.sway, yaw=-self.yaw, tilt=-self.tilt, look=-self.look,
            left=self.right, right=self.left, left_foot=self.right_foot, right_foot=self.left_foot,
        )  # fmt: skip

    def numbers(self) -> list[float]:
        """All channels in one row."""
        return [
            self.x, self.high, self.lean, self.sway, self.yaw, self.tilt, self.look,
            *self.left, *self.right, *self.left_foot, *self.right_foot, self.smile,
        ]  # fmt: skip

    @staticmethod
    def of(row: Vector) -> Key:
        """The pose of one row of `numbers`."""
        r = [float(v) for v in row]
        x, high, lean, sway, yaw, tilt, look = r[:7]
        return Key(
            x, high, lean, sway, yaw, tilt, look,
            (r[7], r[8], r[9], r[10]), (r[11], r[12], r[13], r[14]),
            (r[15], r[16], r[17]), (r[18], r[19], r[20]), r[21],
        )  # fmt: skip


_UP: Arm = (158, 0, 172, 0)
_OUT: Arm = (92, 0, 90, 0)
_HIP: Arm = (52, -14, -42, 18)

MOVES: MappingProxyType[str, tuple[Key, ...]] = MappingProxyType({
    "groove": (
        Key(x=0.035, high=0.92, lean=5, sway=5, tilt=7, left=(38, 10, 118, 30), right=(30, 0, -30, 35),
            left_foot=(0.22, 0, 0), right_foot=(0.18, 0, 0)),
    ),
    "wave": (
        Key(x=0.03, high=0.95, lean=4, sway=4, tilt=-8, left=(128, 5, 172, 8), right=_HIP, left_foot=(0.2, 0, 0),
            right_foot=(0.17, 0, 0), smile=0.8),
        Key(x=0.02, high=0.93, lean=-3, sway=3, tilt=8, left=(118, 5, 105, 8), right=_HIP, left_foot=(0.2, 0, 0),
            right_foot=(0.17, 0, 0), smile=0.6),
    ),
    "arms": (
        Key(high=0.93, left=_OUT, right=_OUT, left_foot=(0.24, 0, 0), right_foot=(0.24, 0, 0)),
        Key(high=0.99, left=_UP, right=_UP, left_foot=(0.24, 0, 0), right_foot=(0.24, 0, 0), tilt=4, smile=0.9),
        Key(high=0.90, left=(96, 0, 178, 0), right=(60, 0, -8, 10), lean=4, tilt=6, left_foot=(0.24, 0, 0),
            right_foot=(0.24, 0, 0)),
        Key(high=0.90, left=(60, 0, -8, 10), right=(96, 0, 178, 0), lean=-4, tilt=-6, left_foot=(0.24, 0, 0),
            right_foot=(0.24, 0, 0)),
    ),
    "step": (
        Key(x=-0.05, high=0.96, lean=-4, sway=-6, left=(70, 0, 40, 20), right=(70, 0, 100, 10), tilt=-6,
            left_foot=(0.02, 0.24, 0.1), right_foot=(0.24, 0, 0)),
        Key(x=0.0, high=0.90, left=(44, 0, -20, 40), right=(44, 0, -20, 40), left_foot=(0.26, 0, 0),
            right_foot=(0.24, 0, 0)),
    ),
    "kick": (
        Key(x=0.0, high=0.90, lean=-3, left=(48, 10, -10, 40), right=(60, 0, 20, 20), left_foot=(0.1, 0.1, 0),
            right_foot=(0.16, 0, 0)),
        Key(x=0.02, high=0.985, lean=-12, sway=-8, tilt=6, left=(86, 0, 74, 0), right=(112, 0, 140, 0),
            left_foot=(0.66, 0.40, 0.1), right_foot=(0.14, 0, 0), smile=0.9),
    ),
    "jump": (
        Key(high=0.80, left=(30, -20, 10, 10), right=(30, -20, 10, 10), left_foot=(0.2, 0, 0), right_foot=(0.2, 0, 0),
            smile=0.2),
        Key(high=1.10, left=(150, 0, 158, 0), right=(150, 0, 158, 0), left_foot=(0.34, 0.25, 0),
            right_foot=(0.34, 0.25, 0), smile=1.0),
        Key(high=0.80, left=(72, 0, 50, 10), right=(72, 0, 50, 10), left_foot=(0.22, 0, 0), right_foot=(0.22, 0, 0)),
        Key(high=0.97, left=(24, 0, 14, 10), right=(24, 0, 14, 10), left_foot=(0.2, 0, 0), right_foot=(0.2, 0, 0)),
    ),
    "turn": (
        Key(yaw=34, look=-14, high=0.94, lean=3, left=(58, 8, 24, 30), right=(64, 0, 112, 12), tilt=4,
            left_foot=(0.2, 0, 0), right_foot=(0.2, 0, 0.08)),
        Key(yaw=14, high=0.97, left=(118, 0, 150, 0), right=(48, 0, -16, 30), lean=-4, tilt=-5, left_foot=(0.2, 0, 0),
            right_foot=(0.2, 0, 0), smile=0.8),
    ),
})  # fmt: skip
"""Moves by name: key poses, one a beat.  Any can follow any other; `-name` in a dance is the mirror image."""

DANCES: MappingProxyType[str, tuple[str, ...]] = MappingProxyType(
    {
        "show": ("groove", "-groove", "wave", "kick", "jump", "-turn"),
        "wave": ("wave", "-wave"),
        "party": ("arms", "jump", "groove", "-groove"),
        "kicks": ("kick", "step", "-kick", "-step"),
        "twist": ("turn", "-turn", "groove", "-groove"),
    }
)
"""Dances by name: the moves they are made of."""


@dataclass(frozen=True)
class Dance:
    """A periodic motion: key poses, one a beat, joined smoothly and for ever."""

    name: str
    keys: tuple[Key, ...]
    bpm: float = 144.0
    """Beats a minute."""
    _table: Vector = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.keys) < 2:
            raise UsageError(f"dance '{self.name}': {len(self.keys)} key poses, expected 2 or more")
        object.__setattr__(self, "_table", np.array([key.numbers() for key in self.keys]))

    @property
    def period(self) -> float:
        """Time after which it repeats [s]."""
        return len(self.keys) * 60.0 / self.bpm

    def at(self, time: float) -> Key:
        """The pose at `time` [s].  Smooth (C1), hits each key pose on its beat and lingers a little there."""
        beat = time * self.bpm / 60.0
        index, u = int(np.floor(beat)), beat - np.floor(beat)
        u = 0.5 * u + 0.5 * u * u * (3 - 2 * u)
        a, b, c, d = (self._table[(index + k) % len(self.keys)] for k in (-1, 0, 1, 2))
        tangent_b, tangent_c = 0.38 * (c - a), 0.38 * (d - b)
        row = (
            b * (2 * u**3 - 3 * u**2 + 1)
            + tangent_b * (u**3 - 2 * u**2 + u)
            + c * (3 * u**2 - 2 * u**3)
            + tangent_c * (u**3 - u**2)
        )
        return Key.of(row)


def dance(name: str) -> Dance:
    """A dance by name (see `DANCES`); an unknown name is a `UsageError` with the nearest known one."""
    if name not in DANCES:
        raise UsageError(f"unknown dance '{name}'.{nearest(name, DANCES)} Known: {', '.join(DANCES)}")
    return Dance(name, _keys(DANCES[name]))


def random_dance(generator: np.random.Generator, moves: int = 4) -> Dance:
    """A dance of random moves, sides, sizes and tempo drawn from `generator`: training data that never repeats."""
    if moves < 1:
        raise UsageError(f"{moves} moves: a dance needs at least one")
    chosen = tuple(
        ("-" if generator.random() < 0.5 else "") + str(name) for name in generator.choice(sorted(MOVES), moves)
    )
    keys = _keys(chosen)
    if len(keys) == 1:
        keys = (keys[0], keys[0].flipped())
    calm, size = np.array(Key().numbers()), float(generator.uniform(0.75, 1.1))
    keys = tuple(Key.of(calm + (np.array(key.numbers()) - calm) * size) for key in keys)
    return Dance("-".join(chosen), keys, bpm=float(generator.uniform(100, 150)))


def _keys(moves: Sequence[str]) -> tuple[Key, ...]:
    return tuple(
        key.flipped() if move.startswith("-") else key for move in moves for key in MOVES[move.removeprefix("-")]
    )


@dataclass(frozen=True)
class Proportions:
    """Bone lengths of a body.  Any unit: the standing height is scaled to 1."""

    head: float = 0.20
    """Neck to the top of the head."""
    shoulders: float = 0.112
    """Neck to a shoulder."""
    torso: float = 0.27
    """Mid-hip to neck."""
    upper_arm: float = 0.155
    forearm: float = 0.135
    hips: float = 0.058
    """Mid-hip to a hip."""
    thigh: float = 0.245
    shin: float = 0.235
    sole: float = 0.05
    """Floor to ankle."""
    foot: float = 0.085
    """Ankle to toes."""
    face: float = 0.46
    """Height of the nose between neck (0) and the top of the head (1)."""
    eyes: float = 0.036
    """Nose to an eye, sideways."""
    ears: float = 0.075
    """Nose to an ear, sideways."""

    def unit(self) -> Proportions:
        """The same body with a standing height of 1."""
        total = self.head + self.torso + self.thigh + self.shin + self.sole
        names = [name for name in self.__dataclass_fields__ if name != "face"]
        return replace(self, **{name: getattr(self, name) / total for name in names})


@dataclass(frozen=True)
class Pose:
    """A body in a pose on a canvas.  Depth is px towards the viewer, relative to mid-hip."""

    joints: Vector  # [24, 3] px: x, y, depth; order of the layout's body and feet
    head_top: Vector  # [3] px
    height: float
    """Standing height [px]."""
    floor: float
    """y of the floor [px]."""
    key: Key
    drag: tuple[float, float] = (0.0, 0.0)
    """How the head moves [heights/s]: hair, ears and straws lag behind by it."""
    blink: float = 0.0
    """Eyelids, 0 open to 1 closed."""


def skeleton(body: Proportions, key: Key, canvas: Canvas, *, size: float = 0.7, floor: float = 0.92) -> Pose:
    """Joints of `body` in the pose `key`.  `size`: standing height, `floor`: its place, both in canvas heights."""
    b, height, ground = body.unit(), size * canvas.height, floor * canvas.height
    leg = b.thigh + b.shin
    pelvis = np.array([key.x, -(b.sole + leg * key.high), 0.0])
    turn = np.radians(key.yaw)
    facing = _rotate_y(0.45 * turn)
    joints = np.zeros((24, 3))

    spine = np.array([np.sin(np.radians(key.lean)), -np.cos(np.radians(key.lean)), 0.0])
    neck = pelvis + spine * b.torso
    joints[sk.NECK] = neck
    upright = _rotate_z(np.radians(key.lean)) @ _rotate_y(turn)
    for side, arm, (shoulder, elbow, wrist) in (
        (1, key.left, (sk.L_SHOULDER, sk.L_ELBOW, sk.L_WRIST)),
        (-1, key.right, (sk.R_SHOULDER, sk.R_ELBOW, sk.R_WRIST)),
    ):
        swing = np.clip((arm[0] - 80) / 90, 0, 1)  # a raised arm lifts its shoulder and brings it in
        joints[shoulder] = neck + upright @ [
            side * b.shoulders * (1 - 0.16 * swing), b.torso * (0.055 - 0.10 * swing), 0.0
        ]  # fmt: skip
        joints[elbow] = joints[shoulder] + upright @ _direction(side, arm[0], arm[1]) * b.upper_arm
        joints[wrist] = joints[elbow] + upright @ _direction(side, arm[2], arm[3]) * b.forearm

    roll = _rotate_z(-np.radians(key.sway))
    for side, foot, (hip, knee, ankle), toes in (
        (1, key.left_foot, (sk.L_HIP, sk.L_KNEE, sk.L_ANKLE), (sk.L_BIG_TOE, sk.L_SMALL_TOE, sk.L_HEEL)),
        (-1, key.right_foot, (sk.R_HIP, sk.R_KNEE, sk.R_ANKLE), (sk.R_BIG_TOE, sk.R_SMALL_TOE, sk.R_HEEL)),
    ):
        joints[hip] = pelvis + facing @ roll @ [side * b.hips, 0.0, 0.0]
        outward = max(foot[0], 0.2 * b.hips / leg) * leg + 0.5 * b.hips
        target = np.array([side * outward, -(b.sole + foot[1] * leg), foot[2] * leg])
        pole = facing @ np.array([side * 0.55, 0.0, 1.0])
        joints[knee], joints[ankle] = _bend(joints[hip], target, b.thigh, b.shin, pole)
        flat = facing @ np.array([side * 0.62, 0.5 * b.sole / b.foot, 0.75])
        along = (joints[ankle] - joints[knee]) / max(b.shin, 1e-9)
        lifted = np.clip(foot[1] * 2.2, 0, 0.8)
        ahead = (1 - lifted) * flat + lifted * (along + 0.5 * flat)
        ahead /= np.linalg.norm(ahead)
        across = np.array([side * 0.18 * b.foot, 0.02 * b.foot, 0.0])
        joints[toes[0]] = joints[ankle] + ahead * b.foot - across * 0.4
        joints[toes[1]] = joints[ankle] + ahead * b.foot * 0.9 + across
        joints[toes[2]] = joints[ankle] - ahead * b.foot * 0.25 + [0.0, 0.55 * b.sole * (1 - lifted), 0.0]

    tilt = np.radians(0.55 * key.lean + key.tilt)
    skull = _rotate_z(tilt) @ _rotate_y(turn * 0.75 + np.radians(key.look))
    up = _rotate_z(tilt) @ np.array([0.0, -1.0, 0.0])
    nose = neck + up * b.head * b.face
    joints[sk.NOSE] = nose + skull @ [0.0, 0.0, 0.4 * b.head]
    for side, eye, ear in ((1, sk.L_EYE, sk.L_EAR), (-1, sk.R_EYE, sk.R_EAR)):
        joints[eye] = nose + skull @ [side * b.eyes, -0.15 * b.head, 0.32 * b.head]
        joints[ear] = nose + skull @ [side * b.ears, -0.04 * b.head, 0.0]
    top = neck + up * b.head

    def on_canvas(points: Vector) -> Vector:
        out: Vector = points * height
        out[..., 1] += 0.10 * out[..., 2]  # the camera looks down a little: what is nearer lies lower
        out += np.array([canvas.width / 2, ground, 0.0])
        return out

    joints[:, 2] -= pelvis[2]
    return Pose(on_canvas(joints), on_canvas(top), height, ground, key)


def perform(body: Proportions, moving: Dance, time: float, canvas: Canvas, **placed: float) -> Pose:
    """The pose of `body` in the dance at `time` [s], with what lags behind and blinking eyes; see `skeleton`."""
    now = skeleton(body, moving.at(time), canvas, **placed)
    step = 0.05
    before = skeleton(body, moving.at(time - 2 * step), canvas, **placed)
    drag = (now.head_top - before.head_top)[:2] / (2 * step * now.height)
    beat = (time * moving.bpm / 60.0) % 6.0
    blink = float(np.exp(-(((beat - 2.6) / 0.16) ** 2)))
    return replace(now, drag=(float(drag[0]), float(drag[1])), blink=blink)


def _direction(side: int, swing: float, forward: float) -> Vector:
    a, e = np.radians(swing), np.radians(forward)
    return np.array([side * np.sin(a) * np.cos(e), np.cos(a) * np.cos(e), np.sin(e)])


def _bend(root: Vector, target: Vector, first: float, second: float, pole: Vector) -> tuple[Vector, Vector]:
    """Two bones from `root` towards `target`, their joint on the side of `pole`; out of reach = stretched."""
    reach = target - root
    distance = float(np.clip(np.linalg.norm(reach), abs(first - second) + 1e-6, 0.9995 * (first + second)))
    along = reach / max(float(np.linalg.norm(reach)), 1e-9)
    aside = pole - along * float(pole @ along)
    aside /= max(float(np.linalg.norm(aside)), 1e-9)
    cosine = (first**2 + distance**2 - second**2) / (2 * first * distance)
    middle = root + along * first * cosine + aside * first * float(np.sqrt(max(0.0, 1 - cosine**2)))
    return middle, root + along * distance


def _rotate_y(angle: float) -> Vector:
    """About the vertical: positive turns the front to the picture's right."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def _rotate_z(angle: float) -> Vector:
    """In the picture plane, clockwise."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
