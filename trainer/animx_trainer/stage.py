"""Clips of drawn characters without end: a character, a dance and a scene, each from a seed of its own.

`stage` puts them together (numpy, a fraction of a millisecond a frame), `film` draws any number of staged clips at once
(torch).  A clip's bytes depend on its own seeds, its canvas and its moments alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from animx.canvas import Canvas
from animx.pose import skeleton as sk
from animx.pose.sequence import PoseSequence
from animx_trainer.bodies import Character, Floats, random_character
from animx_trainer.dress import dress
from animx_trainer.figure import BODY_JOINTS, FLOOR, camera, keypoints, pose, present
from animx_trainer.motion import random_dance, rest
from animx_trainer.sample import generator
from animx_trainer.sdf import draw

FPS = Fraction(12)
GIRTH = (0.7, 2.3)
"""How far limbs and trunk of a character are thinned or thickened so that it fills its share of the canvas."""
_GRID = 26


@dataclass(frozen=True, eq=False)
class Cast:
    """A character made ready for a canvas."""

    who: Character
    view: tuple[float, float, float]
    """Pixels per unit, x of the stage's middle and y of the floor [px]."""
    girth: float


@dataclass(frozen=True, eq=False)
class Staged:
    """A clip of T frames, ready to be drawn."""

    cast: Cast
    canvas: Canvas
    geometry: Floats  # [T, P, 8], see `animx_trainer.sdf`
    paint: Floats  # [P, 21]
    background: Floats  # [H, W, 3]
    poses: PoseSequence
    """The true keypoints: body and feet; hands and face points are missing."""


@dataclass(frozen=True, eq=False)
class Shot:
    """A drawn clip."""

    rgb: NDArray[np.uint8]  # [T, H, W, 3]
    coverage: Floats  # [T, H, W] 0..1
    labels: NDArray[np.uint8]  # [T, H, W] index into `dress.LABELS`


@lru_cache(maxsize=256)
def cast(seed: int, canvas: Canvas, families: tuple[str, ...] = ()) -> Cast:
    """The character of `seed`: its scale and girth fill the share of the canvas that it was born with."""
    who = random_character(seed, families)
    view = camera(who, canvas)
    rows, jump = rest()
    standing = pose(who, np.repeat(rows, 2, 0), np.repeat(jump, 2))
    thin, thick = (_area(one, canvas) for one in dress(who, standing, view, np.array([1.0, 1.6]))[0])
    girth = 1 + 0.6 * (who.fill - thin) / max(thick - thin, 1e-3)
    return Cast(who, view, float(np.clip(girth, *GIRTH)))


def _area(geometry: Floats, canvas: Canvas) -> float:
    """Share of the canvas under the parts [P, 8] but the first, the shadow, on a coarse grid."""
    steps = (np.arange(_GRID, dtype=np.float32) + np.float32(0.5)) / np.float32(_GRID)
    px, py = np.tile(steps * canvas.width, _GRID)[None], np.repeat(steps * canvas.height, _GRID)[None]
    ax, ay, bx, by, w0, w1, bulge, round_ = (column[:, None] for column in geometry[1:].T)
    dx, dy = np.where((ax == bx) & (ay == by), np.float32(1e-3), bx - ax), by - ay
    length = np.sqrt(dx * dx + dy * dy)
    ux, uy = dx / length, dy / length
    qx, qy = px - ax, py - ay
    u, v = qx * ux + qy * uy, qy * ux - qx * uy
    t = np.minimum(np.maximum(u / length, 0), 1)
    wide = w0 + t * (w1 - w0 + (1 - t) * bulge)
    corner = wide * round_
    beyond, aside = np.maximum(np.maximum(-u, u - length), 0), np.maximum(np.abs(v) - (wide - corner), 0)
    return float((beyond * beyond + aside * aside < corner * corner).any(0).mean())


def stage(
    character: int | Cast,
    dance: int,
    scene: int,
    canvas: Canvas,
    times: NDArray[np.floating[Any]],
    families: tuple[str, ...] = (),
    fps: Fraction = FPS,
) -> Staged:
    """The character of one seed dancing the dance of another before the background of a third, at `times` [T, s]."""
    who = character if isinstance(character, Cast) else cast(character, canvas, families)
    figure = pose(who.who, *random_dance(dance).at(times))
    geometry, paint = dress(who.who, figure, who.view, who.girth)
    points = np.zeros((len(geometry), 1, sk.JOINTS, 2), np.float32)
    points[:, 0, :BODY_JOINTS] = keypoints(figure, who.view)
    scores = np.zeros((len(geometry), 1, sk.JOINTS), np.float32)
    scores[:, 0, :BODY_JOINTS] = present(who.who)
    poses = PoseSequence(points, scores, canvas, fps, source={"name": f"drawn {who.who.family}"})
    return Staged(who, canvas, geometry, paint, background(scene, canvas), poses)


