"""Explicit pose indicator (EPI) as augmentation: the motion stays, the body becomes another (paper section 3.2, D.4).

A fresh choice per clip, constant over its frames: with probability lambda the driving poses are realigned to one anchor
of the pose pool (`robust`: one factor a bone, so every angle is kept) and then rescaled by 1 to k operations of the
rescale pool, which are presets with ranges.  With probability 1 - lambda nothing is touched.  Reference pose and
slot 0 never change.

    epi = Epi(load_epi("epi"), pool, canvas)
    choice = epi.draw(rng)                      # all randomness
    points, scores = epi.apply(points, scores, times, choice)

Letters: F frames, K = 134 joints, U = 19 units of bones (`animx.retarget.groups`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from animx.canvas import Canvas, place
from animx.config import FieldError, Range, build_with, read_yaml
from animx.errors import InputError, UsageError, nearest
from animx.pose.sequence import PoseSequence
from animx.pose.skeleton import JOINTS
from animx.retarget.fused import align_and_rescale
from animx.retarget.groups import GROUPS, UNITS, joints_of, unit_factors
from animx.retarget.history import cumulative_factors, factor_table
from animx.retarget.invent import invent
from animx.retarget.preset import Preset
from animx_trainer.pool import PosePool

Floats = NDArray[np.float32]

Ablation = Literal["epi", "realign", "rescalings", "add", "drop", "body_shoulders", "neck_face", "arms_legs"]
"""What tables 4 and 5 of the paper take away: w/o EPI, Realign, Rescalings, Add, Drop, BS, NF, AL."""

PARTS: Mapping[str, frozenset[str]] = {
    "body_shoulders": frozenset({"torso", "shoulders", "hips"}),
    "neck_face": frozenset({"neck", "face", "head"}),
    "arms_legs": frozenset({"arms", "upper_arms", "forearms", "hands", "legs", "thighs", "shins", "feet"}),
}
"""The bone groups whose length each of three ablations leaves alone."""


@dataclass(frozen=True)
class EpiConfig:
    """How poses are transformed in training."""

    probability: Annotated[float, Range(0, 1)] = 0.98
    """Lambda: share of the clips that are transformed, 0..1."""
    operations: tuple[Annotated[int, Range(0)], Annotated[int, Range(0)]] = (1, 3)
    """Fewest and most rescale operations of a transformed clip."""
    rescales: tuple[Preset, ...] = ()
    """The rescale pool: presets with ranges; `probability` is how often one is drawn, relative to the others."""
    without: tuple[Ablation, ...] = ()
    """Ablations of the paper: epi, realign, rescalings, add, drop, body_shoulders, neck_face, arms_legs."""
    keypoints: Literal["raw", "transformed"] = "raw"
    """What the keypoint encoder sees: the driving keypoints as they were (paper, release) or transformed ones."""

    def __post_init__(self) -> None:
        low, high = self.operations
        if low > high:
            raise FieldError(f"operations: [{low}, {high}] runs downwards", ("operations",))
        names = [preset.name for preset in self.rescales]
        for name in names:
            if not name or names.count(name) > 1:
                raise FieldError(f"rescales: '{name}' is no name of its own. Name each operation", ("rescales",))
        if low > 0 and self.active and self.rescaling and not self.pool:
            mend = "Start from a preset (base: epi), or set operations: [0, 0]"
            raise FieldError(f"rescales: no operation is left to draw from. {mend}", ("rescales",))

    @property
    def active(self) -> bool:
        """Whether any clip is ever transformed."""
        return "epi" not in self.without and self.probability > 0

    @property
    def realigning(self) -> bool:
        """Whether transformed clips are realigned."""
        return "realign" not in self.without

    @property
    def rescaling(self) -> bool:
        """Whether transformed clips are rescaled."""
        return "rescalings" not in self.without and self.operations[1] > 0

    @property
    def pool(self) -> tuple[Preset, ...]:
        """The operations that are left when the ablations have taken theirs; weight 0 is left out too."""
        gone = {group for part, groups in PARTS.items() if part in self.without for group in groups}
        left = []
        for preset in self.rescales:
            rescale = {
                g: f for g, f in preset.rescale.items() if g.removeprefix("left_").removeprefix("right_") not in gone
            }
            one = replace(
                preset,
                rescale=rescale,
                drop=() if "drop" in self.without else preset.drop,
                add=() if "add" in self.without else preset.add,
            )
            if preset.probability > 0 and (one.rescale or one.drop or one.add):
                left.append(one)
        return tuple(left)


def load_epi(name: str | Mapping[str, Any] = "epi", sets: Iterable[str] = ()) -> EpiConfig:
    """An EPI config: a shipped preset by name, a YAML file, or a mapping, with `--set a.b=c` laid over it.

    The key `base` names a preset that the other keys are laid over; in a mapping without `rescales` it is `epi`.
    Errors: `InputError` with file and key, `UsageError` for a preset that does not exist and for a wrong `--set`,
    which it names.
    """
    mapping, where = _read(name)
    return build_with(EpiConfig, mapping, where, sets)


def _read(name: str | Mapping[str, Any], depth: int = 0) -> tuple[dict[str, Any], str]:
    if isinstance(name, Mapping):
        mapping, where = dict(name), "epi"
        if "rescales" not in mapping:  # such as {probability: 0.9}: what is not said is the paper's
            mapping.setdefault("base", "epi")
    else:
        path = _find(name)
        mapping, where = dict(read_yaml(path)), str(path)
    if "base" not in mapping:
        return mapping, where
    base = mapping.pop("base")
    if not isinstance(base, str) or depth >= 4:
        raise InputError(f"{where}: base: {base!r} is no preset to start from")
    return {**_read(base, depth + 1)[0], **mapping}, where


def _find(name: str) -> Path:
    from animx_trainer.config import presets_folder

    path = Path(name)
    if path.suffix in (".yaml", ".yml") or "/" in name:
        return path
    known = sorted(file.stem for file in presets_folder().glob("epi*.yaml"))
    if name not in known:
        raise UsageError(f"unknown EPI preset '{name}'.{nearest(name, known)} Known: {', '.join(known)}, or a file")
    return presets_folder() / f"{name}.yaml"


@dataclass(frozen=True)
class Choice:
    """What one clip gets: everything random about it."""

    gated: bool = False
    """Whether the clip is transformed at all."""
    anchor: int | None = None
    """Number of the pool's anchor; None = not realigned."""
    operations: tuple[Preset, ...] = ()
    """Rescale operations in order, their ranges drawn."""

    @property
    def name(self) -> str:
        """For a person: `anchor 12, legs, no-arms`, or `untouched`."""
        if not self.gated:
            return "untouched"
        words = [] if self.anchor is None else [f"anchor {self.anchor}"]
        return ", ".join([*words, *(one.name for one in self.operations)]) or "gated, nothing to do"


