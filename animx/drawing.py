"""Poses as pictures: the clip or picture that `animx pose draw` writes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from animx.atomic import check_name
from animx.canvas import Canvas
from animx.driving import Ahead, check_apart, is_still
from animx.errors import InputError, UsageError
from animx.pose.select import select_person
from animx.pose.sequence import PoseSequence
from animx.pose.skeleton import JOINTS, L_ELBOW, L_KNEE, L_WRIST, R_ELBOW, R_KNEE, R_WRIST, TEMPLATE
from animx.request import Stage, no_stages

if TYPE_CHECKING:
    from animx.video import Frame

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Drawn:
    """What was written."""

    path: Path
    frames: int
    canvas: Canvas


def draw(
    source: str | Path | PoseSequence,
    out: Path | None,
    *,
    default: Callable[[int], Path],
    style: Literal["animate-x", "plain"] = "animate-x",
    over: str | Path | None = None,
    frame: int | None = None,
    person: str = "largest",
    hands: bool = True,
    face: bool = False,
    min_score: float = 0.3,
    overwrite: bool = False,
    on_progress: Stage = no_stages,
) -> Drawn:
    """Draw poses to `out` (a video, a picture or numbered frames); None: `default(number of frames)`.

    `frame` draws that one alone.  `over` draws on the frames of a clip, matched by time, or on a picture.
    """
    from animx.image import write_picture
    from animx.pose.formats import read_poses

    if not 0 <= min_score <= 1:  # NaN neither
        raise UsageError(f"--min-score {min_score:g}: use 0 to 1")
    poses = source if isinstance(source, PoseSequence) else read_poses(source)
    poses = select_person(poses, person)
    if frame is not None:
        if not 0 <= frame < poses.frames:
            raise UsageError(f"--frame {frame}: the poses have frames 0 to {poses.frames - 1}")
        poses = poses.cut(frame, frame + 1)
    target = out or default(poses.frames)
    if str(target) == "-":
        raise UsageError("pose draw -o -: a drawing does not go to stdout. Name a file, as in -o out.mp4")
    check_name(target)
    check_apart(target, {"poses": source, "clip": over})
    is_picture = target.suffix.lower() in (".png", ".jpg", ".jpeg") and "%" not in target.name
    if is_picture and poses.frames > 1:
        raise UsageError(f"{target}: one picture, but the poses have {poses.frames} frames. Use --frame N or a video")
    painter = _Painter(poses, style, over, hands, face, min_score)
    if is_picture:
        _check_picture(target, overwrite)
        write_picture(target, painter.paint(0, next(iter(painter.frames()), None)), overwrite=overwrite)
        return Drawn(target, 1, painter.canvas)
    _write_clip(painter, target, overwrite, on_progress)
    return Drawn(target, poses.frames, painter.canvas)


def _check_picture(target: Path, overwrite: bool) -> None:
    from animx.atomic import check_target

    check_target(target, overwrite)


def _write_clip(painter: _Painter, target: Path, overwrite: bool, on_progress: Stage) -> None:
    from animx.video import check_output, open_writer

    check_output(target, overwrite)
    poses = painter.poses
    with (
        closing(painter.frames()) as frames,
        open_writer(target, painter.canvas, poses.fps, overwrite=overwrite, comment="") as writer,
    ):
        for t in range(poses.frames):
            writer.write(painter.paint(t, next(frames, None)))
            on_progress("draw", t + 1, poses.frames)


class _Painter:
    """Draws frame t on black, on a picture, or on the frame of a clip."""

    def __init__(
        self,
        poses: PoseSequence,
        style: Literal["animate-x", "plain"],
        over: str | Path | None,
        hands: bool,
        face: bool,
        min_score: float,
    ) -> None:
        self.poses = poses
        self._style: Literal["animate-x", "plain"] = style
        self._hands, self._face, self._min_score = hands, face, min_score
        self._over = None if over is None else Path(over)
        self._still: Image | None = None
        self._frames: Iterable[Frame] | None = None
        self.canvas = poses.canvas
        if self._over is not None and is_still(self._over):
            from animx.image import read_picture

            picture = read_picture(self._over)
            self._still, self.canvas = np.ascontiguousarray(picture.pixels[..., :3]), picture.canvas
        elif self._over is not None:
            from animx.video import open_frames

            first = float(poses.times[0])
            stream = open_frames(self._over, start=first or None, fps=poses.fps)
            self._frames, self.canvas = Ahead(stream), stream.canvas

    def frames(self) -> Generator[Frame, None, None]:
        """The frames to draw over; none when there is no clip."""
        yield from self._frames or ()

    def paint(self, t: int, under: Frame | None) -> Image:
        """Frame t as RGB."""
        from animx.pose.draw import draw_over, draw_pose

        if self._over is None:
            return draw_pose(self.poses, t, style=self._style, hands=self._hands, face=self._face,
                             min_score=self._min_score)  # fmt: skip
        if self._still is None and under is None:
            raise InputError(f"{self._over}: ends before the poses do, at frame {t} of {self.poses.frames}")
        ground = self._still if under is None or self._still is not None else under.pixels
        assert ground is not None
        if self._style == "plain":
            return draw_over(ground, self.poses, t, 0, hands=self._hands, face=self._face, min_score=self._min_score)
        drawn = draw_pose(self.poses, t, canvas=self.canvas, hands=self._hands, face=self._face,
                          min_score=self._min_score)  # fmt: skip
        return np.where(drawn.any(axis=2, keepdims=True), drawn, ground)


def template_dance(frames: int = 48) -> PoseSequence:
    """A template body that waves and steps for two seconds, 512x768 px: a motion to show presets with."""
    canvas, height = Canvas(512, 768), 640.0
    phase = 2 * np.pi * np.arange(frames) / frames
    keypoints = np.zeros((frames, 1, JOINTS, 2), np.float32)
    scores = np.zeros((frames, 1, JOINTS), np.float32)
    for joint, (x, y) in TEMPLATE.items():
        keypoints[:, 0, joint] = (canvas.width / 2 + x * height, canvas.height / 2 + (y + 0.02) * height)
        scores[:, 0, joint] = 1.0
    swing = 0.5 + 0.5 * np.sin(phase)
    for elbow, wrist, side in ((R_ELBOW, R_WRIST, -1.0), (L_ELBOW, L_WRIST, 1.0)):
        lift = swing if side < 0 else 1 - swing
        keypoints[:, 0, elbow] += np.stack([side * 0.08 * height * lift, -0.12 * height * lift], -1)
        keypoints[:, 0, wrist] += np.stack([side * 0.10 * height * lift, -0.42 * height * lift], -1)
    for knee, side in ((R_KNEE, -1.0), (L_KNEE, 1.0)):
        keypoints[:, 0, knee, 0] += side * 0.05 * height * (swing if side < 0 else 1 - swing)
    return PoseSequence(keypoints, scores, canvas, Fraction(24), source={"name": "template"})
