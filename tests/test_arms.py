"""Cutting arms of drawn art: the cut follows the outline, and the outline goes with the arm."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from animx.engine import RenderJob
from animx.puppet.anatomy import study
from animx.puppet.arms import cut_arms
from animx.puppet.engine import prepare
from animx.puppet.puppet import Puppet
from tests import puppet_jobs as jobs

FUR, INK = (190, 120, 60), (70, 40, 25)
BEAR = {**jobs.STANDING, 3: (64, 124), 4: (52, 162), 6: (156, 124), 7: (168, 162)}


def bear(shoulder_error: float = 0.0) -> tuple[RenderJob, NDArray[np.bool_]]:
    """A one-coloured figure in outline, its arms over the trunk; and where its right arm is, outline included."""
    rgb, mask = np.full((280, 220, 3), jobs.PAPER, np.uint8), np.zeros((280, 220), np.uint8)

    def shape(points: list[tuple[int, int]], width: int) -> None:
        line = np.array(points, np.int32).reshape(-1, 1, 2)
        for image, ink, thick in ((rgb, INK, width + 6), (rgb, FUR, width), (mask, (1,), width + 6)):
            cv2.polylines(image, [line], False, ink, thick)

    for x in (96, 124):
        shape([(x, 160), (x, 240)], 18)
    shape([(110, 100), (110, 150)], 92)
    shape([(110, 50), (110, 60)], 50)
    before = rgb.copy()
    for chain in ((2, 3, 4), (5, 6, 7)):
        shape([(int(BEAR[j][0]), int(BEAR[j][1])) for j in chain], 18)
    arm = (np.abs(rgb.astype(int) - before).max(-1) > 0) | False
    line = np.array([BEAR[j] for j in (2, 3, 4)], np.int32).reshape(-1, 1, 2)
    right = np.zeros((280, 220), np.uint8)
    cv2.polylines(right, [line], False, (1,), 24)
    assert (arm & (right > 0)).any()
    joints = {**BEAR, 2: (BEAR[2][0] + shoulder_error, BEAR[2][1] + shoulder_error)}
    picture = np.dstack([rgb, np.full((280, 220), 255, np.uint8)])
    job = jobs.job(joints, jobs.clip(BEAR))
    return replace(job, picture=picture, mask=(mask > 0).astype(np.float32)), right > 0


def test_the_cut_follows_the_outline_of_flat_art() -> None:
    for error in (0.0, 6.0):
        job, truth = bear(error)
        assert job.mask is not None
        arms, radius = cut_arms(job.picture[..., :3].copy(), job.mask > 0.5, study(job.mask, job.reference_pose))
        found = arms["right"]
        rows = np.indices(truth.shape)[0] > 112  # above it is the shoulder, which both hold
        assert (found & truth & rows).sum() > 0.93 * (truth & rows).sum()
        assert (found & ~truth).sum() < 0.125 * truth.sum()
        assert 8 < radius["right"] < 15


def test_the_outline_goes_with_the_arm() -> None:
    job, truth = bear()
    assert job.mask is not None
    arms, _ = cut_arms(job.picture[..., :3].copy(), job.mask > 0.5, study(job.mask, job.reference_pose))
    ink = (np.abs(job.picture[..., :3].astype(int) - INK).max(-1) < 30) & truth
    ink[:113] = False
    assert ink.sum() > 200
    assert (arms["right"] & ink).sum() > 0.97 * ink.sum()


def test_a_folded_arm_is_no_balloon() -> None:
    straight = {**jobs.STANDING, 2: (80, 96), 3: (45, 96), 4: (10, 96)}
    folded = {**straight, 4: (78, 90)}
    stage = prepare(jobs.job(straight, jobs.pose([straight, folded])))
    only: Puppet = replace(stage.puppet, sheets=tuple(s for s in stage.puppet.sheets if s.layer.name == "right_arm"))
    frame = np.zeros((280, 220, 4), np.uint8)
    only.draw(stage.motion, 1, frame)
    beyond = (frame[..., 3] > 127) & (np.indices(frame.shape[:2])[1] < stage.motion.joints[1, 3, 0])
    half = stage.puppet.parts.arm_radius["right"]
    # a half disc of the sleeve's own radius would be 1.57
    assert beyond.sum() < 1.35 * half**2
