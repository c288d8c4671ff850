"""What a mask holds too much: detached pieces, street and wall on a thin neck, the figure's own reflection.

All work on flags [h, w] at working size with the net's prior 0..1 (or None) and the known joints [n, 2] (x, y px).
A piece is taken away only on evidence; a piece that holds a joint is never taken away.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from animx.puppet.segment import Flags, Map, disc

Points = NDArray[np.float64]


def without_surplus(
    rgb: NDArray[np.uint8], mask: Flags, prior: Map | None, joints: Points
) -> tuple[Flags, tuple[str, ...]]:
    """The mask without its surplus, and one note per kind of surplus that was found."""
    notes = []
    mask, dropped = _main_piece(mask, joints)
    if dropped > 0.02:
        notes.append(f"left out detached pieces, {dropped:.0%} of the figure's area")
    if prior is not None:
        mask, dropped = _without_weak_lobes(rgb, mask, prior, joints)
        if dropped > 0.005:
            notes.append(f"left out pieces on a thin neck that do not look like the figure, {dropped:.0%} of its area")
    line = reflection_line(rgb, mask, prior, joints)
    if line is not None:
        before = int(mask.sum())
        mask = mask.copy()
        mask[line:] = False
        mask, _ = _main_piece(mask, joints)
        notes.append(f"left out a reflection under the figure, {1 - mask.sum() / before:.0%} of its area")
    return _without_pinholes(mask, prior), tuple(notes)


def _main_piece(mask: Flags, joints: Points) -> tuple[Flags, float]:
    """The largest piece with what nearly touches it or holds joints; also the share of its area that was dropped."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if count <= 2:
        return mask, 0.0
    areas = stats[:, cv2.CC_STAT_AREA].astype(float)
    areas[0] = 0
    main = int(np.argmax(areas))
    body = labels == main
    near = cv2.dilate(body.astype(np.uint8), disc(max(1, round(0.008 * max(mask.shape))))) > 0
    low = stats[main, cv2.CC_STAT_TOP] + 0.9 * stats[main, cv2.CC_STAT_HEIGHT]
    held = {int(labels[y, x]) for x, y in _inside(joints, mask.shape)}
    keep = body
    for label in range(1, count):
        piece = labels == label
        close = bool((near & piece).any()) and 0.003 < areas[label] / areas[main] < 0.2
        if label != main and (label in held or (close and stats[label, cv2.CC_STAT_TOP] < low)):
            keep = keep | piece
    return keep, float((mask & ~keep).sum() / areas[main])


def _without_weak_lobes(rgb: NDArray[np.uint8], mask: Flags, prior: Map, joints: Points) -> tuple[Flags, float]:
    """Cut pieces that hang on a neck, that the net gives less than 0.4 and whose colours the figure does not have."""
    reach = max(1, round(0.012 * max(mask.shape)))
    padded = np.pad(mask, reach, mode="edge").astype(np.uint8)
    core = cv2.erode(padded, disc(reach))[reach:-reach, reach:-reach]
    count, labels, stats, _ = cv2.connectedComponentsWithStats(core, connectivity=8)
    if count <= 2:
        return mask, 0.0
    main = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    weak = np.zeros(mask.shape, bool)
    lab = cv2.cvtColor(rgb.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    own = lab[(labels == main) & (prior > 0.7)]
    own = own[:: max(1, len(own) // 300)]
    for label in range(1, count):
        piece = labels == label
        if label == main or float(prior[piece].mean()) >= 0.4 or _shares_colours(lab[piece], own):
            continue
        whole = (cv2.dilate(piece.astype(np.uint8), disc(reach + 1)) > 0) & mask
        if not any(whole[y, x] for x, y in _inside(joints, mask.shape)):
            weak |= whole
    rest = cv2.dilate((np.isin(labels, [0, main]) & (labels == main)).astype(np.uint8), disc(reach + 1)) > 0
    weak &= ~rest
    left, _ = _main_piece(mask & ~weak, joints)
    return left, float((mask & ~left).sum() / max(1, mask.sum()))


def _shares_colours(piece: Map, own: Map) -> bool:
    """Whether most Lab colours [n, 3] of a piece are near one of the figure's own colours [m, 3]."""
    if not len(own):
        return False
    piece = piece[:: max(1, len(piece) // 200)]
    nearest = np.linalg.norm(piece[:, None] - own[None], axis=2).min(1)
    return bool((nearest < 8).mean() > 0.6)


def reflection_line(rgb: NDArray[np.uint8], mask: Flags, prior: Map | None, joints: Points) -> int | None:
    """The row from which on the figure's lower end is its own mirror image, or None.

    Asked for: the part below looks like the part above turned over (shape and lightness), it is a real part of the
    height, and either the net is clearly less sure of it or no joint lies in it while feet lie just above.
    """
    rows = np.flatnonzero(mask.any(1))
    if len(rows) == 0:
        return None
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    height = bottom - top
    if height < 24:
        return None
    light = np.asarray(cv2.GaussianBlur(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), (0, 0), 1.5), np.float32)
    lowest_joint = max((y for _, y in _inside(joints, mask.shape)), default=-1)
    best: tuple[float, int] | None = None
    for line in range(top + round(0.5 * height), bottom - max(6, round(0.08 * height))):
        size = bottom - line
        if line - size < 0 or lowest_joint >= line:
            continue
        below, above = mask[line:bottom], mask[line - size : line][::-1]
        both = below & above
        overlap = both.sum() / max(1, (below | above).sum())
        if overlap < 0.6:
            continue
        alike = _correlation(light[line:bottom][both], light[line - size : line][::-1][both])
        if alike < 0.7:
            continue
        doubt = (
            prior is not None and prior[line:bottom][below].mean() < 0.8 * prior[line - size : line][above[::-1]].mean()
        )
        stands = lowest_joint > line - 0.15 * height
        merit = alike + overlap
        if (doubt or stands) and (best is None or merit > best[0]):
            best = merit, line
    return None if best is None else best[1]


def _correlation(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    if len(a) < 20 or a.std() < 6 or b.std() < 3:  # plain areas look like everything
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def _without_pinholes(mask: Flags, prior: Map | None) -> Flags:
    """Fill holes that are tiny, or small and claimed by the net (a highlight, the white of an eye)."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats((~mask).astype(np.uint8), connectivity=4)
    border = set(np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])).tolist())
    area = max(1, int(mask.sum()))
    filled = mask.copy()
    for label in range(1, count):
        if label in border:
            continue
        size = stats[label, cv2.CC_STAT_AREA]
        hole = labels == label
        if size < 5e-4 * area or (prior is not None and size < 0.02 * area and prior[hole].mean() > 0.45):
            filled |= hole & ~mask
    return filled


def _inside(joints: Points, shape: tuple[int, ...]) -> list[tuple[int, int]]:
    return [(int(x), int(y)) for x, y in joints if 0 <= x < shape[1] and 0 <= y < shape[0]]
