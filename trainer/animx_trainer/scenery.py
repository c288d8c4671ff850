"""Backgrounds for the synthetic characters: smooth, plain enough to cut a figure from, and deterministic."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from animx.canvas import Canvas
from animx.errors import UsageError, nearest
from animx_trainer.brush import Colour, Painter, blob, ellipse, hexcolour, mix, polygon, tube

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


def _kitchen(canvas: Canvas, floor: float, rng: np.random.Generator) -> Picture:
    """Mint tiles and a wooden table top."""
    w, h = canvas.size
    tile, top = hexcolour("#bfe3dc"), floor - 0.075 * h
    out = _rows(canvas, (0, mix(tile, (1, 1, 1), 0.35)), (1, tile))
    painter, step = Painter(canvas), w / 5.0
    for k in range(7):
        x = (k - 0.5) * step
        painter.paint(tube([(x, 0), (x, top)], [0.0035 * h] * 2), mix(tile, (1, 1, 1), 0.65))
    for k in range(int(top / step) + 1):
        y = top - k * step
        painter.paint(tube([(-9, y), (w + 9, y)], [0.0035 * h] * 2), mix(tile, (1, 1, 1), 0.65))
    wood = hexcolour("#d9a066")
    board = polygon([(-50, top), (w + 50, top), (w + 50, h + 60), (-50, h + 60)])
    painter.paint(board, wood, bottom=hexcolour("#c98b50"))
    painter.paint(tube([(-9, top), (w + 9, top)], [0.006 * h] * 2), mix(wood, (1, 1, 1), 0.45))
    for k, y in enumerate((0.035, 0.062, 0.10, 0.125)):
        line = [(w * u, top + y * h + 0.004 * h * np.sin(5 * u + k)) for u in np.linspace(-0.02, 1.02, 9)]
        painter.paint(tube(line, [0.0022 * h] * 9), hexcolour("#b97a42"), opacity=0.5)
    return _laid(out, painter)


def _night(canvas: Canvas, floor: float, rng: np.random.Generator) -> Picture:
    """A night sky with moon and stars over dark hills."""
    w, h = canvas.size
    out = _rows(canvas, (0, hexcolour("#1b2352")), (0.55, hexcolour("#3d4a8f")), (1, hexcolour("#6a6fb5")))
    painter = Painter(canvas)
    for x, y, size in zip(
        rng.uniform(0.03, 0.97, 40) * w, rng.uniform(0.02, 0.55, 40) * h, rng.uniform(0.0010, 0.0030, 40), strict=True
    ):
        painter.paint(ellipse((x, y), size * h, size * h), (1.0, 0.98, 0.85), opacity=0.85)
    moon = (0.80 * w, 0.13 * h)
    for radius, strength in ((0.11, 0.08), (0.085, 0.12)):
        painter.paint(ellipse(moon, radius * h, radius * h), (1.0, 0.97, 0.8), opacity=strength)
    disc = painter.paint(ellipse(moon, 0.06 * h, 0.06 * h), (1.0, 0.96, 0.80), shade=0.3)
    for dx, dy, r in ((-0.02, -0.012, 0.012), (0.016, 0.018, 0.016), (0.022, -0.022, 0.008)):
        painter.paint(ellipse((moon[0] + dx * h, moon[1] + dy * h), r * h, r * h), (0.93, 0.87, 0.68), clip=disc)
    for base, colour, wave in ((0.80, "#343a78", 1.9), (0.88, "#272c5e", 4.1)):
        ridge = [(w * u, h * (base + 0.022 * np.sin(wave + 6 * u))) for u in np.linspace(-0.1, 1.1, 12)]
        painter.paint(blob([*ridge, (1.3 * w, 1.2 * h), (-0.3 * w, 1.2 * h)]), hexcolour(colour))
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
        (0.70, "#a9d8a0", "#8fca8c", 0.3, 0.035),
        (0.80, "#86c56f", "#5fa950", 2.4, 0.018),
    ):
        ridge = [(w * u, h * (base + tall * np.sin(wave + 5 * u))) for u in np.linspace(-0.1, 1.1, 12)]
        painter.paint(blob([*ridge, (1.3 * w, 1.3 * h), (-0.3 * w, 1.3 * h)]), hexcolour(high), bottom=hexcolour(low))
    for x, y, k in zip(rng.uniform(0.03, 0.97, 26), rng.uniform(0.87, 0.985, 26), rng.integers(0, 3, 26), strict=True):
        colour = ((1.0, 0.98, 0.9), (1.0, 0.85, 0.35), (0.98, 0.62, 0.7))[int(k)]
        for a in np.arange(5) * 2 * np.pi / 5:
            painter.paint(
                ellipse((x * w + 0.006 * h * np.cos(a), y * h + 0.006 * h * np.sin(a)), 0.0045 * h, 0.0045 * h), colour
            )
        painter.paint(ellipse((x * w, y * h), 0.0038 * h, 0.0038 * h), (0.95, 0.70, 0.2))
    return _laid(out, painter)


SCENES: Mapping[str, Callable[[Canvas, float, np.random.Generator], Picture]] = MappingProxyType(
    {"studio": _studio, "plain": _plain, "kitchen": _kitchen, "night": _night, "meadow": _meadow}
)
"""Backgrounds by name."""
