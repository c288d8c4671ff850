"""Shared by the tests of the full model: a tiny release, tiny inputs, and the command line run on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from hall import Ran, animx

from animx.canvas import Canvas
from animx.image import write_picture
from animx.pose.formats import write_poses
from animx.pose.sequence import PoseSequence
from animx.video import open_frames

FRAMES = 9
"""Frames of the dance: two windows, or two segments of one."""
SMALL = ("--steps", 2, "--size", "64x96", "--window", 6, "--overlap", 2)


class Stage:
    """The tiny release and inputs of one session: a figure, a dance as a clip and as poses."""

    def __init__(self, folder: Path, release: Path, clip: Path, poses: PoseSequence) -> None:
        from animx_trainer import synthetic

        self.release, self.clip, self.poses = release, clip, poses.cut(0, FRAMES)
        canvas = Canvas(128, 192)
        who = synthetic.character("human")
        rgb, mask, _ = synthetic.draw_character(who, synthetic.rest_pose(who, canvas), canvas, background="plain")
        alpha = (np.clip(np.asarray(mask, np.float32), 0, 1) * 255).astype(np.uint8)
        self.figure = folder / "figure.png"
        write_picture(self.figure, np.dstack([rgb, alpha]))
        self.dance = folder / "dance.pose.json"
        write_poses(self.poses, self.dance)

    def arguments(self, out: Path | str, *more: object, drive: object = None, video: bool = True) -> list[str]:
        """`animx` arguments of a tiny render of the dance without any pose detector."""
        given = ["render", self.figure, drive or self.dance, "-o", out, "--engine", "animate-x", "--model",
                 self.release, "--device", "cpu", "--ref-pose", "fit", *SMALL]  # fmt: skip
        given += ["--driving-video", self.clip] if video else []
        return [str(one) for one in (*given, *more)]

    def render(self, out: Path | str, *more: object, **how: Any) -> Ran:
        """Run it in this process."""
        return animx(*self.arguments(out, *more, **how))


def good(ran: Ran) -> Ran:
    """A command that ended well."""
    assert ran.code == 0, ran.err
    return ran


def pictures(path: Path | str) -> np.ndarray:
    """All frames of a video, RGB [N, H, W, 3]."""
    return np.stack([frame.pixels for frame in open_frames(Path(path))])


def side_car(path: Path | str) -> dict[str, Any]:
    """The side-car of an output."""
    found = json.loads(Path(f"{path}.json").read_text())
    assert isinstance(found, dict)
    return found
