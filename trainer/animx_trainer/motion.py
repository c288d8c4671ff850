"""Random dances without a body: joint directions, root motion and places of the feet over time, from one seed.

A dance is a loop of key poses, one a beat, in units that every body has: angles, and lengths of its own legs.  The
same dance therefore fits any body (`animx_trainer.figure`).  Feet stand still between their steps; angles stay within
the limits of `LIMITS` because the keys do and the way between two keys is straight in angles.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from animx_trainer.sample import generator

Numbers = NDArray[np.float64]

ROOM = 0.2
"""How far the hips wander to either side of the stage's middle [leg lengths]."""
REACH = 0.3
"""How far outward from under its own hip a foot is set down [leg lengths]."""

LIMITS: MappingProxyType[str, tuple[float, float]] = MappingProxyType({
    "x": (-ROOM, ROOM), "high": (0.80, 0.985), "lean": (-16, 16), "sway": (-9, 9), "yaw": (-32, 32), "tilt": (-20, 20),
    "look": (-35, 35),
    "left_swing": (-18, 168), "left_forward": (-25, 45), "left_bend": (0, 135), "left_roll": (-70, 100),
    "right_swing": (-18, 168), "right_forward": (-25, 45), "right_bend": (0, 135), "right_roll": (-70, 100),
    "left_x": (-0.05, REACH), "left_lift": (0, 0.4), "left_z": (-0.1, 0.2),
    "right_x": (-0.05, REACH), "right_lift": (0, 0.4), "right_z": (-0.1, 0.2),
})  # fmt: skip
"""Channels and their range.  x, feet: leg lengths; high: hips above the ankles in leg lengths; the others degrees.
Swing 0 = arm down, 90 = out to its side; roll turns the plane in which the elbow bends: 0 = outward and up, 90 =
towards the viewer.  left_x and right_x: outward from under the hip of hips in the middle of the stage."""

CHANNELS: tuple[str, ...] = tuple(LIMITS)
AT: MappingProxyType[str, int] = MappingProxyType({name: i for i, name in enumerate(CHANNELS)})
"""Channel -> its column."""
_LOW, _HIGH = (np.array([bounds[i] for bounds in LIMITS.values()]) for i in (0, 1))
_CALM = np.array([0, 0.95, 0, 0, 0, 0, 0, *([15, 5, 20, 10] * 2), *([0.1, 0, 0] * 2)], np.float64)
_SIDES = (("left", 1.0), ("right", -1.0))


@dataclass(frozen=True, eq=False)
class Dance:
    """A loop of key poses; `at` gives the channels of any moment."""

    seed: int
    keys: Numbers  # [N, D] channels (`CHANNELS`), without steps and jumps
    jumps: Numbers  # [N] height of a jump after key n [leg lengths], 0 = none
    beat: float
    """Time from key to key [s]."""
    hold: float
    """Share of a beat in which the pose rests."""
    step: float
    """How high a foot is lifted on its way to another place [leg lengths]."""
    phase: float
    """Where in the loop time 0 is [beats]."""

    @property
    def period(self) -> float:
        """Time after which the dance repeats [s]."""
        return len(self.keys) * self.beat

    def at(self, times: NDArray[np.floating[Any]]) -> tuple[Numbers, Numbers]:
        """Channels [T, D], and how far jumps lift the whole body [T, leg lengths], at `times` [T, s]."""
        place = np.asarray(times, np.float64) / self.beat + self.phase
        key = np.floor(place).astype(int)
        part = place - key
        now, after = key % len(self.keys), (key + 1) % len(self.keys)
        s = np.clip((part - self.hold) / (1 - self.hold), 0, 1)
        bump = 4 * s * (1 - s)
        s = s * s * s * (s * (6 * s - 15) + 10)
        first, second = self.keys[now], self.keys[after]
        rows = first + s[:, None] * (second - first)
        jump = self.jumps[now] * bump
        for side, _ in _SIDES:
            x, z = AT[f"{side}_x"], AT[f"{side}_z"]
            moves = (first[:, x] != second[:, x]) | (first[:, z] != second[:, z])
            rows[:, AT[f"{side}_lift"]] += np.where(moves, self.step, 0.0) * bump
        return rows, jump


def random_dance(seed: int) -> Dance:
    """The dance of `seed`: its own tempo, energy and 4 to 12 keys, of which some are mirror images."""
    rng = generator(seed, 0, 0, "dance")
    count = int(rng.integers(4, 13))
    energy = rng.uniform(0.55, 1.0)
    keys = _CALM + energy * (rng.uniform(_LOW, _HIGH, (count, len(CHANNELS))) - _CALM)
    for side, _ in _SIDES:
        x, lift, z = (AT[f"{side}_{name}"] for name in ("x", "lift", "z"))
        keys[:, lift] = 0
        for n in range(1, count):
            if rng.random() < 0.45:
                keys[n, [x, z]] = keys[n - 1, [x, z]]
    for n in range(count):
        if rng.random() < 0.16 * energy:  # a kick: one foot in the air, the hips above the other
            side, sign = _SIDES[int(rng.integers(2))]
            keys[n, AT[f"{side}_lift"]] = rng.uniform(0.12, 0.4)
            keys[n, AT["x"]] = -sign * rng.uniform(0, ROOM / 2)
    if rng.random() < 0.5:  # the second half mirrors the first, as dances do
        keys = np.concatenate([keys[: (count + 1) // 2], mirrored(keys[: (count + 1) // 2])])
    jumps = np.where(rng.random(len(keys)) < 0.12 * energy, rng.uniform(0.06, 0.22, len(keys)), 0.0)
    return Dance(seed, keys, jumps, rng.uniform(0.38, 0.75), rng.uniform(0, 0.35), rng.uniform(0.05, 0.16),
                 rng.uniform(0, len(keys)))  # fmt: skip


def mirrored(keys: Numbers) -> Numbers:
    """Key poses [N, D] as seen in a mirror: sides swapped, sideways turned round."""
    result = keys.copy()
    result[:, [AT[name] for name in ("x", "lean", "sway", "yaw", "tilt", "look")]] *= -1
    left = [AT[name] for name in CHANNELS if name.startswith("left_")]
    right = [AT[name] for name in CHANNELS if name.startswith("right_")]
    result[:, left], result[:, right] = result[:, right].copy(), result[:, left].copy()
    return result


def rest() -> tuple[Numbers, Numbers]:
    """Channels [1, D] and jump [1] of standing with the arms a little away from the body."""
    row = _CALM.copy()
    row[AT["high"]] = 0.985
    for side, _ in _SIDES:
        row[AT[f"{side}_swing"]], row[AT[f"{side}_bend"]], row[AT[f"{side}_roll"]] = 32, 12, 0
    return row[None], np.zeros(1)
