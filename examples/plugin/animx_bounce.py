"""A complete animx plugin: `--engine bounce` moves the picture with the dancer's hips, `--op exaggerate` dances more.

Install: pip install ./examples/plugin      Check: animx plugins
"""

from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from animx.engine import Plan, Progress, RenderJob, no_progress
from animx.errors import UsageError
from animx.pose.sequence import PoseSequence
from animx.pose.skeleton import L_HIP, R_HIP


class BounceEngine:
    """Shifts the reference picture by the way the hips have gone since the first frame."""

    name = "bounce"
    options: frozenset[str] = frozenset()

    def available(self) -> str | None:
        """Nothing is missing anywhere."""
        return None

    def plan(self, job: RenderJob) -> Plan:
        """An estimate for `--dry-run`."""
        return Plan(self.name, job.poses.frames, windows=1, memory_mb=50, seconds=job.poses.frames / 500)

    def render(self, job: RenderJob, on_progress: Progress = no_progress) -> Iterator[NDArray[np.uint8]]:
        """One RGBA frame for each frame of the poses."""
        hips = job.poses.keypoints[:, 0, [L_HIP, R_HIP]].mean(axis=1)  # [T, 2] px
        for t, (x, y) in enumerate(hips - hips[0]):
            shift = np.array([[1, 0, x], [0, 1, y]], np.float64)
            yield np.asarray(
                cv2.warpAffine(job.picture, shift, job.canvas.size, borderMode=cv2.BORDER_REPLICATE), np.uint8
            )
            on_progress(t + 1, job.poses.frames)


def exaggerate(poses: PoseSequence, amount: float = 1.5) -> PoseSequence:
    """Move every joint `amount` times as far from its average place; missing joints stay missing."""
    if amount <= 0:
        raise UsageError(f"exaggerate: amount {amount} is not positive")
    seen = poses.scores[..., None] > 0
    middle = np.where(seen, poses.keypoints, 0).sum(0) / np.maximum(seen.sum(0), 1)
    return poses.with_poses(middle + amount * (poses.keypoints - middle), op="exaggerate", amount=amount)
