"""Measurements behind `animx bench`: ratios first, and no speed unless its correctness check passed.

Times of a shared machine lie; so each figure is set against another one that was taken in the same run.
"""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

import animx
from animx.canvas import Canvas
from animx.errors import AnimxError
from animx.provenance import version_of

T = TypeVar("T")

Image = NDArray[np.uint8]

MIN_PSNR = 34.0
"""What a written and read clip must keep at crf 18 [dB]."""


class CheckError(AnimxError):
    """A correctness check of a measurement failed, so no speed is shown."""


@dataclass(frozen=True)
class Measured:
    """The outcome of one measurement."""

    bench: str
    ratios: Mapping[str, float]
    """Figures set against one another, the ones to compare between machines."""
    speeds: Mapping[str, float] = field(default_factory=dict)
    """Absolute figures of this machine, now."""
    checks: Mapping[str, Any] = field(default_factory=dict)
    """What was checked before a speed was shown, all passed."""

    def as_json(self) -> dict[str, Any]:
        """The measurement with the machine and the version it was taken on."""

        def rounded(values: Mapping[str, Any]) -> dict[str, Any]:
            return {key: round(value, 4) if isinstance(value, float) else value for key, value in values.items()}

        return {
            "bench": self.bench,
            "ratios": rounded(self.ratios),
            "speeds": rounded(self.speeds),
            "checks": rounded(self.checks),
            "machine": machine(),
            "commit": commit(),
        }


def machine() -> dict[str, Any]:
    """The machine in words: processor, usable cores, load, and the versions that matter."""
    model = ""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        model = platform.processor()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    names = ("numpy", "opencv-contrib-python", "av", "numba", "mediapipe", "onnxruntime")
    return {
        "processor": model or platform.machine(),
        "cores": cores,
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "versions": {name: found for name in names if (found := version_of(name)) is not None},
    }