@dataclass
class Epi:
    """The augmentation for one training canvas.  The same choice on the same poses gives the same bytes."""

    config: EpiConfig
    pool: PosePool | None
    canvas: Canvas
    _pool: PosePool | None = field(init=False, default=None, repr=False)
    _operations: tuple[Preset, ...] = field(init=False, default=(), repr=False)
    _log_weights: NDArray[np.float64] = field(init=False, default_factory=lambda: np.zeros(0), repr=False)

    def __post_init__(self) -> None:
        if self.config.active and self.config.realigning:
            if self.pool is None:
                raise UsageError(
                    "realignment needs a pose pool. Make one with: animx data pool, or set without: [realign]"
                )
            self._pool = self.pool.on(self.canvas)
        self._operations = self.config.pool if self.config.rescaling else ()
        self._log_weights = np.log([one.probability for one in self._operations]) if self._operations else np.zeros(0)

    def draw(self, rng: np.random.Generator) -> Choice:
        """A fresh choice: the gate first, then the anchor, then how many operations, which, and their factors."""
        if "epi" in self.config.without or not rng.random() < self.config.probability:
            return Choice()
        anchor = int(rng.integers(len(self._pool))) if self._pool is not None else None
        chosen: tuple[Preset, ...] = ()
        if self._operations:
            low, high = self.config.operations
            count = min(int(rng.integers(low, high + 1)), len(self._operations))
            # Gumbel keys: the largest k of log weight + noise are k draws without replacement
            keys = self._log_weights + rng.gumbel(size=len(self._operations))
            chosen = tuple(self._operations[i].sample(rng) for i in np.argsort(-keys, kind="stable")[:count])
        return Choice(True, anchor, chosen)

    def apply(
        self,
        points: Floats,
        scores: Floats,
        times: NDArray[np.float64],
        choice: Choice,
        before: NDArray[np.float64] | None = None,
    ) -> tuple[Floats, Floats]:
        """Keypoints [F, K, 2] px of the training canvas and scores [F, K] of one person after `choice`.

        All rescalings act as one, then parts are added, then dropped: what is dropped stays away.  `before` [U] are the
        cumulative factors of the poses so far.  A clip without any visible joint stays as it is.
        """
        visible = scores > 0
        if not choice.gated or not visible.any():
            return points, scores
        before = np.ones(len(UNITS)) if before is None else before
        target = None if choice.anchor is None or self._pool is None else self._pool.measured(choice.anchor)
        rescaling = [one for one in choice.operations if one.rescale]
        groups = [(keep, list(some)) for keep, some in groupby(rescaling, key=lambda one: one.keep)] or [("none", [])]
        moved: Any = points
        for keep, some in groups:
            factors = np.ones(len(UNITS))
            for one in some:
                factors = factors * unit_factors(one.factors)
            moved = align_and_rescale(moved, visible, times, target, factors, keep, before=before)
            before, target = before * factors, None
        trust = scores
        added = joints_of(name for one in choice.operations for name in one.add)
        if added and not visible[:, list(added)].all():
            wanted = ~visible & np.isin(np.arange(JOINTS), added)
            clean = np.where(visible[..., None], moved, 0.0)
            moved, trust = invent(clean, scores, wanted, before)
        dropped = joints_of(name for one in choice.operations for name in one.drop)
        if dropped:
            trust = trust.copy()
            trust[:, list(dropped)] = 0
        result = np.empty(points.shape, np.float32)
        result[...] = moved
        missing = trust <= 0
        if missing.any():
            result[missing] = 0
        return result, trust

    def augment(self, poses: PoseSequence, rng: np.random.Generator) -> tuple[PoseSequence, Choice]:
        """The first person of `poses` on the training canvas, transformed, with the steps in its history."""
        poses = poses.person(0)
        poses = (
            poses if poses.canvas == self.canvas else poses.on(self.canvas, place(poses.canvas, self.canvas, "cover"))
        )
        choice = self.draw(rng)
        if not choice.gated:
            return poses, choice
        before = cumulative_factors(poses.history)
        points, scores = self.apply(poses.keypoints[:, 0], poses.scores[:, 0], poses.times, choice, before)
        total = before
        for one in choice.operations:
            total = total * unit_factors(one.factors)
        step = {"op": "epi", "anchor": choice.anchor, "operations": [one.name for one in choice.operations]}
        bones = {"op": "rescale", "bones": factor_table(total)}
        history = (*poses.history, step, bones)
        return replace(poses, keypoints=points[:, None], scores=scores[:, None], history=history, depth=None), choice


assert {group for groups in PARTS.values() for group in groups} == {
    name for name in GROUPS if not name.startswith(("left_", "right_"))
}
