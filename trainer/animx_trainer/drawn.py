"""Clips of the drawn characters (`animx_trainer.synthetic`), kept in memory: a source without any file.

Few clips, slow to draw (a tenth of a second a frame), each drawn once: for trying things out and for tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray

from animx.canvas import Canvas
from animx.config import Range, build
from animx.diffusion.preprocess import CLIP_SIZE, keypoint_tensor, picture_tensor, pose_picture
from animx.errors import UsageError, nearest
from animx.pose.draw import draw_pose
from animx.pose.sequence import PoseSequence
from animx_trainer import synthetic
from animx_trainer.config import DataConfig
from animx_trainer.sample import Sample, generator

FPS = Fraction(8)


@dataclass(frozen=True)
class DrawnOptions:
    """Options of the source `drawn`."""

    clips: Annotated[int, Range(1, 10_000)] = 4
    """How many clips; each has its own character, dance and colours."""
    length: Annotated[int, Range(0, 10_000)] = 0
    """Frames of a clip, of which samples are cut; 0 = as many as a sample has, so that every sample is the same."""
    kinds: tuple[str, ...] = synthetic.KINDS
    """Kinds of characters, taken in turn."""

    def __post_init__(self) -> None:
        for kind in self.kinds:
            if kind not in synthetic.KINDS:
                raise UsageError(f"kinds: unknown character '{kind}'.{nearest(kind, synthetic.KINDS)}")
        if not self.kinds:
            raise UsageError(f"kinds: name at least one of {', '.join(synthetic.KINDS)}")


@dataclass(frozen=True)
class _Clip:
    frames: list[NDArray[np.uint8]]
    poses: PoseSequence


class DrawnSource:
    """A `ClipSource` of drawn characters.  Clip i is the same for every call with the same seed."""

    def __init__(self, data: DataConfig, options: DrawnOptions, seed: int) -> None:
        self.data, self.options, self.seed = data, options, seed
        self.length = options.length or data.frames
        if self.length < data.frames:
            raise UsageError(f"data.options: length {self.length} is shorter than the {data.frames} frames of a sample")
        self._clips: dict[int, _Clip] = {}

    def __len__(self) -> int:
        return self.options.clips

    def sample(self, index: int, seed: int) -> Sample:
        """A segment at a random place, one random frame of the clip as the reference."""
        clip = self._clip(index)
        rng = generator(seed, 0, 0, "segment")
        start = int(rng.integers(self.length - self.data.frames + 1))
        reference = int(rng.integers(self.length))
        slots = [reference, *range(start, start + self.data.frames)]
        canvas = Canvas(*self.data.size)
        pictures = torch.stack([picture_tensor(clip.frames[i], canvas) for i in slots])
        drawn = torch.stack([picture_tensor(pose_picture(draw_pose(clip.poses, i)), canvas) for i in slots])
        small = Canvas(CLIP_SIZE, CLIP_SIZE)
        seen = torch.stack([picture_tensor(clip.frames[i], small) for i in slots])
        signed = (pictures * 2 - 1).numpy()
        return Sample(
            -1, signed[0], drawn.numpy(), keypoint_tensor(clip.poses)[slots].numpy(), seen.numpy(), signed[1:],
            origin=f"drawn clip {index}",
        )  # fmt: skip

    def _clip(self, index: int) -> _Clip:
        if index not in self._clips:
            kind = self.options.kinds[index % len(self.options.kinds)]
            rng = generator(self.seed, 0, index, "drawn")
            who = synthetic.character(kind, int(rng.integers(3, 2**31)))
            moving = synthetic.random_dance(rng)
            canvas = Canvas(*self.data.size)
            frames = [rgb for rgb, _ in synthetic.draw_clip(who, moving, canvas, self.length, fps=FPS, seed=index)]
            self._clips[index] = _Clip(frames, synthetic.true_poses(who, moving, canvas, self.length, fps=FPS))
        return self._clips[index]


def open_drawn(data: DataConfig, seed: int) -> DrawnSource:
    """The source `drawn` of a config."""
    options: dict[str, Any] = dict(data.options)
    return DrawnSource(data, build(DrawnOptions, options, "data.options", error=UsageError), seed)
