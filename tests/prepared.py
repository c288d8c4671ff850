"""Small prepared clips, and videos of white blocks that a stand-in pose backend finds."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
from clips import write_clip
from numpy.typing import NDArray
from skeletons import dancing

from animx.canvas import Canvas
from animx.pose.npz import save
from animx.pose.sequence import PoseSequence
from animx_trainer.shards import Contents, contents, write_dataset, write_tar

CANVAS = Canvas(48, 64)


def picture(clip: int, t: int, canvas: Canvas = CANVAS) -> NDArray[np.uint8]:
    """A frame that says its clip and its number: red = 8 * clip, green = 3 * t, a blue slope."""
    frame = np.zeros((canvas.height, canvas.width, 3), np.uint8)
    frame[..., 0], frame[..., 1] = 8 * clip, 3 * t
    frame[..., 2] = np.linspace(0, 250, canvas.width)
    return frame


def poses_of(clip: int, frames: int, canvas: Canvas = CANVAS) -> PoseSequence:
    """A dance of its own for each clip."""
    return dancing(frames, 0.6 * canvas.height, canvas, seed=clip)


def stored(clip: int, frames: int, canvas: Canvas = CANVAS, poses: PoseSequence | None = None) -> Contents:
    """One clip as it is written, lossless."""
    sink = io.BytesIO()
    save(poses or poses_of(clip, frames, canvas), sink)
    pictures = [cv2.imencode(".png", picture(clip, t, canvas)[..., ::-1])[1].tobytes() for t in range(frames)]
    return contents(f"clip-{clip:03d}", {"source": {"name": "made"}}, sink.getvalue(), pictures, "png")


def dataset(folder: Path, lengths: list[int], per_shard: int = 3, canvas: Canvas = CANVAS) -> Path:
    """A prepared folder of clips of the given lengths [frames]."""
    folder.mkdir(exist_ok=True)
    names = []
    for start in range(0, len(lengths), per_shard):
        clips = [stored(i, lengths[i], canvas) for i in range(start, min(start + per_shard, len(lengths)))]
        names.append(f"clips-{len(names):05d}.tar")
        write_tar(folder / names[-1], clips)
    write_dataset(folder, {"format": "shards", "canvas": list(canvas.size), "clips": len(lengths), "shards": names})
    return folder


# ---- videos --------------------------------------------------------------------------------------------------------

BACKEND = '''
"""A pose backend that finds white blocks: each is a person whose limbs swing with its place."""
import os, signal
import numpy as np
from animx.pose.detection import Detection, nobody
from animx.pose.skeleton import JOINTS, TEMPLATE

class Blocks:
    name, version, max_persons = "blocks", "1", 4

    @classmethod
    def available(cls):
        return None

    def detect(self, frame, *, still=False):
        if frame[..., 0].min() > 200 and frame[..., 2].max() < 60:  # a red picture is the end of this process
            os.kill(os.getpid(), signal.SIGKILL)
        columns = (frame.min(axis=2) > 170).any(axis=0)
        edges = np.flatnonzero(np.diff(np.concatenate([[0], columns.astype(int), [0]])))
        found = []
        for left, right in zip(edges[::2], edges[1::2]):
            rows = np.flatnonzero((frame[:, left:right].min(axis=2) > 170).any(axis=1))
            if right - left >= 6:
                found.append((left, right, rows[0], rows[-1] + 1))
        if not found:
            return nobody()
        keypoints = np.zeros((len(found), JOINTS, 2), np.float32)
        scores = np.zeros((len(found), JOINTS), np.float32)
        for p, (left, right, top, bottom) in enumerate(found):
            height, middle = bottom - top, (left + right) / 2
            for joint, (x, y) in TEMPLATE.items():
                swing = 0.04 * np.sin(middle) * (joint in (3, 4, 6, 7))
                keypoints[p, joint] = middle + (x + swing) * height, (top + bottom) / 2 + y * height
                scores[p, joint] = 0.9
        return Detection(keypoints, scores)

    def reset(self): ...
    def close(self): ...
'''


def install_backend(folder: Path) -> Path:
    """A third-party package with the backend `blocks`; put the returned folder on the path."""
    package = folder / "site"
    about = package / "blockpose-1.0.dist-info"
    about.mkdir(parents=True)
    (package / "blockpose.py").write_text(BACKEND)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: blockpose\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[animx.pose_backends]\nblocks = blockpose:Blocks\n")
    return package


def block_frame(x: float, *, ground: int = 40, second: float | None = None, height: int = 100) -> NDArray[np.uint8]:
    """144x160 px with a white block about column `x`."""
    frame = np.full((160, 144, 3), ground, np.uint8)
    frame[:, ::2, 2] = 90
    top = 20
    for middle, half in ((x, 8), (second, 5)):
        if middle is not None:
            frame[top : top + height, round(middle) - half : round(middle) + half] = 255
    return frame


def block_video(path: Path, shots: list[tuple[int, dict]], fps: int = 24) -> Path:
    """A video of shots (frames, arguments of `block_frame`); the block walks to and fro in each."""
    frames = [block_frame(72 + 20 * np.sin(t / 6), **arguments) for count, arguments in shots for t in range(count)]
    from fractions import Fraction

    return write_clip(path, frames, fps=Fraction(fps), options={"preset": "ultrafast", "crf": "18", "threads": "1"})
