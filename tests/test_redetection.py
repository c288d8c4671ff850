"""A pose detector that looks at the puppet's frames sees the driver's arms, and far better than in the still picture.

A detector calls a still picture right now and then by chance, so each figure is set against the picture unanimated.
The figure is drawn on a plain ground: what the detector makes of a busy one is not the puppet's doing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from animx.engine import Background
from animx.pose.backend import PoseBackend
from animx.pose.mediapipe import MediapipeBackend
from animx.puppet.anatomy import ARM
from animx.puppet.engine import prepare
from tests.test_puppet import shared_job

GROUND = Background("colour", (160, 160, 160))
SCALES = (1.33, 1.0, 0.75)
FRAMES = 12

Points = NDArray[np.float64]


def detect(backend: PoseBackend, frame: NDArray[np.uint8]) -> Points | None:
    """The first pose found on the frame, over a few sizes."""
    for scale in SCALES:
        found = backend.detect(cv2.resize(frame, None, fx=scale, fy=scale).astype(np.uint8), still=True)
        if found.persons:
            return np.asarray(found.keypoints[0], np.float64) / scale
    return None


def near(points: Points, goal: Points, reach: float) -> float:
    """Share of elbows and wrists within `reach` px of `goal`."""
    joints = [joint for chain in ARM.values() for joint in chain[1:]]
    return float((np.linalg.norm(points[joints] - goal[joints], axis=1) <= reach).mean())


def arm_angles(points: Points, goal: Points) -> list[float]:
    """Angles between the upper arms and forearms of both [degrees]."""
    found = []
    for a, b in (bone for chain in ARM.values() for bone in pairwise(chain)):
        (x, y), (u, v) = points[b] - points[a], goal[b] - goal[a]
        found.append(float(abs(np.degrees(np.arctan2(x * v - y * u, x * u + y * v)))))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("picture", "clip"), [("boar", "pink"), ("woman", "room")])
def test_the_arms_are_found_where_they_were_moved(
    picture: str, clip: str, shared: Path, record_property: Callable[[str, object], None]
) -> None:
    if (missing := MediapipeBackend.available()) is not None:
        pytest.skip(missing)
    backend = MediapipeBackend()
    job = replace(shared_job(shared, picture, clip), background=GROUND)
    stage = prepare(job)
    assert job.reference_pose is not None
    still = np.asarray(job.reference_pose.keypoints[0, 0], np.float64)  # what a detector at its best finds unanimated
    reach = 0.05 * stage.puppet.body.height
    every = np.linspace(0, job.poses.frames - 1, FRAMES).astype(int)
    shares: dict[str, list[float]] = {"moved": [], "still": []}
    angles: dict[str, list[float]] = {"moved": [], "still": []}
    for t in every:
        seen = detect(backend, np.ascontiguousarray(stage.frame(int(t))[..., :3]))
        if seen is None:
            continue
        for name, points in (("moved", seen), ("still", still)):
            shares[name].append(near(points, stage.motion.joints[t], reach))
            angles[name].extend(arm_angles(points, stage.motion.joints[t]))
    found = len(shares["moved"]) / len(every)
    share, by_chance = np.mean(shares["moved"]), np.mean(shares["still"])
    angle, without = np.median(angles["moved"]), np.median(angles["still"])
    said = f"found {found:.0%}, near {share:.2f} (still {by_chance:.2f}), off {angle:.1f} (still {without:.1f}) degrees"
    record_property("redetection", said)
    print(f"{picture} x {clip}: {said}")
    assert found >= 0.8, said
    assert share >= 2 * by_chance, said
    assert angle <= 0.5 * without, said
