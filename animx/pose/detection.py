"""The pose-backend contract: one protocol, and what a detection is.

In: RGB frames [H, W, 3].  Out: `Detection`, keypoints of the `openpose-134` layout for P persons, most prominent first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from animx.pose.skeleton import JOINTS

MIN_JOINT_SCORE = 0.3
"""From this score on a joint counts as seen."""

MIN_SEEN_JOINTS = 5
"""A person with fewer seen body joints is no usable detection."""


@dataclass(frozen=True)
class Detection:
    """The persons found in one frame, most prominent first; P may be 0."""

    keypoints: NDArray[np.float32]  # [P, 134, 2] px of the frame; may lie outside it
    scores: NDArray[np.float32]  # [P, 134] in 0..1, 0 = missing
    depth: NDArray[np.float32] | None = None  # [P, 134] px towards the viewer, relative to mid-hip

    def __post_init__(self) -> None:
        persons = len(self.keypoints)
        if self.keypoints.shape != (persons, JOINTS, 2) or self.scores.shape != (persons, JOINTS):
            raise ValueError(f"a detection of shapes {self.keypoints.shape} and {self.scores.shape}")

    @property
    def persons(self) -> int:
        """P, the number of persons found."""
        return len(self.keypoints)


def nobody() -> Detection:
    """The detection of an empty frame."""
    return Detection(np.zeros((0, JOINTS, 2), np.float32), np.zeros((0, JOINTS), np.float32))


@runtime_checkable
class PoseBackend(Protocol):
    """The contract of `animx.pose_backends` plugins.  One object serves one clip at a time."""

    name: str
    """The plugin's name."""
    version: str
    """What does the work, for the record in the pose file: library and version, or the model files' names."""
    max_persons: int
    """The most persons one call of `detect` returns."""

    @classmethod
    def available(cls) -> str | None:
        """None when it can run here without a download, else one line: what is missing and the mend."""

    def detect(self, frame: NDArray[np.uint8], *, still: bool = False) -> Detection:
        """Find the persons of an RGB frame [H, W, 3].

        Calls without `still` are consecutive frames of one clip (the backend may track); `still` looks at the frame
        alone and leaves the tracking untouched.
        """

    def reset(self) -> None:
        """Forget the clip: the next frame has nothing to do with the last one."""

    def close(self) -> None:
        """Free what the backend holds; twice is harmless."""
