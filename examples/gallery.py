"""Contact sheets of every picture with every clip: one sheet a clip, one row a picture.

    python examples/gallery.py                                   # the shipped examples
    python examples/gallery.py --pictures DIR --clips DIR        # folders or files of your own
    python examples/gallery.py --preset short-legs --columns 8 -o out/short

The top row of a sheet is the driving clip; below it each row begins with the reference picture.  A picture that cannot
be animated leaves its row empty and its reason on stderr; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import animx
from animx.canvas import Canvas, place
from animx.errors import AnimxError
from animx.image import IMAGE_SUFFIXES, read_picture, resize
from animx.pose.draw import draw_pose
from animx.pose.formats import is_pose_file
from animx.video import open_frames

HERE = Path(__file__).parent
CLIP_SUFFIXES = {".mp4", ".mov", ".webm", ".mkv", ".gif", ".npz", ".json", ".bvh"}
GAP = 4


def files(paths: list[Path], suffixes: set[str] | frozenset[str]) -> list[Path]:
    """The files named, and those in the folders named, by suffix, in order of their names."""
    found: list[Path] = []
    for path in paths:
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in suffixes) if path.is_dir() else [path]
        found.extend(inside)
    return found


def cell(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """RGB of one cell: the picture fitted inside, on white."""
    rgba = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)]) if pixels.shape[2] == 3 else pixels
    canvas = Canvas(width, height)
    fitted = resize(rgba, canvas, place(Canvas(rgba.shape[1], rgba.shape[0]), canvas, "contain")).astype(np.float32)
    alpha = fitted[..., 3:] / 255
    return np.asarray(fitted[..., :3] * alpha + 255 * (1 - alpha) + 0.5, np.uint8)


def pick(count: int, columns: int) -> list[int]:
    """Frame numbers spread evenly over the clip, its ends left out."""
    return [int((i + 0.5) * count / columns) for i in range(columns)]


def clip_frames(path: Path, columns: int) -> list[NDArray[np.uint8]]:
    """Frames of a clip, or pose images of a pose file."""
    if is_pose_file(path):
        from animx.pose.formats import read_poses

        poses = read_poses(path)
        return [draw_pose(poses, t) for t in pick(poses.frames, columns)]
    count = sum(1 for _ in open_frames(path))
    wanted = set(pick(count, columns))
    return [frame.pixels for t, frame in enumerate(open_frames(path)) if t in wanted]


def row(first: NDArray[np.uint8], others: list[NDArray[np.uint8]], height: int, width: int) -> NDArray[np.uint8]:
    """Cells side by side."""
    gap = np.full((height, GAP, 3), 255, np.uint8)
    cells = [cell(pixels, height, width) for pixels in (first, *others)]
    return np.concatenate([part for one in cells for part in (one, gap)], axis=1)


def sheet(pictures: list[Path], clip: Path, arguments: argparse.Namespace) -> tuple[NDArray[np.uint8], int]:
    """The contact sheet of one clip (RGB), and how many pictures failed."""
    height, width, columns = arguments.height, round(arguments.height * 2 / 3), arguments.columns
    blank = np.full((height, width, 3), 255, np.uint8)
    rows, failed = [row(blank, clip_frames(clip, columns), height, width)], 0
    for picture in pictures:
        frames: list[NDArray[np.uint8]] = []
        started = time.perf_counter()
        try:
            reference = read_picture(picture).pixels
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "out.mp4"
                animx.render(picture, clip, out, presets=tuple(arguments.preset), audio=False)
                frames = clip_frames(out, columns)
            print(f"{picture.name} x {clip.name}: {time.perf_counter() - started:.1f} s", file=sys.stderr)
        except AnimxError as error:
            reference, failed = blank, failed + 1
            print(f"{picture.name} x {clip.name}: {error}", file=sys.stderr)
        rows.append(row(reference, frames or [blank] * columns, height, width))
    gap = np.full((GAP, rows[0].shape[1], 3), 255, np.uint8)
    return np.concatenate([part for one in rows for part in (one, gap)], axis=0), failed


def main() -> int:
    """Make the sheets; 1 when a picture failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, nargs="+", default=[HERE / "characters"])
    parser.add_argument("--clips", type=Path, nargs="+", default=[HERE / "dance.mp4"])
    parser.add_argument("--preset", action="append", default=[])
    parser.add_argument("--columns", type=int, default=6, help="frames a row")
    parser.add_argument("--height", type=int, default=256, help="height of a cell [px]")
    parser.add_argument("-o", "--output", type=Path, default=Path("out/gallery"), help="folder of the sheets")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="  %(message)s")
    pictures, clips = files(arguments.pictures, IMAGE_SUFFIXES), files(arguments.clips, CLIP_SUFFIXES)
    arguments.output.mkdir(parents=True, exist_ok=True)
    failed = 0
    for clip in clips:
        pixels, missed = sheet(pictures, clip, arguments)
        failed += missed
        target = arguments.output / f"{clip.name.split('.')[0]}.jpg"
        Image.fromarray(pixels).save(target, quality=82)
        print(target)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
