"""Backgrounds for the synthetic characters: smooth, plain enough to cut a figure from, and deterministic."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from animx.canvas import Canvas
from animx.errors import UsageError, nearest
from animx_trainer.brush import Colour, Painter, blob, ellipse, hexcolour, mix

Picture = NDArray[np.float32]


def scene(name: str, canvas: Canvas, floor: float, seed: int = 0) -> Picture:
    """RGB float32 [H, W, 3] 0..1 of the background `name`; `floor` is the y of the floor [px]."""
    if name not in SCENES:
        raise UsageError(f"unknown scene '{name}'.{nearest(name, SCENES)} Known: {', '.join(SCENES)}")
    return SCENES[name](canvas, floor, np.random.default_rng(seed))


def floor_shadow(picture: Picture, x: float, floor: float, wide: float, strength: float) -> Picture:
    """The picture with a soft shadow on the floor, centred on `x`, `wide` px from its middle to its end."""
    h, w = picture.shape[:2]
    yy, xx = np.mgrid[0:h, 0:w].astype(np.float32) + np.float32(0.5)
    far = ((xx - x) / max(wide, 1.0)) ** 2 + ((yy - floor) / max(0.16 * wide, 1.0)) ** 2
    kept: Picture = (1 - strength * np.exp(-far * 1.6)).astype(np.float32)
    return picture * kept[..., None]


def _rows(canvas: Canvas, *stops: tuple[float, Colour]) -> Picture:
    """A vertical gradient through `(place 0..1, colour)`."""
    y = (np.arange(canvas.height) + 0.5) / canvas.height
    places = [place for place, _ in stops]
    row: NDArray[np.float64] = np.stack([np.interp(y, places, [colour[k] for _, colour in stops]) for k in range(3)], 1)
    out: Picture = np.repeat(row[:, None].astype(np.float32), canvas.width, 1)
    return out


def _aside(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """Places across the picture (0..1) that leave the middle free, where the figure stands."""
    side = np.where(rng.random(count) < 0.5, 0.0, 0.74)
    return np.asarray(side + rng.uniform(0.03, 0.23, count))


def _laid(picture: Picture, painter: Painter) -> Picture:
    colour, alpha = painter.finish()
    return colour + picture * (1 - alpha[..., None])


def _studio(canvas: Canvas, floor: float, rng: np.random.Generator) -> Picture:
    """A wall and a floor of one colour that meet softly, lighter behind the figure."""
    wall, ground = hexcolour("#c3d3e6"), hexcolour("#aebfd4")
    edge = floor / canvas.height - 0.07
    out = _rows(
        canvas,
        (0, mix(wall, (1, 1, 1), 0.15)),
        (edge - 0.03, wall),
        (edge + 0.03, ground),
        (1, mix(ground, (1, 1, 1), 0.2)),
    )
    h, w = out.shape[:2]
    yy, xx = np.mgrid[0:h, 0:w].astype(np.float32)
    glow = np.exp(-(((xx - w / 2) / (0.42 * w)) ** 2 + ((yy - 0.42 * h) / (0.36 * h)) ** 2))
    return np.asarray(out + (1 - out) * (0.45 * glow)[..., None], np.float32)


def _plain(canvas: Canvas, floor: float, rng: np.random.Generator) -> Picture:
    """One colour, drawn from the generator."""
    r, g, b = (float(v) for v in rng.uniform(0.72, 0.95, 3))
    return _rows(canvas, (0.0, (r, g, b)), (1.0, (r, g, b)))


def _mint(canvas: Canvas, floor: float, rng: np.random.Generator) -> Picture:
    """A mint backdrop that runs softly into the floor."""
    wall = hexcolour("#bfe3dc")
    return _rows(canvas, (0, mix(wall, (1, 1, 1), 0.45)), (0.75, wall), (1, mix(wall, (1, 1, 1), 0.25)))


def _night(canvas: Canvas, floor: float, rng: np.random.Generator) -> Picture:
    """A night sky with a moon and stars."""
    w, h = canvas.size
    out = _rows(canvas, (0, hexcolour("#1b2352")), (0.55, hexcolour("#3d4a8f")), (1, hexcolour("#6a6fb5")))
    painter = Painter(canvas)
    places = zip(rng.uniform(0.06, 0.94, 40), rng.uniform(0.04, 0.5, 40), rng.uniform(0.0010, 0.0028, 40), strict=True)
    for x, y, size in places:
        painter.paint(ellipse((x * w, y * h), size * h, size * h), (1.0, 0.98, 0.85), opacity=0.85)
    moon = (0.80 * w, 0.125 * h)
    disc = painter.paint(ellipse(moon, 0.05 * h, 0.05 * h), (1.0, 0.96, 0.80), shade=0.3)
    for dx, dy, r in ((-0.016, -0.010, 0.010), (0.013, 0.015, 0.013), (0.018, -0.018, 0.007)):
        painter.paint(ellipse((moon[0] + dx * h, moon[1] + dy * h), r * h, r * h), (0.93, 0.87, 0.68), clip=disc)
    return _laid(out, painter)


def _meadow(canvas: Canvas, floor: float, rng: np.random.Generator) -> Picture:
    """Sky, clouds, hills and grass with flowers."""
    w, h = canvas.size
    out = _rows(canvas, (0, hexcolour("#8fcdf2")), (0.6, hexcolour("#d9f1fb")), (1, hexcolour("#eef9fc")))
    painter = Painter(canvas)
    for cx, cy, size in ((0.2, 0.12, 0.05), (0.82, 0.22, 0.042)):
        puffs = [
            ellipse(((cx + dx) * w, cy * h + dy * h), r * size * h, r * size * h * 0.8)
            for dx, dy, r in ((-0.09, 0.012, 0.8), (0, -0.008, 1.1), (0.09, 0.01, 0.85), (0.02, 0.02, 1.0))
        ]
        painter.paint(puffs, (1, 1, 1), opacity=0.85)
    for base, high, low, wave, tall in (
        (0.79, "#a9d8a0", "#8fca8c", 0.3, 0.025),
        (0.85, "#86c56f", "#5fa950", 2.4, 0.012),
    ):
        ridge = [(w * u, h * (base + tall * np.sin(wave + 5 * u))) for u in np.linspace(-0.1, 1.1, 12)]
        painter.paint(blob([*ridge, (1.3 * w, 1.3 * h), (-0.3 * w, 1.3 * h)]), hexcolour(high), bottom=hexcolour(low))
    for x, y, k in zip(_aside(rng, 26), rng.uniform(0.89, 0.985, 26), rng.integers(0, 3, 26), strict=True):
        colour = ((1.0, 0.98, 0.9), (1.0, 0.85, 0.35), (0.98, 0.62, 0.7))[int(k)]
        for a in np.arange(5) * 2 * np.pi / 5:
            painter.paint(
                ellipse((x * w + 0.006 * h * np.cos(a), y * h + 0.006 * h * np.sin(a)), 0.0045 * h, 0.0045 * h), colour
            )
        painter.paint(ellipse((x * w, y * h), 0.0038 * h, 0.0038 * h), (0.95, 0.70, 0.2))
    return _laid(out, painter)


SCENES: Mapping[str, Callable[[Canvas, float, np.random.Generator], Picture]] = MappingProxyType(
    {"studio": _studio, "plain": _plain, "mint": _mint, "night": _night, "meadow": _meadow}
)
"""Backgrounds by name."""
