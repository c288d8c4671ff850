"""Training straight from characters drawn by code: a `ClipSource` without files and, in practice, without an end.

Clip i of a run's seed is one character in one dance before one scene; every sample takes another moment of it and
another reference frame.  The poses are the true ones, under the explicit pose indicator or of another body that dances
the same dance (`cross`): the frames then show exactly what a model should make of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Annotated, Any

import numpy as np

from animx.canvas import Canvas
from animx.config import Range, build
from animx.errors import UsageError
from animx.pose.sequence import PoseSequence
from animx_trainer.bodies import FAMILIES, Floats, check_families
from animx_trainer.config import DataConfig
from animx_trainer.data import DataOptions, draw_slots, fitted, keypoint_slots, scaled
from animx_trainer.figure import BODY_JOINTS, keypoints, pose, present
from animx_trainer.motion import rest
from animx_trainer.pool import PosePool
from animx_trainer.pose_augment import Epi, load_epi
from animx_trainer.sample import Sample, generator
from animx_trainer.stage import Shot, Staged, cast, film, stage

LONGEST = 60.0
"""Samples begin within this time of a dance [s]; dances repeat sooner."""
ANCHORS = 64
"""Bodies whose standing poses serve as anchors of the explicit pose indicator."""


@dataclass(frozen=True)
class SynthOptions:
    """Options of the source `synth`."""

    clips: Annotated[int, Range(1, 2**31 - 1)] = 1_000_000
    """How many clips an epoch has; each has its own character, dance and scene."""
    families: tuple[str, ...] = ()
    """Families of bodies; empty = all."""
    fps: Annotated[float, Range(1, 120)] = 12.0
    """Frames a second of dance."""
    epi: str | Mapping[str, Any] = "epi"
    """Explicit pose indicator: a preset's name, a file, or its fields."""
    cross: Annotated[float, Range(0, 1)] = 0.0
    """Share of samples whose driving poses are another body's in the same dance, instead of augmented ones."""
    clip_size: Annotated[int, Range(14, 1024)] = 224
    """Side of the pictures for the image encoder [px]."""
    pose_scale: Annotated[int, Range(1, 16)] = 1
    """Poses are drawn at this many times the size and shrunk: thinner lines on small canvases."""
    pose_jpeg: bool = True
    """Whether drawn poses pass through the JPEG and the channel order of the released pipeline, as in `render`."""

    def __post_init__(self) -> None:
        check_families(self.families)


@dataclass(frozen=True)
class Recipe:
    """What clip `index` of a seed shows: the seeds of its three ingredients."""

    character: int
    dance: int
    scene: int


def recipe(seed: int, index: int) -> Recipe:
    """The ingredients of clip `index`; they depend on (seed, index) alone."""
    return Recipe(*(int(one) for one in generator(seed, 0, index, "synth").integers(2**62, size=3)))


@dataclass
class SynthSource:
    """A `ClipSource` of characters that are drawn when they are asked for."""

    data: DataConfig
    options: SynthOptions
    seed: int
    canvas: Canvas = field(init=False)
    epi: Epi = field(init=False)

    def __post_init__(self) -> None:
        self.canvas = Canvas(*self.data.size)
        config = load_epi(self.options.epi)
        pool = anchors(self.canvas, self.seed) if config.active and config.realigning else None
        self.epi = Epi(config, pool, self.canvas)
        self._drawing = DataOptions(pose_scale=self.options.pose_scale, pose_jpeg=self.options.pose_jpeg)

    def __len__(self) -> int:
        return self.options.clips

    def sample(self, index: int, seed: int) -> Sample:
        """A moment of clip `index`; see `ClipSource`."""
        staged, shot = self.draw(index, seed)
        clip = Canvas(self.options.clip_size, self.options.clip_size)
        signed = scaled(list(shot.rgb), 2 / 255, -1.0)
        slots, images = self._pose_sides(index, seed, staged)
        return Sample(
            key=-1,
            reference=signed[0],
            pose_images=images,
            keypoints=slots,
            clip=scaled([fitted(picture, clip) for picture in shot.rgb], 1 / 255),
            video=signed[1:],
            origin=f"drawn clip {index} of seed {self.seed}",
        )

    def draw(self, index: int, seed: int) -> tuple[Staged, Shot]:
        """The sample's T = F + 1 frames with masks and labels, the reference first, and what they were drawn from."""
        made = recipe(self.seed, index)
        staged = stage(made.character, made.dance, made.scene, self.canvas, self.times(seed), self.options.families)
        return staged, film([staged])[0]

    def times(self, seed: int) -> Floats:
        """Moments of the sample's T slots [s]: one for the reference, then F in a row."""
        reference, start = generator(seed, 0, 0, "segment").uniform(0, LONGEST, 2)
        return np.concatenate([[reference], start + np.arange(self.data.frames) / self.options.fps])

    def _pose_sides(self, index: int, seed: int, staged: Staged) -> tuple[Floats, Floats]:
        """Keypoints [T, 2, 18] and drawn poses [T, 3, H, W]; slot 0 is the reference's own pose."""
        points, scores = staged.poses.keypoints[:, 0], staged.poses.scores[:, 0]
        rng = generator(seed, 0, 0, "cross")
        if rng.random() < self.options.cross:
            other = self.other(index, int(rng.integers(2**62)), seed)
            moved, trust = other.keypoints[1:, 0], other.scores[1:, 0]
            seen = moved, trust
        else:
            choice = self.epi.draw(generator(seed, 0, 0, "epi"))
            times = np.arange(self.data.frames) / self.options.fps
            moved, trust = self.epi.apply(points[1:], scores[1:], times, choice)
            seen = (moved, trust) if self.epi.config.keypoints == "transformed" else (points[1:], scores[1:])
        slots = keypoint_slots(
            np.concatenate([points[:1], seen[0]]), np.concatenate([scores[:1], seen[1]]), self.canvas
        )
        images = draw_slots(
            np.concatenate([points[:1], moved]), np.concatenate([scores[:1], trust]), self.canvas, self._drawing
        )
        return slots, images

    def other(self, index: int, body: int, seed: int) -> PoseSequence:
        """The sample's moments danced by the body of seed `body`: T poses."""
        dance = recipe(self.seed, index).dance
        return stage(body, dance, 0, self.canvas, self.times(seed), self.options.families).poses


def anchors(canvas: Canvas, seed: int) -> PosePool:
    """Standing poses of `ANCHORS` random bodies with arms and legs, as a pose pool."""
    rng = generator(seed, 0, 0, "anchors")
    points = np.zeros((ANCHORS, 1, 134, 2), np.float32)
    scores = np.zeros((ANCHORS, 1, 134), np.float32)
    whole = tuple(name for name, family in FAMILIES.items() if family.armless == family.legless == 0)
    for n in range(ANCHORS):
        who = cast(int(rng.integers(2**62)), canvas, whole)
        points[n, 0, :BODY_JOINTS] = keypoints(pose(who.who, *rest()), who.view)[0]
        scores[n, 0, :BODY_JOINTS] = present(who.who)
    return PosePool(PoseSequence(points, scores, canvas, Fraction(1), source={"name": "drawn bodies"}))


def open_synth(data: DataConfig, seed: int) -> SynthSource:
    """The source `synth` of a training config."""
    return SynthSource(data, build(SynthOptions, dict(data.options), "data.options", error=UsageError), seed)
