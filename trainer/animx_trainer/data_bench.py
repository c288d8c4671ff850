"""What training data cost (`animx data bench`): augmenting, drawing poses, whole samples; is a consumer kept fed?

CPU times first: other work on the machine delays but hardly makes them more.  Speeds are shown after two checks: poses
drawn many at once are the bytes of poses drawn one by one, and workers make the bytes that this process makes.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from animx.bench import CheckError, Measured
from animx.canvas import Canvas
from animx.diffusion.preprocess import pose_picture
from animx.pose.draw import draw_pose
from animx.pose.npz import save
from animx.pose.paint import draw_poses
from animx.pose.sequence import PoseSequence
from animx.pose.skeleton import JOINTS, L_ELBOW, L_WRIST, LEFT_HAND, R_ELBOW, R_WRIST, RIGHT_HAND
from animx_trainer.data import ClipData, clip_source, read_clip_poses
from animx_trainer.loader import batches
from animx_trainer.sample import generator
from animx_trainer.shards import Contents, contents, write_dataset, write_tar
from animx_trainer.stage import film, stage
from animx_trainer.synth import recipe

Floats = NDArray[np.float32]
AUGMENTED = 32
"""Frames of the clips whose augmentation is timed alone."""
DRAWN = 8
"""Augmentations that are drawn in a round; none is drawn twice."""
ROUNDS = 5
LATE = 0.005
"""A step that is waited for longer than this is late [s]."""


@dataclass(frozen=True)
class Feed:
    """What is asked of the loader."""

    batch: int = 4
    """Samples a step."""
    workers: int = 2
    """Processes that prepare steps."""
    pause: float = 0.05
    """What the consumer takes for a step [s]."""
    steps: int = 100
    """Steps that are timed."""


def measure(source: ClipData, feed: Feed, on_progress: Callable[[str, int, int], None] = lambda *_: None) -> Measured:
    """Time the parts of a sample of `source`, and the loader that `feed` describes.

    Speeds: clips a second and core, CPU ms, samples a second.  Ratios: `waiting`, the share of the consumer's time
    that it waits, and `late`, the share of its steps that it waits for longer than 5 ms; both 0 when it is always fed.
    Errors: those of the data; `CheckError` when a check fails.
    """
    poses = read_clip_poses(source.dataset.clip(0), source.canvas)
    _check_drawing(poses)
    _check_workers(source, feed)
    on_progress("parts", 0, 3)
    augmented, seconds = _augmentation(source, poses)
    speeds: dict[str, float] = {"augmentation_clips_per_s_core": 1 / seconds}
    canvas, each = source.canvas, len(augmented[0][0])
    many = _cpu(lambda k: draw_poses(*augmented[k], canvas), DRAWN) / each
    fresh = iter([PoseSequence(points[:, None], scores[:, None], canvas) for points, scores in augmented])
    single = _cpu(lambda _: draw_pose(next(fresh), 0), DRAWN)
    speeds["pose_drawing_ms"] = 1000 * many
    drawn = draw_poses(*augmented[0], canvas)
    speeds["pose_jpeg_ms"] = 1000 * _cpu(lambda t: pose_picture(drawn[t % each]), each)
    on_progress("parts", 1, 3)
    speeds["sample_cpu_ms"] = 1000 * _cpu(lambda k: source.sample(k % len(source), k), 24)
    on_progress("parts", 2, 3)
    waits, own = _fed(source, feed, feed.pause, on_progress)
    free, _ = _fed(source, feed, 0.0, on_progress)
    speeds["loader_samples_per_s"] = feed.batch * len(free) / max(float(free.sum()), 1e-9)
    speeds["first_process_cpu_ms_per_step"] = 1000 * own
    speeds["wait_median_ms"] = 1000 * float(np.median(waits))
    speeds["wait_p95_ms"] = 1000 * float(np.percentile(waits, 95))
    total = float(waits.sum()) + feed.pause * len(waits)
    ratios = {
        "waiting": float(waits.sum()) / total,
        "late": float((waits > LATE).mean()),
        "pose_drawing_one_by_one_over_many": single / many,
    }
    checks = {"poses_drawn_as_one_by_one": poses.frames, "steps_of_workers_as_here": 2}
    return Measured("data", ratios, speeds, checks)


def _cpu(work: Callable[[int], Any], count: int) -> float:
    """CPU time of one call [s]: the least of `ROUNDS` rounds of `count` calls, after one round to warm up."""
    times = []
    for number in range(ROUNDS + 1):
        begun = time.process_time()
        for k in range(count):
            work(number * count + k)
        times.append((time.process_time() - begun) / count)
    return min(times[1:])


def _augmentation(source: ClipData, poses: PoseSequence) -> tuple[list[tuple[Floats, Floats]], float]:
    """As many augmentations of a clip as are drawn afterwards, and the CPU time of one [s]."""
    rows = np.arange(AUGMENTED) % poses.frames
    points, scores = poses.keypoints[rows, 0], poses.scores[rows, 0]
    times = np.arange(AUGMENTED) / float(poses.fps)
    rng = generator(0, 0, 0, "bench")

    def one(_: int) -> tuple[Floats, Floats]:
        return source.epi.apply(points, scores, times, source.epi.draw(rng))

    seconds = _cpu(one, 200)
    return [one(k) for k in range((ROUNDS + 1) * DRAWN)], seconds


def _check_drawing(poses: PoseSequence) -> None:
    many = draw_poses(poses.keypoints[:, 0], poses.scores[:, 0], poses.canvas)
    if any(not np.array_equal(many[t], draw_pose(poses, t)) for t in range(poses.frames)):
        raise CheckError("poses drawn many at once differ from poses drawn one by one")


def _check_workers(source: ClipData, feed: Feed) -> None:
    told = []
    for workers in (0, max(1, feed.workers)):
        made: Any = batches(source, seed=0, batch=feed.batch, workers=workers)
        told.append(
            [sample.pose_images.tobytes() + sample.reference.tobytes() for _ in (0, 1) for sample in next(made)]
        )
        made.close()
    if told[0] != told[1]:
        raise CheckError("workers make other samples than this process")


def _fed(
    source: ClipData, feed: Feed, pause: float, on_progress: Callable[[str, int, int], None]
) -> tuple[NDArray[np.float64], float]:
    """What a consumer of `pause` seconds a step waits for each step [s], and this process's CPU time a step [s]."""
    made: Any = batches(source, seed=0, batch=feed.batch, workers=feed.workers)
    for _ in range(2 + 4 * feed.workers):  # the workers have begun, and every block of memory was used once
        next(made)
    time.sleep(pause)
    waits, own = np.zeros(feed.steps), 0.0
    for step in range(feed.steps):
        begun, cpu = time.perf_counter(), time.process_time()
        samples = next(made)
        waits[step], own = time.perf_counter() - begun, own + time.process_time() - cpu
        time.sleep(pause)
        del samples
        on_progress("steps", step + 1, feed.steps)
    made.close()
    return waits, own / feed.steps