def film(clips: Sequence[Staged], device: str | torch.device = "cpu") -> list[Shot]:
    """Draw staged clips of one canvas together."""
    if not clips:
        return []
    canvas = clips[0].canvas
    most = max(len(clip.paint) for clip in clips)
    counts = [len(clip.geometry) for clip in clips]
    geometry = np.zeros((sum(counts), most, 8), np.float32)
    paint = np.zeros((sum(counts), most, clips[0].paint.shape[1]), np.float32)
    start = 0
    for clip, count in zip(clips, counts, strict=True):
        assert clip.canvas == canvas, "clips of one batch share a canvas"
        geometry[start : start + count, : len(clip.paint)] = clip.geometry
        paint[start : start + count, : len(clip.paint)] = clip.paint
        start += count
    scenes = torch.from_numpy(np.stack([clip.background for clip in clips])).to(device)
    behind = scenes.repeat_interleave(torch.tensor(counts, device=device), 0)
    with torch.no_grad():
        drawn = draw(torch.from_numpy(geometry).to(device), torch.from_numpy(paint).to(device), behind, canvas)
    rgb, coverage, labels = drawn.numpy()
    ends = np.cumsum(counts)[:-1]
    parts = zip(np.split(rgb, ends), np.split(coverage, ends), np.split(labels, ends), strict=True)
    return [Shot(*part) for part in parts]


def background(seed: int, canvas: Canvas) -> Floats:
    """A still background [H, W, 3] in 0..1: two colours over wall and floor, a pattern, things on the wall."""
    rng = generator(seed, 0, 0, "background")
    height, width = canvas.height, canvas.width
    y = (np.arange(height, dtype=np.float32)[:, None] + 0.5) / height
    x = (np.arange(width, dtype=np.float32)[None] + 0.5) / width
    first, second, ground = _muted(rng), _muted(rng), _muted(rng)
    second = first + np.float32(rng.uniform(0.15, 0.8)) * (second - first)
    kind = int(rng.integers(5))
    angle = rng.uniform(0, np.pi)
    along = np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y
    across = np.float32(np.cos(angle)) * y - np.float32(np.sin(angle)) * x
    repeats = np.float32(rng.uniform(2, 7))
    if kind == 0:
        mix = np.clip(along, 0, 1)
    elif kind == 1:
        mix = _edge(along * repeats, width / repeats)
    elif kind == 2:
        a, b = _edge(along * repeats, width / repeats), _edge(across * repeats, width / repeats)
        mix = a * (1 - b) + b * (1 - a)
    elif kind == 3:
        far = (x - np.float32(rng.uniform(0.2, 0.8))) ** 2 + (y - np.float32(rng.uniform(0.1, 0.7))) ** 2
        mix = 1 / (1 + 6 * far)
    else:
        mix = _clouds(rng, x, y)
    image = first + mix[..., None] * (second - first)
    for _ in range(int(rng.integers(0, 4))):  # pictures, windows, boxes
        cx, cy, w, h = rng.uniform(0, 1), rng.uniform(0, 0.7), rng.uniform(0.05, 0.2), rng.uniform(0.05, 0.2)
        inside = np.clip((w - np.abs(x - np.float32(cx))) * width + 0.5, 0, 1) * np.clip(
            (h - np.abs(y - np.float32(cy))) * height + 0.5, 0, 1
        )
        image = image + inside[..., None] * (_muted(rng) - image)
    if rng.random() < 0.6:
        line = np.float32(rng.uniform(FLOOR - 0.16, FLOOR - 0.03))
        share = np.clip((y - line) * height + 0.5, 0, 1) * np.ones_like(x)
        image = image + share[..., None] * (ground * (0.8 + 0.4 * (y[..., None] - line)) - image)
    return np.ascontiguousarray(np.clip(image, 0, 1), np.float32)


def _muted(rng: np.random.Generator) -> Floats:
    """A colour of little saturation."""
    grey = rng.uniform(0.12, 0.95)
    return np.asarray(np.clip(grey + rng.uniform(-0.16, 0.16, 3), 0, 1), np.float32)


def _edge(x: Floats, pixels: Any) -> Floats:
    """A square wave of period 1 with edges one pixel wide; `pixels` = px of a period."""
    wave = np.abs(x - np.floor(x) - np.float32(0.5)) - np.float32(0.25)
    return np.asarray(np.clip(wave * np.float32(pixels) + np.float32(0.5), 0, 1), np.float32)


def _clouds(rng: np.random.Generator, x: Floats, y: Floats) -> Floats:
    """Smooth noise in 0..1."""
    cells = rng.uniform(0, 1, (8, 8)).astype(np.float32)
    rows, columns = y[:, 0] * 6.99, x[0] * 6.99
    i, j = rows.astype(int), columns.astype(int)
    s, t = (rows - i)[:, None], (columns - j)[None]
    s, t = s * s * (3 - 2 * s), t * t * (3 - 2 * t)
    top = cells[i][:, j] * (1 - t) + cells[i][:, j + 1] * t
    low = cells[i + 1][:, j] * (1 - t) + cells[i + 1][:, j + 1] * t
    return np.asarray(top * (1 - s) + low * s, np.float32)
