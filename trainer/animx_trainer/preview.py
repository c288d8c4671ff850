"""A contact sheet of augmentations: the same moments of one clip under N choices of the explicit pose indicator.

In: poses of a clip, an `Epi`, a seed.  Out: an RGB picture; the first strip is the clip as it was, each other strip
names its choice.  All cells are the training canvas, drawn as the network sees poses.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from animx.canvas import Canvas, place
from animx.errors import NoFigureError, UsageError
from animx.pose.draw import draw_pose
from animx.pose.sequence import PoseSequence
from animx_trainer.pose_augment import Choice, Epi
from animx_trainer.sample import generator

GAP, TITLE = 12, 24
PAPER, INK, FAINT, FRAME = (250, 250, 248), (25, 28, 34), (110, 115, 125), (86, 92, 104)


def moments(poses: PoseSequence, count: int) -> list[int]:
    """`count` frames spread evenly over those that show a figure (three body joints or more)."""
    seen = np.flatnonzero((poses.scores[:, 0, :18] > 0).sum(axis=1) >= 3)
    if not len(seen):
        raise NoFigureError("no usable pose in the clip: no frame shows three joints or more")
    return [int(seen[round(at)]) for at in np.linspace(0, len(seen) - 1, min(count, len(seen)))]


def augmentation_sheet(
    poses: PoseSequence, epi: Epi, count: int = 11, seed: int = 0, *, frames: int = 4, cell_height: int = 168
) -> tuple[NDArray[np.uint8], list[Choice]]:
    """RGB [H, W, 3] with `count` augmentations beside the untouched clip, and their choices.

    Augmentation i is the one that sample i of step 0 would get with this `seed`.
    """
    if count < 1 or frames < 1:
        raise UsageError("a contact sheet needs at least one augmentation and one frame")
    canvas = epi.canvas
    whole = poses.person(0)
    whole = whole if whole.canvas == canvas else whole.on(canvas, place(whole.canvas, canvas, "cover"))
    picks = moments(whole, frames)
    strips: list[tuple[str, PoseSequence]] = [("as it was", whole)]
    choices = []
    for number in range(count):
        changed, choice = epi.augment(whole, generator(seed, 0, number, "epi"))
        strips.append((choice.name, changed))
        choices.append(choice)
    return _sheet(strips, picks, canvas, cell_height), choices


def _sheet(
    strips: list[tuple[str, PoseSequence]], picks: list[int], canvas: Canvas, cell_height: int
) -> NDArray[np.uint8]:
    import cv2
    from PIL import Image, ImageDraw, ImageFont

    cell = Canvas(max(8, round(canvas.width * cell_height / canvas.height)), cell_height)
    width = len(picks) * (cell.width + 2) - 2
    columns = max(1, min(3, round((len(strips) * (cell.height + TITLE) / max(1, width)) ** 0.5)))
    rows = -(-len(strips) // columns)
    size = (rows * (cell.height + TITLE + GAP) + GAP, columns * (width + GAP) + GAP)
    sheet = np.empty((*size, 3), np.uint8)
    sheet[:] = PAPER
    corners = []
    for number, (_, strip) in enumerate(strips):
        x, y = GAP + (number % columns) * (width + GAP), GAP + (number // columns) * (cell.height + TITLE + GAP)
        corners.append((x, y))
        sheet[y + TITLE - 1 : y + TITLE + cell.height + 1, x - 1 : x + width + 1] = FRAME
        for k, t in enumerate(picks):
            drawn = cv2.resize(draw_pose(strip, t, canvas=canvas), cell.size, interpolation=cv2.INTER_AREA)
            left = x + k * (cell.width + 2)
            sheet[y + TITLE : y + TITLE + cell.height, left : left + cell.width] = drawn
    image = Image.fromarray(sheet)
    pen = ImageDraw.Draw(image)
    font: Any = ImageFont.load_default()
    for (name, _), (x, y) in zip(strips, corners, strict=True):
        while pen.textlength(name, font=font) > width and len(name) > 4:
            name = f"{name.removesuffix('...')[:-1]}..."
        pen.text((x, y + 6), name, INK if name != "untouched" else FAINT, font=font)
    return np.asarray(image, np.uint8)