def commit() -> str | None:
    """The commit of the checkout that runs, or None outside of one."""
    root = Path(animx.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "--short", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


@dataclass(frozen=True)
class Cost:
    """What a piece of work took, all threads together."""

    wall: float
    cpu: float


def cost_of(work: Callable[[], T]) -> tuple[T, Cost]:
    """Run `work` and measure wall and CPU time [s]."""

    def cpu() -> float:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return used.ru_utime + used.ru_stime

    wall0, cpu0 = time.perf_counter(), cpu()
    result = work()
    return result, Cost(time.perf_counter() - wall0, cpu() - cpu0)


def synthetic_frames(count: int, canvas: Canvas) -> list[Image]:
    """Frames of soft moving blobs, RGB, the same for the same arguments."""
    y, x = np.mgrid[0 : canvas.height, 0 : canvas.width].astype(np.float32)
    frames = []
    for t in range(count):
        phase = 2 * np.pi * t / max(1, count)
        waves = [np.sin(x / 37 + phase), np.sin(y / 53 - phase), np.sin((x + y) / 71 + 2 * phase)]
        frames.append((127 + 100 * np.stack(waves, -1)).astype(np.uint8))
    return frames


def _encode(frames: list[Image], path: Path, fps: Fraction) -> None:
    from animx.video import open_writer

    height, width = frames[0].shape[:2]
    with open_writer(path, Canvas(width, height), fps, overwrite=True) as writer:
        for frame in frames:
            writer.write(frame)


def bench_io(count: int = 96, width: int = 512, height: int = 768) -> Measured:
    """Write and read a synthetic mp4, and JPG and PNG pictures of its frames.

    Checked: every frame of the mp4 and of the JPGs comes back, in order, at 34 dB or more, those of PNGs bit by bit.
    """
    from animx.video import open_frames

    canvas = Canvas(width, height)
    frames = synthetic_frames(count, canvas)
    with tempfile.TemporaryDirectory(prefix="animx-bench-") as folder:
        path = Path(folder) / "clip.mp4"
        _encode(frames[:8], path, Fraction(24))  # opens the libraries
        _, written = cost_of(lambda: _encode(frames, path, Fraction(24)))
        _, read = cost_of(lambda: sum(1 for _ in open_frames(path)))
        back = [frame.pixels for frame in open_frames(path)]
    if len(back) != count:
        raise CheckError(f"bench io: {count} frames were written and {len(back)} came back")
    psnr = min(_psnr(a, b) for a, b in zip(frames, back, strict=True))
    if psnr < MIN_PSNR:
        raise CheckError(f"bench io: a frame came back at {psnr:.1f} dB; at least {MIN_PSNR:.0f} are expected")
    pictures, pictures_checks = _pictures(frames[:24])
    whole = (written.cpu + read.cpu) / count
    return Measured(
        "io",
        {
            "decode_cpu_per_encode_cpu": read.cpu / written.cpu,
            "mp4_cpu_per_jpg_cpu": whole / (pictures["jpg_encode_ms"] + pictures["jpg_decode_ms"]) * 1e3,
            "mp4_cpu_per_png_cpu": whole / (pictures["png_encode_ms"] + pictures["png_decode_ms"]) * 1e3,
        },
        {
            "encode_fps": count / written.wall,
            "decode_fps": count / read.wall,
            "encode_cpu_ms": 1000 * written.cpu / count,
            "decode_cpu_ms": 1000 * read.cpu / count,
            **pictures,
        },
        {"frames": count, "size": str(canvas), "psnr_db": psnr, **pictures_checks},
    )


def _pictures(frames: list[Image]) -> tuple[dict[str, float], dict[str, Any]]:
    """CPU milliseconds a frame of JPG (quality 95) and PNG, there and back, in memory; and what was checked."""
    import cv2

    found: dict[str, float] = {}
    for kind, settings in (("jpg", [cv2.IMWRITE_JPEG_QUALITY, 95]), ("png", [])):
        written, writing = cost_of(
            partial(lambda k, s: [cv2.imencode(f".{k}", f, s)[1] for f in frames], kind, settings)
        )
        back, reading = cost_of(partial(lambda w: [cv2.imdecode(one, cv2.IMREAD_COLOR) for one in w], written))
        psnr = min(_psnr(a, np.asarray(b, np.uint8)) for a, b in zip(frames, back, strict=True))
        least = MIN_PSNR if kind == "jpg" else 99.0
        if psnr < least:
            raise CheckError(f"bench io: a {kind} came back at {psnr:.1f} dB; at least {least:.0f} are expected")
        found |= {
            f"{kind}_encode_ms": 1e3 * writing.cpu / len(frames),
            f"{kind}_decode_ms": 1e3 * reading.cpu / len(frames),
        }
        if kind == "jpg":
            jpg = psnr
    return found, {"jpg_psnr_db": jpg, "png_equal": True}


def _psnr(a: Image, b: Image) -> float:
    error = float(np.mean((a.astype(np.float32) - b.astype(np.float32)) ** 2))
    return 99.0 if error == 0 else float(10 * np.log10(255**2 / error))


def bench_pose(clip: Path, backend: str | None = None, hands: bool = False) -> Measured:
    """Extract the poses of a clip twice.  Checked: both times the same bits, and somebody in half of the frames."""
    from animx.poses import extract_pose
    from animx.video import open_frames

    first = extract_pose(clip, backend=backend, hands=hands)  # opens nets and libraries
    _, read = cost_of(lambda: sum(1 for _ in open_frames(clip)))
    poses, took = cost_of(lambda: extract_pose(clip, backend=backend, hands=hands))
    same = bool((poses.keypoints == first.keypoints).all() and (poses.scores == first.scores).all())
    if not same:
        raise CheckError(f"bench pose: two extractions of {clip} differ")
    found = float((poses.scores[..., :18] >= 0.3).any(axis=(1, 2)).mean())
    if found < 0.5:
        raise CheckError(f"bench pose: somebody is found in {found:.0%} of the frames of {clip}; half are expected")
    return Measured(
        "pose",
        {"extract_cpu_per_decode_cpu": took.cpu / read.cpu},
        {"fps": poses.frames / took.wall, "cpu_ms_per_frame": 1000 * took.cpu / poses.frames},
        {"frames": poses.frames, "found": found, "backend": str(poses.source.get("backend")), "same_twice": same},
    )


def bench_puppet(rounds: int = 60) -> Measured:
    """The puppet's own measurement: a drawn frame against a plain `cv2.remap`.  Checked: joints lie where aimed."""
    from importlib import import_module

    found = dict(import_module("animx.puppet.bench").bench(rounds=rounds))  # an engine's room, reached by name
    if not found.pop("correct"):
        raise CheckError(f"bench puppet: joints are drawn {found['marker_error']:.4f} of the height off")
    checks = {name: found.pop(name) for name in ("canvas", "triangles", "marker_error", "bar")}
    ratios = {"frame_per_remap": found.pop("ratio")}
    return Measured("puppet", ratios, found, checks)


def bench_chain(reference: Path, clip: Path, rounds: int = 3) -> Measured:
    """The whole `render` mp4 -> mp4 against pose-only extraction plus encoding alone, CPU time of one run.

    Body-only, tracked; medians of `rounds`, taken in turns.  First use (compiling, opening nets) is left out.
    Checked: the output has the clip's frames.
    """
    from animx.pipeline import render
    from animx.pose.formats import write_poses
    from animx.poses import extract_pose
    from animx.video import open_frames

    with tempfile.TemporaryDirectory(prefix="animx-bench-") as folder:
        out = Path(folder) / "out.mp4"
        render(reference, clip, out, duration="8f", audio=False)
        costs: list[tuple[Cost, Cost, Cost]] = []
        for _ in range(rounds):
            result, whole = cost_of(lambda: render(reference, clip, out, overwrite=True, audio=False))
            poses, extraction = cost_of(lambda: extract_pose(clip, hands=False))
            frames = [frame.pixels for frame in open_frames(out)]
            _, encoding = cost_of(partial(_encode, frames, Path(folder) / "again.mp4", result.fps))
            costs.append((whole, extraction, encoding))
        whole, extraction, encoding = (
            Cost(median(one.wall for one in column), median(one.cpu for one in column))
            for column in zip(*costs, strict=True)
        )
        known, drawing = cost_of(lambda: render(reference, poses, Path(folder) / "known.mp4"))
        write_poses(poses, Path(folder) / "known.npz")
        shell = _shell(reference, clip, Path(folder) / "shell.mp4")
        shell_known = _shell(reference, Path(folder) / "known.npz", Path(folder) / "shell_known.mp4")
    if len(frames) != poses.frames or known.frames != poses.frames:
        raise CheckError(f"bench chain: {poses.frames} frames went in and {len(frames)} came out")
    return Measured(
        "chain",
        {"render_cpu_per_extraction_and_encoding_cpu": whole.cpu / (extraction.cpu + encoding.cpu)},
        {
            "fps": result.frames / whole.wall,
            "shell_32_frames_s": shell.wall,
            "shell_32_frames_known_pose_cpu_s": shell_known.cpu,
            "cpu_s": whole.cpu,
            "extraction_cpu_s": extraction.cpu,
            "encoding_cpu_s": encoding.cpu,
            "known_pose_cpu_s": drawing.cpu,
            "known_pose_fps": known.frames / drawing.wall,
        },
        {"frames": result.frames, "size": str(result.canvas), "backend": result.backend, "rounds": rounds},
    )


def _shell(reference: Path, driving: Path, out: Path, frames: int = 32) -> Cost:
    """What `animx render` of `frames` frames costs as a command of its own, start of Python and imports included."""

    def cpu() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    command = [sys.executable, "-m", "animx", "render", str(reference), str(driving), "-o", str(out), "-q"]
    wall0, cpu0 = time.perf_counter(), cpu()
    done = subprocess.run([*command, "--duration", f"{frames}f"], capture_output=True, text=True)
    if done.returncode != 0:
        raise CheckError(f"bench chain: animx render ended with exit {done.returncode}: {done.stderr.strip()}")
    return Cost(time.perf_counter() - wall0, cpu() - cpu0)