# ---- clips to measure with -----------------------------------------------------------------------------------------


def make_clips(folder: Path, canvas: Canvas, frames: int, clips: int = 6) -> Path:
    """A prepared folder of drawn people in JPEG frames, with whole hands: what `animx data prepare` makes of videos."""
    folder.mkdir(parents=True, exist_ok=True)
    times = np.arange(frames) / 25
    made = []
    for number in range(clips):
        who = recipe(0, number)
        staged = stage(who.character, who.dance, who.scene, canvas, times, ("person",))
        made.append(_contents(number, with_hands(staged.poses), film([staged])[0].rgb))
    write_tar(folder / "clips-00000.tar", made)
    about = {"format": "shards", "canvas": list(canvas.size), "clips": clips, "shards": ["clips-00000.tar"]}
    write_dataset(folder, {**about, "frames": clips * frames, "frames_of_clips": [frames] * clips})
    return folder


def _contents(number: int, poses: PoseSequence, frames: NDArray[np.uint8]) -> Contents:
    sink = io.BytesIO()
    save(poses, sink)
    quality = [cv2.IMWRITE_JPEG_QUALITY, 95]
    jpegs = [cv2.imencode(".jpg", np.ascontiguousarray(one[..., ::-1]), quality)[1].tobytes() for one in frames]
    return contents(f"bench-{number:05d}", {"source": {"name": "drawn"}}, sink.getvalue(), jpegs)


def with_hands(poses: PoseSequence) -> PoseSequence:
    """The poses with open hands, 0.4 forearms long, where wrists and elbows are seen."""
    points, scores = poses.keypoints.copy(), poses.scores.copy()
    for elbow, wrist, hand in ((L_ELBOW, L_WRIST, LEFT_HAND), (R_ELBOW, R_WRIST, RIGHT_HAND)):
        seen = (scores[:, :, elbow] > 0) & (scores[:, :, wrist] > 0)
        along = 0.4 * (points[:, :, wrist] - points[:, :, elbow])
        across = np.stack([-along[..., 1], along[..., 0]], -1)
        for k, joint in enumerate(range(hand.start, hand.stop)):
            finger, part = divmod(max(k - 1, 0), 4)
            far = 0.0 if k == 0 else (part + 1) / 4
            points[:, :, joint] = points[:, :, wrist] + far * (along + 0.25 * (finger - 2) * across)
            scores[:, :, joint] = np.where(seen, np.float32(0.9), np.float32(0))
    assert points.shape[2] == JOINTS
    return PoseSequence(points, scores, poses.canvas, poses.fps, poses.times)


def bench(
    folder: str | None,
    scratch: Path,
    feed: Feed,
    size: tuple[int, int] = (128, 128),
    frames: int = 16,
    on_progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Measured:
    """`measure` on prepared clips in `folder`, or on clips drawn into `scratch` when there is none."""
    data = folder or make_clips(scratch, Canvas(*size), max(40, frames))
    return measure(clip_source(data, frames, size, {"clip_size": min(224, *size)}), feed, on_progress)
