"""A contact sheet: the same frames of a clip under several presets, side by side at one scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from animx.canvas import Canvas, Placement
from animx.errors import NoFigureError, UsageError
from animx.pose.sequence import PoseSequence
from animx.retarget.chain import apply_preset
from animx.retarget.preset import Preset, load_preset

PAPER, CELL, FLOOR = (250, 250, 248), (34, 37, 44), (86, 92, 104)
INK, FAINT = (25, 28, 34), (110, 115, 125)
GAP, TITLE = 12, 46


def contact_sheet(
    poses: PoseSequence,
    presets: Sequence[Preset | str],
    frames: int = 6,
    *,
    person: int = 0,
    cell_height: int = 220,
) -> NDArray[np.uint8]:
    """RGB [H, W, 3]: one titled strip per preset, each with the same `frames` frames spread evenly over the clip.

    All cells show the same part of the plane, so that sizes compare; the line is the driver's floor.  A clip without
    any visible joint is a `NoFigureError`; no preset, or less than one frame, a `UsageError`.
    """
    from PIL import Image, ImageDraw

    if frames < 1 or not presets:
        raise UsageError("a contact sheet needs at least one preset and one frame")
    loaded = [load_preset(preset) if isinstance(preset, str) else preset for preset in presets]
    picks = _spread(poses.person(person), frames)
    few = _pick(poses.person(person), picks)
    variants = [_shown(poses.person(person), preset, picks) for preset in loaded]
    view, floor = _view([few, *variants])
    scale = cell_height / (view[3] - view[1])
    cell_width = max(24, round((view[2] - view[0]) * scale))
    columns = 2 if len(loaded) > 4 else 1
    strip_width = len(picks) * (cell_width + 2) - 2
    strip_height = TITLE + cell_height
    rows = -(-len(loaded) // columns)
    size = (GAP + columns * (strip_width + GAP), GAP + rows * (strip_height + GAP))
    sheet = np.empty((size[1], size[0], 3), np.uint8)
    sheet[:] = PAPER
    corners = [
        (GAP + (i % columns) * (strip_width + GAP), GAP + (i // columns) * (strip_height + GAP))
        for i in range(len(loaded))
    ]
    for variant, (x, y) in zip(variants, corners, strict=True):
        for k in range(len(picks)):
            left = x + k * (cell_width + 2)
            cell = _cell(variant, k, view, scale, Canvas(cell_width, cell_height), floor)
            sheet[y + TITLE : y + TITLE + cell_height, left : left + cell_width] = cell
    image = Image.fromarray(sheet)
    pen = ImageDraw.Draw(image)
    bold, plain = _font(17), _font(12)
    for preset, (x, y) in zip(loaded, corners, strict=True):
        pen.text((x, y + 2), preset.name or "unnamed", INK, font=bold)
        pen.text((x, y + 25), _short(pen, preset.description, plain, strip_width), FAINT, font=plain)
    return np.asarray(image, np.uint8)


def _spread(poses: PoseSequence, count: int) -> list[int]:
    seen = np.flatnonzero((poses.scores[:, 0, :18] > 0).sum(axis=1) >= 3)
    if not len(seen):
        raise NoFigureError("no usable pose in the clip: no frame shows three joints or more")
    places = (
        np.linspace(0, len(seen) - 1, min(count, len(seen)) + 2)[1:-1] if len(seen) > count else np.arange(len(seen))
    )
    return [int(seen[round(place)]) for place in places]


def _pick(poses: PoseSequence, picks: list[int]) -> PoseSequence:
    return PoseSequence(poses.keypoints[picks], poses.scores[picks], poses.canvas, poses.fps, poses.times[picks])


def _shown(poses: PoseSequence, preset: Preset, picks: list[int]) -> PoseSequence:
    return _pick(apply_preset(poses, preset), picks)


def _view(variants: list[PoseSequence]) -> tuple[tuple[float, float, float, float], float]:
    """The part of the plane that holds every variant, with a margin, and the y of the first one's floor."""
    points = np.concatenate([v.keypoints[v.scores >= 0.3] for v in variants])
    if not len(points):
        points = np.concatenate([v.keypoints[v.scores > 0] for v in variants])
    (x0, y0), (x1, y1) = points.min(axis=0), points.max(axis=0)
    body = variants[0]
    floor = float(body.keypoints[body.scores > 0][:, 1].max())
    margin = 0.04 * max(x1 - x0, y1 - y0, 1.0)
    return (float(x0 - margin), float(y0 - margin), float(x1 + margin), float(y1 + margin)), floor


def _cell(
    poses: PoseSequence, t: int, view: tuple[float, float, float, float], scale: float, canvas: Canvas, floor: float
) -> NDArray[np.uint8]:
    from animx.pose.draw import draw_over

    ground = np.empty((canvas.height, canvas.width, 3), np.uint8)
    ground[:] = CELL
    line = round((floor - view[1]) * scale)
    ground[max(0, line) : max(0, line) + 1] = FLOOR
    here = poses.on(canvas, Placement(scale, scale, -view[0] * scale, -view[1] * scale))
    return draw_over(ground, here, t, 0, hands=True, face=True)


def _font(size: int) -> Any:
    from PIL import ImageFont

    try:
        return ImageFont.load_default(size=size)
    except TypeError:  # Pillow 10.0 has one size only
        return ImageFont.load_default()


def _short(pen: Any, text: str, font: Any, width: int) -> str:
    """`text`, cut with an ellipsis where it is wider than `width` px."""
    if pen.textlength(text, font=font) <= width:
        return text
    while text and pen.textlength(f"{text}...", font=font) > width:
        text = text[:-1]
    return f"{text}..." if text else ""
