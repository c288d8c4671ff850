"""Cases that no training run has seen: a character doing another body's dance, with the exact truth beside it.

Case i is the same for every model, so that models are compared in pairs.  Character A is shown as the reference; body B
does the dance and gives the poses; the truth is A in that dance.  C is another character in the same dance (what should
come out when its picture is the reference), and A in another dance tells what a wrong pose looks like.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from animx.canvas import Canvas
from animx.pose.sequence import PoseSequence
from animx_trainer.config import DataConfig
from animx_trainer.data import CLIP_SIZE, DataOptions, draw_slots, fitted, keypoint_slots, scaled
from animx_trainer.proof import Truth
from animx_trainer.sample import Sample, generator
from animx_trainer.stage import Shot, Staged, film, stage
from animx_trainer.synth import LONGEST

SEED = 2**31
"""Of all cases; the seed of a training run is smaller, so none of them draws these clips."""
FPS = 12.0
"""Frames a second where the config names none."""


@dataclass(frozen=True, eq=False)
class Case:
    """One held-out case, T = F + 1 slots with slot 0 = the reference."""

    number: int
    family: str
    """Family of the character's body."""
    truth: Truth
    """Character A in the dance."""
    other: Truth
    """Character C in the same dance."""
    elsewhere: NDArray[np.float32]  # [F, H, W]
    """Coverage of A in another dance."""
    background: NDArray[np.float64]  # [H, W, 3]
    reference_pose: PoseSequence
    """Of A in the reference, one frame."""
    driving: PoseSequence
    """Of B, F frames."""
    clean: Sample
    """What a model is given; the image encoder sees B in the frames."""
    leaking: Sample
    """The same, but the image encoder sees A, the answer, in the frames, as in the paper's rescaled setting."""
    swapped: Sample
    """The same as `clean` with C's picture and pose as the reference."""


def drawing_options(data: DataConfig) -> tuple[DataOptions, float]:
    """How this config's source draws poses and scales pictures, and its frames a second."""
    known = {name: data.options[name] for name in ("clip_size", "pose_scale", "pose_jpeg") if name in data.options}
    return DataOptions(**{"clip_size": CLIP_SIZE, **known}), float(data.options.get("fps", FPS))


def draw_case(number: int, data: DataConfig) -> Case:
    """Case `number` on the canvas of `data`, with its frames and its way of drawing poses."""
    canvas = Canvas(*data.size)
    options, fps = drawing_options(data)
    rng = generator(SEED, 0, number, "held out")
    a, b, c, dance, another, scene, place = (int(one) for one in rng.integers(2**62, size=7))
    reference, start = rng.uniform(0, LONGEST, 2)
    times = np.concatenate([[reference], start + np.arange(data.frames) / fps])
    staged = [
        stage(who, what, where, canvas, times)
        for who, what, where in ((a, dance, scene), (b, dance, scene), (c, dance, place), (a, another, scene))
    ]
    shots = film(staged)
    clean = _sample(number, shots[0], shots[1], staged[0], staged[1], canvas, options)
    return Case(
        number=number,
        family=staged[0].cast.who.family,
        truth=_truth(shots[0]),
        other=_truth(shots[2]),
        elsewhere=shots[3].coverage[1:],
        background=np.asarray(staged[0].background, np.float64),
        reference_pose=_part(staged[0].poses, slice(0, 1)),
        driving=_part(staged[1].poses, slice(1, None)),
        clean=clean,
        leaking=replace(clean, clip=_seen(shots[0], shots[0], options)),
        swapped=_sample(number, shots[2], shots[1], staged[2], staged[1], canvas, options),
    )


def _truth(shot: Shot) -> Truth:
    frames = shot.rgb.astype(np.float64) / 255
    return Truth(frames[1:], shot.coverage[1:], shot.labels[1:], frames[0], shot.coverage[0])


def _part(poses: PoseSequence, rows: slice) -> PoseSequence:
    return PoseSequence(poses.keypoints[rows], poses.scores[rows], poses.canvas, poses.fps)


def _seen(character: Shot, body: Shot, options: DataOptions) -> Any:
    """What the image encoder sees [T, 3, s, s]: the character's reference, then the body's frames."""
    small = Canvas(options.clip_size, options.clip_size)
    return scaled([fitted(picture, small) for picture in (character.rgb[0], *body.rgb[1:])], 1 / 255)


def _sample(
    number: int, character: Shot, body: Shot, own: Staged, driver: Staged, canvas: Canvas, options: DataOptions
) -> Sample:
    """The character's reference under the driver's poses; the frames are the character's own, the truth."""
    points = np.concatenate([own.poses.keypoints[:1, 0], driver.poses.keypoints[1:, 0]])
    scores = np.concatenate([own.poses.scores[:1, 0], driver.poses.scores[1:, 0]])
    signed = scaled(list(character.rgb), 2 / 255, -1.0)
    return Sample(
        key=number,
        reference=signed[0],
        pose_images=draw_slots(points, scores, canvas, options),
        keypoints=keypoint_slots(points, scores, canvas),
        clip=_seen(character, body, options),
        video=signed[1:],
        origin=f"held-out case {number}",
    )
