"""How fast the puppet draws, as a ratio to a fixed amount of OpenCV work timed in the same run.

The yardstick is one `cv2.remap` of a 768x512 frame (float32 x 4 channels, float maps, bilinear, one thread).  Both are
timed in turns, so a busy machine slows both.  No speed is given unless the joints are drawn where they are aimed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from animx.engine import RenderJob

BAR = 3.4
"""Largest allowed ratio of one drawn frame to the yardstick."""


def yardstick() -> Callable[[], object]:
    """The fixed work: a call remaps one 768x512 frame of four float32 channels."""
    source = np.random.default_rng(0).random((768, 512, 4), np.float32)
    rows, columns = np.indices((768, 512), np.float32)
    map_x, map_y = columns + 3.3 * np.sin(rows / 40), rows + 2.7 * np.cos(columns / 50)
    map_x, map_y = map_x.astype(np.float32), map_y.astype(np.float32)
    return lambda: cv2.remap(source, map_x, map_y, cv2.INTER_LINEAR)


def bench(job: RenderJob | None = None, rounds: int = 60) -> dict[str, Any]:
    """Time the stages of `job` (default: a figure drawn here, 768 px high) and compare with the yardstick.

    Returns `correct` (marker test), `marker_error` [H], `prepare_s`, milliseconds of `plan`, `deform`, `draw`,
    `background` and `frame`, `remap_ms`, `ratio` (frame over remap, medians of `rounds`), `bar` and `fps`; without
    the timings when not correct.
    """
    from animx.puppet import checks, raster
    from animx.puppet.engine import prepare
    from animx.puppet.motion import plan

    job = job or example()
    warm = prepare(job)
    warm.frame(0)
    started = time.perf_counter()
    stage = prepare(job)
    prepared = time.perf_counter() - started
    found = checks.markers(stage, range(0, job.poses.frames, max(1, job.poses.frames // 6)))
    result: dict[str, Any] = {
        "canvas": str(job.canvas),
        "triangles": sum(len(s.mesh.triangles) for s in stage.puppet.sheets),
        "correct": found.count == 0 or (found.mean <= 0.003 and found.p95 <= 0.01),
        "marker_error": found.mean if found.count else None,
        "bar": BAR,
    }
    if not result["correct"]:
        return result
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        remap = yardstick()
        count = job.poses.frames
        turn = iter(range(1_000_000_000))
        frame_s, remap_s = _in_turns(lambda: stage.frame(next(turn) % count), remap, rounds)
        positions = stage.puppet.positions(stage.motion, count // 2)
        canvas = stage.background.copy()
        dirty = np.zeros(4, np.int64)

        def draw() -> None:
            for sheet, moved in zip(stage.puppet.sheets, positions, strict=True):
                raster.draw(
                    canvas, sheet.packed, *sheet.layer.origin, sheet.mesh.vertices, moved, sheet.mesh.triangles,
                    sheet.mesh.opaque, dirty,
                )  # fmt: skip

        stages = {
            "plan_ms": _median(lambda: plan(job, stage.puppet.body), 5) / count,
            "deform_ms": _median(lambda: stage.puppet.positions(stage.motion, count // 2), rounds),
            "draw_ms": _median(draw, rounds),
            "background_ms": _median(lambda: stage.background.copy(), rounds),
        }
    finally:
        cv2.setNumThreads(threads)
    result |= {"prepare_s": round(prepared, 3)}
    result |= {name: round(seconds * 1e3, 3) for name, seconds in stages.items()}
    result |= {"frame_ms": round(frame_s * 1e3, 3), "remap_ms": round(remap_s * 1e3, 3)}
    result |= {"ratio": round(frame_s / remap_s, 3), "fps": round(1 / frame_s, 1)}
    return result


def _time(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _median(work: Callable[[], object], rounds: int) -> float:
    work()
    return float(np.median([_time(work) for _ in range(rounds)]))


def _in_turns(one: Callable[[], object], two: Callable[[], object], rounds: int) -> tuple[float, float]:
    one(), two()
    pairs = [(_time(one), _time(two)) for _ in range(rounds)]
    return float(np.median([a for a, _ in pairs])), float(np.median([b for _, b in pairs]))


def example(height: int = 768, frames: int = 24) -> RenderJob:
    """A plain figure of `height` px drawn in code with known joints, waving both arms and stepping."""
    from fractions import Fraction

    from animx.canvas import Canvas
    from animx.engine import Background
    from animx.pose.sequence import PoseSequence
    from animx.pose.skeleton import JOINTS, TEMPLATE

    canvas = Canvas(round(height * 0.65), height)
    rest = np.zeros((18, 2))
    for joint, (x, y) in TEMPLATE.items():
        rest[joint] = canvas.width / 2 + x * 0.85 * height * 1.4, height * 0.5 + y * 0.85 * height
    picture, mask = _figure(canvas.size, rest)
    points = np.zeros((frames, 1, JOINTS, 2))
    for t in range(frames):
        points[t, 0, :18] = _posed(rest, 2 * np.pi * t / frames)
    scores = np.zeros((frames, 1, JOINTS))
    scores[..., :18] = 1
    own = np.zeros((1, 1, JOINTS, 2))
    own[0, 0, :18] = rest
    poses = PoseSequence(points.astype(np.float32), scores.astype(np.float32), canvas, Fraction(24))
    reference = PoseSequence(own.astype(np.float32), scores[:1].astype(np.float32), canvas)
    return RenderJob(picture, canvas, poses, reference, None, mask, Background("colour", (200, 210, 220)))


def _posed(rest: NDArray[np.float64], phase: float) -> NDArray[np.float64]:
    from animx.puppet.anatomy import ARM, LEG

    out = rest.copy()
    for chain, first, second in (
        (ARM["right"], 0.9 + 0.7 * np.sin(phase), 0.5 * np.cos(phase)),
        (ARM["left"], -1.1 + 0.6 * np.cos(phase), -0.7 * np.sin(phase)),
        (LEG["right"], 0.2 * np.sin(phase), 0.1),
        (LEG["left"], -0.15 * np.sin(phase), -0.1),
    ):
        for i, angle in ((0, first), (1, first + second)):
            bone = rest[chain[i + 1]] - rest[chain[i]]
            c, s = np.cos(angle), np.sin(angle)
            out[chain[i + 1]] = out[chain[i]] + (c * bone[0] - s * bone[1], s * bone[0] + c * bone[1])
    return out


def _figure(size: tuple[int, int], joints: NDArray[np.float64]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """RGBA picture and mask of a plain figure with these joints."""
    from animx.puppet.anatomy import ARM, LEG

    width, height = size
    picture = np.full((height, width, 4), 255, np.uint8)
    picture[..., :3] = (200, 210, 220)
    mask = np.zeros((height, width), np.uint8)
    thick = max(2, round(0.05 * height))

    def paint(draw: Callable[[NDArray[np.uint8], tuple[int, ...]], object], colour: tuple[int, int, int]) -> None:
        draw(picture, (*colour, 255))
        draw(mask, (255,))

    def points(*indices: int) -> NDArray[np.int32]:
        return np.asarray(np.rint(joints[list(indices)]), np.int32)

    for chain in LEG.values():
        paint(lambda image, ink, c=chain: cv2.polylines(image, [points(*c)], False, ink, thick), (70, 70, 90))  # type: ignore[misc]
    paint(lambda image, ink: cv2.fillPoly(image, [points(2, 5, 11, 8)], ink), (190, 70, 60))
    paint(lambda image, ink: cv2.polylines(image, [points(2, 5, 11, 8)], True, ink, thick), (190, 70, 60))
    nose = (round(joints[0, 0]), round(joints[0, 1]))
    paint(lambda image, ink: cv2.circle(image, nose, round(0.09 * height), ink, -1), (235, 200, 170))
    for chain in ARM.values():
        paint(lambda image, ink, c=chain: cv2.polylines(image, [points(*c)], False, ink, thick), (150, 60, 50))  # type: ignore[misc]
    return picture, (mask > 0).astype(np.float32)
