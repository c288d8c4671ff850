"""What users type for time, rate, size and colour; and poses cut and resampled by time."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from animx.canvas import Canvas
from animx.errors import InputError, NoFigureError, UsageError
from animx.pose.select import select_person, select_time, single
from animx.pose.sequence import PoseSequence
from animx.pose.skeleton import JOINTS
from animx.times import parse_colour, parse_fps, parse_size, parse_time, resolve_size, time_range


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("1.5", 1.5), (".25", 0.25), ("90", 90), ("1:30", 90), ("01:02:03.5", 3723.5), ("1e2", 100), (" 2 ", 2)],
)
def test_times_in_seconds_and_clock(text: str, seconds: float) -> None:
    assert parse_time(text).at(Fraction(24)) == seconds


def test_times_in_frames_follow_the_rate_exactly() -> None:
    assert parse_time("120f").at(Fraction(30000, 1001)) == float(Fraction(120 * 1001, 30000))


@given(st.integers(0, 99), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999))
def test_clock_times_and_seconds_agree(hours: int, minutes: int, seconds: int, thousandths: int) -> None:
    clock = parse_time(f"{hours}:{minutes:02d}:{seconds:02d}.{thousandths:03d}").at(Fraction(1))
    assert clock == pytest.approx(hours * 3600 + minutes * 60 + seconds + thousandths / 1000)


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("25", Fraction(25)),
        ("30000/1001", Fraction(30000, 1001)),
        ("29.97", Fraction(30000, 1001)),
        ("23.976", Fraction(24000, 1001)),
        ("59.94", Fraction(60000, 1001)),
        ("12.5", Fraction(25, 2)),
        ("30", Fraction(30)),
    ],
)
def test_rates_are_exact(text: str, rate: Fraction) -> None:
    assert parse_fps(text) == rate


def test_sizes_keep_the_aspect_and_are_even() -> None:
    picture = Canvas(701, 1024)
    assert resolve_size(parse_size("768x1024"), picture) == Canvas(768, 1024)
    assert resolve_size(parse_size("351x"), picture) == Canvas(350, 512)
    assert resolve_size(parse_size("-1x512"), picture) == resolve_size(parse_size("x512"), picture) == Canvas(350, 512)


def test_colours() -> None:
    assert parse_colour("#20a0ff") == (32, 160, 255)
    assert parse_colour("#0f0") == (0, 255, 0)
    with pytest.raises(UsageError, match="#rrggbb"):
        parse_colour("#12345")


def test_ranges() -> None:
    rate = Fraction(25)
    assert time_range(None, None, None, rate) == (None, None)
    assert time_range(parse_time("1"), None, parse_time("50f"), rate) == (1.0, 3.0)
    for end, duration in ((parse_time("1"), None), (None, parse_time("0"))):
        with pytest.raises(UsageError):
            time_range(parse_time("2"), end, duration, rate)


# ---- poses ----


def ramp(frames: int = 48, fps: int = 24) -> PoseSequence:
    """Every joint moves right at 10 px a second."""
    keypoints = np.zeros((frames, 1, JOINTS, 2), np.float32)
    keypoints[..., 0] = (np.arange(frames) * 10 / fps)[:, None, None] + 5
    return PoseSequence(keypoints, np.ones((frames, 1, JOINTS), np.float32), Canvas(100, 100), Fraction(fps))


def test_the_whole_range_at_the_own_rate_changes_nothing() -> None:
    poses = ramp()
    assert (select_time(poses).keypoints == poses.keypoints).all()


def test_a_cut_begins_at_time_zero_and_has_the_right_frames() -> None:
    cut = select_time(ramp(), 0.5, 1.5)
    assert cut.frames == 24
    assert cut.times[0] == 0
    assert cut.keypoints[0, 0, 0, 0] == pytest.approx(5 + 10 * 0.5)


@pytest.mark.parametrize("fps", [Fraction(12), Fraction(30), Fraction(30000, 1001), Fraction(100)])
def test_resampling_keeps_the_motion_over_time(fps: Fraction) -> None:
    made = select_time(ramp(), fps=fps)
    assert made.fps == fps
    assert made.frames == pytest.approx(2 * fps, abs=1)
    inside = made.times < 47 / 24
    assert np.allclose(made.keypoints[inside, 0, 0, 0], 5 + 10 * made.times[inside], atol=1e-3)


def test_an_uneven_clip_becomes_even() -> None:
    poses = ramp(20, 10)
    times = poses.times.copy()
    times[10:] += 0.5  # a pause in the middle
    uneven = select_time(replace(poses, times=times))
    assert np.allclose(np.diff(uneven.times), 0.1)
    assert uneven.frames == 25


def test_a_joint_seen_in_one_neighbour_only_is_not_mixed_with_nothing() -> None:
    poses = ramp(3, 10)
    scores = poses.scores.copy()
    scores[1, 0, 4] = 0
    made = select_time(poses.with_poses(poses.keypoints, scores), fps=Fraction(40))
    seen = made.scores[:, 0, 4] > 0
    assert (made.keypoints[seen, 0, 4, 0] >= 5).all()  # never pulled towards the 0 of a missing joint


def test_a_range_behind_the_end_is_refused() -> None:
    with pytest.raises(UsageError, match="--start 9 s"):
        select_time(ramp(), 9.0)


def two_people() -> PoseSequence:
    keypoints = np.zeros((4, 2, JOINTS, 2), np.float32)
    scores = np.zeros((4, 2, JOINTS), np.float32)
    keypoints[:, 0, :18] = np.linspace(10, 20, 18)[:, None]
    keypoints[:, 1, :18] = np.linspace(10, 90, 18)[:, None]
    scores[:, 0, :18] = 1
    scores[1:, 1, :18] = 1
    return PoseSequence(keypoints, scores, Canvas(100, 100), person_ids=(3, 7))


def test_person_largest_first_and_by_track() -> None:
    poses = two_people()
    assert select_person(poses, "largest").person_ids == (7,)
    assert select_person(poses, "first").person_ids == (3,)
    assert select_person(poses, "track:7").person_ids == (7,)
    with pytest.raises(UsageError, match="track:3, track:7"):
        select_person(poses, "track:1")
    with pytest.raises(UsageError, match="largest, first or track:N"):
        select_person(poses, "tallest")


def test_poses_without_any_visible_joint_are_no_figure() -> None:
    nothing = np.zeros((3, 1, JOINTS, 2), np.float32)
    with pytest.raises(NoFigureError):
        select_person(PoseSequence(nothing, nothing[..., 0], Canvas(10, 10)))


def test_a_clip_is_no_reference_pose() -> None:
    with pytest.raises(InputError, match="4 frames"):
        single(two_people(), "ref.pose.json")
