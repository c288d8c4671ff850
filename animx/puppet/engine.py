"""The puppet engine: cuts the character out of the reference picture and moves it.  CPU, one thread, no downloads.

Takes a `RenderJob` (see `animx.engine`), yields RGBA frames (not premultiplied).  What cannot be animated well is said
once, in one warning.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from animx.engine import Background, Plan, Progress, RenderJob, no_progress
from animx.errors import InputError

if TYPE_CHECKING:
    from animx.puppet.motion import Motion
    from animx.puppet.puppet import Puppet

log = logging.getLogger(__name__)

Image = NDArray[np.uint8]

SECONDS_TO_PREPARE = 2.5
"""Typical time to cut out, part and mesh one figure [s]."""
FRAMES_PER_SECOND = 150.0
"""Typical drawing rate at 768 px on one core [1/s]; goes down with the picture's area."""


@dataclass(frozen=True)
class Stage:
    """A job made ready: the puppet, its motion and what stands behind it."""

    puppet: Puppet
    motion: Motion
    background: Image  # premultiplied RGBA [H, W, 4]
    opaque: bool
    """The background has no transparent pixel, so frames need no conversion."""
    notes: tuple[str, ...]

    def frame(self, t: int) -> Image:
        """Frame t as RGBA [H, W, 4], not premultiplied; a fresh array."""
        frame = self.background.copy()
        dirty = self.puppet.draw(self.motion, t, frame)
        if not self.opaque:
            from animx.puppet.raster import straighten

            straighten(frame, dirty)
        return frame


class PuppetEngine:
    """The embedded default engine (`--engine puppet`)."""

    name = "puppet"
    options: frozenset[str] = frozenset()

    def available(self) -> str | None:
        """Always None: it needs nothing beyond the base install."""
        return None

    def plan(self, job: RenderJob) -> Plan:
        """Estimate without rendering; nothing is cut or drawn."""
        pixels = job.canvas.width * job.canvas.height
        seconds = (SECONDS_TO_PREPARE + job.poses.frames / FRAMES_PER_SECOND) * max(pixels / (768 * 512), 0.1)
        memory = 150.0 + pixels * 120 / 1e6 + job.poses.keypoints.nbytes * 3 / 1e6
        return Plan(self.name, job.poses.frames, 1, round(memory, 1), round(seconds, 1))

    def render(self, job: RenderJob, on_progress: Progress = no_progress) -> Iterator[Image]:
        """Yield the frames of `job` in order.  `InputError` for wrong shapes, `NoFigureError` without a figure."""
        stage = prepare(job)
        if stage.notes:
            log.warning("%s", "; ".join(stage.notes))
        total = job.poses.frames
        for t in range(total):
            yield stage.frame(t)
            on_progress(t + 1, total)


def prepare(job: RenderJob) -> Stage:
    """Everything of a job that is done once: mask, anatomy, motion, parts, meshes, background."""
    from animx.puppet import motion as motions
    from animx.puppet import puppet as puppets
    from animx.puppet.anatomy import study

    _check(job)
    notes: list[str] = []
    mask = job.mask
    if mask is None:
        from animx.puppet.mask import find_mask

        found = find_mask(job.picture, joints=job.reference_pose)
        mask = found.alpha
        notes.extend(found.notes)
    rgb = _flat(job.picture)
    body = study(mask, job.reference_pose)
    motion = motions.plan(job, body)
    notes.extend(motion.notes)
    puppet = puppets.build(rgb, mask, body)
    background = _background(rgb, mask, job.background)
    return Stage(puppet, motion, background, bool((background[..., 3] == 255).all()), tuple(dict.fromkeys(notes)))


def _check(job: RenderJob) -> None:
    shape = (job.canvas.height, job.canvas.width)
    if job.picture.shape[:2] != shape or job.picture.ndim != 3 or job.picture.dtype != np.uint8:
        raise InputError(f"the picture is {job.picture.dtype} {list(job.picture.shape)}, the canvas {job.canvas}")
    if job.mask is not None and job.mask.shape != shape:
        raise InputError(f"the mask is {job.mask.shape[1]}x{job.mask.shape[0]}, the canvas {job.canvas}")
    for name, poses in (("poses", job.poses), ("reference pose", job.reference_pose)):
        if poses is not None and poses.persons != 1:
            raise InputError(f"the {name} hold {poses.persons} persons, expected 1. Choose one with --person")


def _flat(picture: Image) -> Image:
    """RGB of a picture; transparent parts become white."""
    rgb = np.ascontiguousarray(picture[..., :3])
    if picture.shape[2] == 3 or (picture[..., 3] == 255).all():
        return rgb
    alpha = picture[..., 3:].astype(np.uint16)
    return ((rgb.astype(np.uint16) * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _background(rgb: Image, mask: NDArray[np.float32], wanted: Background) -> Image:
    """What stands behind the figure, premultiplied RGBA [H, W, 4]."""
    height, width = mask.shape
    frame = np.zeros((height, width, 4), np.uint8)
    if wanted.mode == "transparent":
        return frame
    frame[..., 3] = 255
    if wanted.mode == "colour":
        frame[..., :3] = wanted.colour
    elif wanted.mode == "image":
        if wanted.image is None or wanted.image.shape[:2] != (height, width):
            raise InputError(f"the background picture does not have the canvas's size of {width}x{height} px")
        frame[..., :3] = wanted.image[..., :3]
    else:
        from animx.puppet.background import fill_background

        frame[..., :3] = fill_background(rgb, mask)
        if wanted.mode == "blur":
            import cv2

            frame[..., :3] = cv2.GaussianBlur(frame[..., :3], (0, 0), 0.02 * max(height, width))
    return frame
