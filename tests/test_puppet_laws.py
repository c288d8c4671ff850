"""Metamorphic laws on the puppet's frames, with mask and joints given."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray

from animx.canvas import Canvas, Placement
from animx.engine import RenderJob
from animx.pose.skeleton import L_ELBOW, L_WRIST, R_ELBOW, R_WRIST
from animx.puppet import checks
from animx.puppet.anatomy import study
from animx.puppet.engine import PuppetEngine, prepare
from animx.puppet.motion import plan
from animx.retarget.align import align
from tests import puppet_jobs as jobs


def frames(job: RenderJob) -> NDArray[np.uint8]:
    return np.stack(list(PuppetEngine().render(job)))


def off(a: NDArray[np.uint8], b: NDArray[np.uint8], level: int = 16) -> float:
    """Share of pixels that differ by more than `level`, in the worst frame."""
    return float((np.abs(a.astype(int) - b.astype(int)).max(-1) > level).mean((-1, -2)).max())


def flipped(job: RenderJob) -> RenderJob:
    assert job.mask is not None
    assert job.reference_pose is not None
    return replace(
        job,
        picture=np.ascontiguousarray(job.picture[:, ::-1]),
        mask=np.ascontiguousarray(job.mask[:, ::-1]),
        poses=jobs.mirrored(job.poses),
        reference_pose=jobs.mirrored(job.reference_pose),
    )


def test_a_mirrored_job_gives_mirrored_frames() -> None:
    job = jobs.job(hair=True)
    plain, mirror = frames(job), frames(flipped(job))[:, :, ::-1]
    assert off(plain, mirror) < 0.004
    assert off(plain, plain[:, :, ::-1]) > 0.05  # the dance itself is not symmetric


def test_mirrored_joints_are_planned_as_mirrored() -> None:
    job = jobs.job()
    one, two = plan(job), plan(flipped(job))
    from animx.pose.skeleton import mirror_index

    back = two.joints[:, list(mirror_index())[:18]]
    back[..., 0] = job.canvas.width - back[..., 0]
    assert np.allclose(one.joints[:, one.aimed], back[:, one.aimed], atol=1e-6)


@pytest.mark.parametrize("place", [Placement(1, 1, 300, 40), Placement(2.5, 2.5, 0, 0), Placement(0.5, 0.5, 77, 310)])
def test_shifting_or_scaling_the_driver_under_align_changes_nothing(place: Placement) -> None:
    job = jobs.job()
    assert job.reference_pose is not None
    driver = job.poses
    elsewhere = driver.on(Canvas(900, 900), place)
    one = frames(replace(job, poses=align(driver, job.reference_pose)))
    two = frames(replace(job, poses=align(elsewhere, job.reference_pose)))
    assert off(one, two, level=2) < 0.003
    assert off(one[:1], one[5:6]) > 0.02


def test_doubling_the_frame_rate_keeps_every_second_frame() -> None:
    slow = jobs.job(poses=jobs.clip(frames=12, fps=Fraction(12)))
    fast = jobs.job(poses=jobs.clip(frames=24, fps=Fraction(24)))
    one, two = plan(slow), plan(fast)
    gap = np.linalg.norm(one.joints - two.joints[::2], axis=-1)[:, one.aimed]
    assert gap.max() < 0.01 * 200
    # repeating every frame instead of adding new ones leaves only the floor's window and the trunk's median to differ
    held = jobs.pose([jobs.dance(jobs.STANDING, (t // 2) / 12) for t in range(24)], Fraction(24))
    assert off(frames(slow), frames(jobs.job(poses=held))[::2]) < 0.01


def test_a_clip_shows_the_same_frames_whether_rendered_whole_or_repeated() -> None:
    job = jobs.job()
    assert np.array_equal(frames(job), frames(job))


@pytest.mark.parametrize("side", [(R_ELBOW, R_WRIST), (L_ELBOW, L_WRIST)])
def test_an_arm_the_driver_lacks_keeps_its_rest_pose(side: tuple[int, int]) -> None:
    job = jobs.job(poses=jobs.without(jobs.clip(), *side))
    motion = plan(job)
    assert job.mask is not None
    body = study(job.mask, job.reference_pose)
    # seen from the trunk the arm is where the picture has it
    for joint in side:
        rest = body.joints[joint] - body.mid_hip
        moved = motion.joints[:, joint] - motion.root
        c, s = np.cos(-motion.turn), np.sin(-motion.turn)
        back = np.stack([c * moved[:, 0] - s * moved[:, 1], s * moved[:, 0] + c * moved[:, 1]], -1)
        assert np.allclose(back, rest, atol=0.06 * body.torso_length)
    other = [j for j in (R_WRIST, L_WRIST) if j not in side]
    assert np.ptp(motion.joints[:, other], axis=0).max() > 20


def test_an_arm_the_driver_lacks_leans_with_the_body() -> None:
    arms = (R_ELBOW, R_WRIST, L_ELBOW, L_WRIST)
    swinging = jobs.job(poses=jobs.without(jobs.leaning(), *arms))
    assert swinging.reference_pose is not None
    # without elbows in the reference the arms are part of the body and can but lean with it
    fixed = replace(swinging, reference_pose=jobs.without(swinging.reference_pose, *arms))
    one, two = frames(swinging), frames(fixed)
    assert off(one, two, level=40) < 0.006
    assert off(one[:1], one[2:3], level=40) > 0.05


def test_standing_still_gives_identical_frames() -> None:
    shown = frames(jobs.job(poses=jobs.still(frames=4)))
    assert all(np.array_equal(shown[0], frame) for frame in shown[1:])


def test_the_own_pose_gives_the_own_picture() -> None:
    job = jobs.job()
    inner, beyond = checks.rest_difference(job)
    assert inner <= 0.01
    assert beyond == 0


def test_limb_directions_are_the_drivers() -> None:
    job = jobs.job()
    angles = checks.limb_angles(job, prepare(job))
    assert len(angles) > 80
    assert angles.max() < 1e-3


@pytest.mark.parametrize("name", ["wave_hello", "jumping"])
def test_bvh_motion_is_followed_to_a_degree(name: str, shared: object) -> None:
    from pathlib import Path

    from animx.pose.formats import read_poses
    from animx.pose.smooth import smooth

    assert isinstance(shared, Path)
    poses = read_poses(shared / "data" / f"drive_bvh_{name}.pose.npz").person(0)
    job = jobs.job()
    assert job.reference_pose is not None
    assert job.mask is not None
    for source, bar in ((poses, 1.0), (smooth(poses), 3.0)):
        aligned = replace(job, poses=align(source, job.reference_pose))
        # measured against the raw driver: smoothing and alignment are inside the bar
        raw = replace(job, poses=poses)
        stage = prepare(aligned)
        angles = checks.limb_angles(raw, stage)
        assert angles.mean() <= bar / 2
        assert np.percentile(angles, 95) <= bar
