"""A skeleton from the outline alone, for figures no detector knows: drawings, mascots, bottles with legs.

In: a mask [H, W].  Out: a pose with the joints whose limbs stick out of the silhouette, or None when none does.
Trunk = what a disc of a good part of the largest inner radius can sweep; limbs = long pieces that hang on it; their
middle lines run through the level sets of the geodesic distance from the contact.  The figure is taken to face the
viewer, so its right side is on the left of the picture.  A limb inside the silhouette is missing, never invented.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from animx.canvas import Canvas
from animx.pose.sequence import PoseSequence
from animx.pose.skeleton import (
    JOINTS,
    L_ANKLE,
    L_ELBOW,
    L_HIP,
    L_KNEE,
    L_SHOULDER,
    L_WRIST,
    NECK,
    NOSE,
    R_ANKLE,
    R_ELBOW,
    R_HIP,
    R_KNEE,
    R_SHOULDER,
    R_WRIST,
)  # fmt: skip
from animx.puppet.segment import Flags, disc, largest_part

Point = NDArray[np.float64]

SWEEPS = (0.75, 0.62, 0.5, 0.4, 0.3)
"""Radii of the trunk's disc that are tried, as parts of the largest inner radius."""
WORKING_HEIGHT = 208
"""Height [px] to which the figure is scaled for the fit."""
LEAST_LIMB = 0.09
"""A piece shorter than this part of the figure's height is no limb."""
FITTED_SCORE = 0.6
"""Score of a fitted joint."""

_ARMS = ((R_SHOULDER, R_ELBOW, R_WRIST), (L_SHOULDER, L_ELBOW, L_WRIST))
_LEGS = ((R_HIP, R_KNEE, R_ANKLE), (L_HIP, L_KNEE, L_ANKLE))


@dataclass(frozen=True)
class Limb:
    """A piece that sticks out of the trunk: its middle line from the contact to the tip."""

    line: NDArray[np.float64]  # [n, 2] px
    width: float
    """Mean width [px]."""
    region: Flags
    cut: bool
    """Whether it ends at the picture's border."""

    @property
    def length(self) -> float:
        """Length of the middle line [px]."""
        return float(np.linalg.norm(np.diff(self.line, axis=0), axis=1).sum())

    @property
    def root(self) -> Point:
        """Where it leaves the trunk."""
        return np.asarray(self.line[0])

    @property
    def tip(self) -> Point:
        """Its far end."""
        return np.asarray(self.line[-1])

    def at(self, share: float) -> Point:
        """The point after `share` (0..1) of its length."""
        steps = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(self.line, axis=0), axis=1))])
        where = share * steps[-1]
        return np.array([np.interp(where, steps, self.line[:, k]) for k in (0, 1)])


@dataclass(frozen=True)
class _Body:
    trunk: Flags
    arms: tuple[Limb | None, Limb | None]  # the character's right, left
    legs: tuple[Limb | None, Limb | None]
    merit: float


@dataclass(frozen=True)
class Fit:
    """A fitted pose with the pieces it was read from."""

    pose: PoseSequence
    limbs: dict[str, Flags]
    """Where the limbs stick out [H, W], by `right arm`, `left arm`, `right leg`, `left leg`."""


def fit_skeleton(mask: NDArray[np.floating[Any]]) -> PoseSequence | None:
    """Fit joints to a silhouette 0..1 [H, W]; one frame, one person on its canvas, or None when no limb sticks out.

    Gives shoulder, elbow, wrist of each arm and hip, knee, ankle of each leg found, neck and nose.  Joints of limbs
    that are cut by the border end there.
    """
    fit = fit_limbs(mask)
    return None if fit is None else fit.pose


def fit_limbs(mask: NDArray[np.floating[Any]]) -> Fit | None:
    """Like `fit_skeleton`, with the regions of the limbs."""
    figure = largest_part(np.asarray(mask) > 0.5)
    if figure.sum() < 64:
        return None
    height, width = figure.shape
    rows, columns = np.flatnonzero(figure.any(1)), np.flatnonzero(figure.any(0))
    x0, y0 = int(columns[0]), int(rows[0])
    piece = figure[y0 : rows[-1] + 1, x0 : columns[-1] + 1]
    factor = WORKING_HEIGHT / max(piece.shape[0], 0.6 * piece.shape[1])
    size = max(8, round(piece.shape[1] * factor)), max(8, round(piece.shape[0] * factor))
    small = cv2.resize(piece.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0.5
    open_sides = (y0 == 0, int(rows[-1]) == height - 1, x0 == 0, int(columns[-1]) == width - 1)
    body = _best_body(largest_part(_filled(small)), open_sides)
    if body is None:
        return None
    joints = _joints(body)
    keypoints, scores = np.zeros((1, 1, JOINTS, 2), np.float32), np.zeros((1, 1, JOINTS), np.float32)
    scale = np.array([piece.shape[1] / size[0], piece.shape[0] / size[1]])
    for joint, point in joints.items():
        keypoints[0, 0, joint] = (point + 0.5) * scale + (x0, y0)
        scores[0, 0, joint] = FITTED_SCORE
    pose = PoseSequence(keypoints, scores, Canvas(width, height), source={"backend": "silhouette"})
    names = ("right arm", "left arm", "right leg", "left leg")
    limbs = {}
    for name, limb in zip(names, (*body.arms, *body.legs), strict=True):
        if limb is not None:
            limbs[name] = np.zeros(figure.shape, bool)
            part = cv2.resize(limb.region.astype(np.uint8), (piece.shape[1], piece.shape[0]), interpolation=0) > 0
            limbs[name][y0 : rows[-1] + 1, x0 : columns[-1] + 1] = part
    return Fit(pose, limbs)


def _best_body(figure: Flags, open_sides: tuple[bool, bool, bool, bool]) -> _Body | None:
    inner = cv2.distanceTransform(np.pad(figure, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    best: _Body | None = None
    for sweep in SWEEPS:
        body = _body(figure, np.asarray(inner, np.float32), sweep * float(inner.max()), open_sides)
        if body is not None and (best is None or body.merit > best.merit + 1e-9):
            best = body
    return best


def _body(
    figure: Flags, inner: NDArray[np.float32], radius: float, open_sides: tuple[bool, bool, bool, bool]
) -> _Body | None:
    if radius < 3:
        return None
    core = _core(figure, inner, radius)
    limbs = _limbs(figure, core, inner, open_sides)
    if not limbs:
        return None
    trunk = largest_part(figure & ~np.any([limb.region for limb in limbs], axis=0))
    rows, columns = np.nonzero(core)
    centre, top, bottom = float(columns.mean()), int(rows.min()), int(rows.max())
    height = figure.shape[0]
    legs: list[Limb] = []
    arms: list[Limb] = []
    odd = 0
    for limb in limbs:
        direction = limb.tip - limb.root
        down = direction[1] / max(1e-6, float(np.hypot(*direction)))
        low = (limb.root[1] - top) / max(1, bottom - top)
        if low > 0.6 and down > 0.55 and limb.tip[1] > 0.7 * height:
            legs.append(limb)
        elif low > 0.12 and abs(limb.root[0] - centre) > 0.25 * _width_at(core, limb.root[1]) and low < 0.95:
            arms.append(limb)
        else:
            odd += 1
    pair_legs, spare_legs = _pair(legs, centre)
    pair_arms, spare_arms = _pair(arms, centre)
    found = [limb for limb in (*pair_legs, *pair_arms) if limb is not None]
    if not found:
        return None
    merit = sum(min(limb.length / height, 0.5) for limb in found) - 0.15 * (odd + spare_legs + spare_arms)
    for pair in (pair_legs, pair_arms):
        merit += 0.8 * _balance(pair) if None not in pair else 0.3 * sum(limb is not None for limb in pair)
    kept = np.any([limb.region for limb in found], axis=0)
    trunk = largest_part((figure & ~kept) | trunk)
    return _Body(trunk, pair_arms, pair_legs, float(merit))


def _core(figure: Flags, inner: NDArray[np.float32], radius: float) -> Flags:
    """What a disc of `radius` sweeps, without blobs at the ends of limbs (a shoe, a mitten), with the head."""
    seeds = (inner >= radius).astype(np.uint8)
    away = cv2.distanceTransform(1 - seeds, cv2.DIST_L2, 5)
    count, labels, stats, centres = cv2.connectedComponentsWithStats(seeds, connectivity=8)
    if count < 2:
        return np.zeros(figure.shape, bool)
    swept = (away <= radius * 1.06 + 1.0) & figure
    if count == 2:
        return np.asarray(swept)
    areas = []
    for label in range(1, count):
        reach = cv2.distanceTransform((labels != label).astype(np.uint8), cv2.DIST_L2, 5) <= radius * 1.06 + 1.0
        areas.append(reach & figure)
    main = int(np.argmax([part.sum() for part in areas]))
    keep = areas[main]
    main_x, main_y = centres[main + 1]
    half = 0.5 * (stats[main + 1, cv2.CC_STAT_WIDTH] + 2 * radius)
    for index, part in enumerate(areas):
        x, y = centres[index + 1]
        stacked = abs(x - main_x) < 0.6 * half and (y < main_y or part.sum() > 0.35 * keep.sum())
        if index != main and stacked and part.sum() > 0.1 * keep.sum():
            keep = keep | part
    # The neck between two parts of the core belongs to it.
    count, _ = cv2.connectedComponents(keep.astype(np.uint8))
    if count > 2:
        rows = np.flatnonzero(keep.any(1))
        middle = np.zeros(figure.shape, bool)
        middle[rows[0] : rows[-1], max(0, int(main_x - 0.7 * half)) : int(main_x + 0.7 * half)] = True
        gaps = np.flatnonzero(~keep[rows[0] : rows[-1] + 1].any(1)) + rows[0]
        bridge = np.zeros(figure.shape, bool)
        bridge[gaps] = True
        keep = keep | (
            figure & middle & cv2.dilate(bridge.astype(np.uint8), disc(max(2, round(0.5 * radius)))).astype(bool)
        )
    return np.asarray(keep)


def _limbs(
    figure: Flags, core: Flags, inner: NDArray[np.float32], open_sides: tuple[bool, bool, bool, bool]
) -> list[Limb]:
    """Long pieces outside the core that touch it."""
    height = len(figure)
    rest = (figure & ~core).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(_thick(rest, 2), connectivity=8)
    touch = cv2.dilate(core.astype(np.uint8), disc(4)) > 0
    centre = float(np.argwhere(core)[:, 1].mean()) if core.any() else 0.5 * figure.shape[1]
    limbs = []
    for label in range(1, count):
        if stats[label, cv2.CC_STAT_AREA] < 0.0006 * height * height:
            continue
        region = labels == label
        contact = region & touch
        if not contact.any():
            continue
        line = _middle_line(region, contact, centre)
        if line is None:
            continue
        length = float(np.linalg.norm(np.diff(line, axis=0), axis=1).sum())
        thickness = float(region.sum()) / max(1.0, length)
        root_width = float(np.ptp(np.argwhere(contact), axis=0).max()) + 1.0
        if length < LEAST_LIMB * height or length < 1.35 * thickness or length < 0.9 * root_width:
            continue
        limbs.append(Limb(line, thickness, region, _is_cut(region, line, thickness, open_sides)))
    return limbs


def _is_cut(
    region: Flags, line: NDArray[np.float64], thickness: float, open_sides: tuple[bool, bool, bool, bool]
) -> bool:
    """Whether a limb runs out of the picture: its tip is at an open border and about its whole width touches it."""
    height, width = region.shape
    tip, middle, near = line[-1], line[len(line) // 2], 4.0 + 0.5 * thickness
    sides = (
        (tip[1] < near, region), (tip[1] > height - 1 - near, region[::-1]),
        (tip[0] < near, region.T), (tip[0] > width - 1 - near, region.T[::-1]),
    )  # fmt: skip
    deeper = max(3, round(0.35 * thickness))
    away = cv2.distanceTransform(np.pad(region, 1, mode="edge").astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    end = np.hypot(*(np.indices(region.shape)[::-1] - tip[:, None, None])) < 1.5 * thickness
    half = away[np.hypot(*(np.indices(region.shape)[::-1] - middle[:, None, None])) < 0.75 * thickness].max(initial=0)
    if away[end & region].max(initial=0) > 1.3 * half:  # a foot stands on the border, it is not cut by it
        return False
    # A hand that only touches the border is much wider a little farther in.
    return any(
        is_open and at_border and rows[:2].any(0).sum() > max(0.5 * thickness, 0.8 * rows[deeper].sum())
        for is_open, (at_border, rows) in zip(open_sides, sides, strict=True)
    )


def _middle_line(region: Flags, contact: Flags, centre: float) -> NDArray[np.float64] | None:
    """Centres of the level sets of the geodesic distance from the contact, towards the farthest pixel.

    Among ends about equally far (toe and heel) the one farther from the figure's middle `centre` [px] is taken.
    """
    from skimage.graph import MCP_Geometric

    rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    y0, x0 = int(rows[0]), int(columns[0])
    region = region[y0 : rows[-1] + 1, x0 : columns[-1] + 1]
    contact = contact[y0 : rows[-1] + 1, x0 : columns[-1] + 1]
    cost = np.where(region, 1.0, np.inf)
    solver = MCP_Geometric(cost)
    reached, _ = solver.find_costs([tuple(p) for p in np.argwhere(contact)])
    reached = np.where(region & np.isfinite(reached), reached, -1.0)
    ends = np.argwhere(reached >= 0.96 * reached.max())
    tip = tuple(ends[int(np.argmax(np.abs(ends[:, 1] + x0 - centre)))])
    total = float(reached[tip])
    if total < 4:
        return None
    path = np.array(solver.traceback(tip), np.float64)[:, ::-1]  # contact -> tip, hugging one side
    along = reached[path[:, 1].astype(int), path[:, 0].astype(int)]
    steps = max(5, int(total / 4))
    line = [np.argwhere(contact).mean(0)[::-1]]
    for k in range(1, steps):
        level = k * total / steps
        here = path[int(np.argmin(np.abs(along - level)))]
        ring = np.argwhere(np.abs(reached - level) < 2.0)[:, ::-1].astype(np.float64)
        near = ring[np.linalg.norm(ring - here, axis=1) < max(6.0, 1.2 * np.sqrt(region.sum() / 3))]
        line.append(near.mean(0) if len(near) else here)
    line.append(path[-1])
    smooth = np.array(line)
    smooth[1:-1] = (smooth[:-2] + 2 * smooth[1:-1] + smooth[2:]) / 4
    return np.asarray(smooth + np.array([x0, y0]), np.float64)


def _pair(limbs: Sequence[Limb], centre: float) -> tuple[tuple[Limb | None, Limb | None], int]:
    """The longest limb on the picture's left (the character's right) and on its right; and how many are left over."""
    if len(limbs) == 2 and abs(limbs[0].root[0] - limbs[1].root[0]) > 4:  # two legs may both lie beside the middle
        first, second = sorted(limbs, key=lambda limb: float(limb.root[0] + 0.5 * limb.tip[0]))
        if first.root[0] < centre < second.root[0] or min(first.length, second.length) > 0.5 * max(
            first.length, second.length
        ):
            return (first, second), 0
    sides: list[Limb | None] = []
    for left in (True, False):
        own = [limb for limb in limbs if (limb.root[0] < centre) == left]
        sides.append(max(own, key=lambda limb: limb.length) if own else None)
    return (sides[0], sides[1]), len(limbs) - sum(side is not None for side in sides)


def _balance(pair: tuple[Limb | None, Limb | None]) -> float:
    a, b = pair
    if a is None or b is None:
        return 0.0
    return min(a.length, b.length) / max(a.length, b.length)


def _joints(body: _Body) -> dict[int, Point]:
    joints: dict[int, Point] = {}
    for chain, limb in zip(_ARMS, body.arms, strict=True):
        if limb is not None:
            wrist = _wrist_share(limb)
            joints.update(
                zip(chain, (limb.root, limb.at(_bend(limb, 0.5 * wrist, wrist)), limb.at(wrist)), strict=True)
            )
            if limb.cut:
                joints.pop(chain[2])
    for chain, limb in zip(_LEGS, body.legs, strict=True):
        if limb is not None:
            joints.update(zip(chain, (_socket(limb), limb.at(0.42), limb.at(0.80)), strict=True))
            if limb.cut:
                joints.pop(chain[2])
    joints.update(_head(body, joints))
    return joints


def _socket(limb: Limb) -> Point:
    """The joint in the trunk: half a limb's width behind the contact."""
    direction = limb.at(0.3) - limb.root
    return np.asarray(limb.root - 0.5 * limb.width * direction / max(1e-6, float(np.hypot(*direction))))


def _wrist_share(limb: Limb) -> float:
    """Where along an arm the hand begins: the thinnest place before a thicker end, else 0.75."""
    away = cv2.distanceTransform(np.pad(limb.region, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    shares = np.linspace(0.45, 0.95, 26)
    away = cv2.dilate(away, np.ones((3, 3), np.uint8))  # the line may run a pixel beside the middle
    radii = np.array([away[round(limb.at(s)[1]), round(limb.at(s)[0])] for s in shares])
    thin = int(np.argmin(radii[:19]))
    return float(shares[thin]) if radii[thin:].max() > 1.35 * radii[thin] else 0.75


def _bend(limb: Limb, default: float, end: float) -> float:
    """Where the middle line up to `end` bends most, when it bends by more than 30 degrees near its middle."""
    best, where = 30.0, default
    for share in np.linspace(0.6 * default, default + 0.4 * (end - default), 9):
        a, b, c = limb.at(0.0), limb.at(float(share)), limb.at(end)
        u, v = b - a, c - b
        angle = abs(float(np.degrees(np.arctan2(u[0] * v[1] - u[1] * v[0], u @ v))))
        if angle > best:
            best, where = angle, float(share)
    return where


def _head(body: _Body, joints: dict[int, Point]) -> dict[int, Point]:
    """Neck between the shoulders (or at the trunk's waist line when there is one above), nose in the head."""
    rows = np.flatnonzero(body.trunk.any(1))
    top, bottom = int(rows[0]), int(rows[-1])
    widths = np.array([_width_at(body.trunk, y) for y in range(top, bottom + 1)])
    waist = _neck_row(widths)
    shoulders = [joints[i] for i in (R_SHOULDER, L_SHOULDER) if i in joints]
    if len(shoulders) == 2:
        neck = (shoulders[0] + shoulders[1]) / 2
    else:
        y = shoulders[0][1] if shoulders else (top + waist if waist else top + 0.4 * (bottom - top))
        neck = np.array([_middle_at(body.trunk, y), y])
    if waist is not None and top + waist <= neck[1] + 0.1 * (bottom - top):
        y = top + 0.5 * waist
    else:
        y = neck[1] - 0.42 * (neck[1] - top)
    return {NECK: neck, NOSE: np.array([_middle_at(body.trunk, y), y])}


def _neck_row(widths: NDArray[np.float64]) -> int | None:
    """Row (from the top) of a waist that is under 80 % of the widest above and below it."""
    smooth = np.convolve(np.pad(widths, 2, mode="edge"), np.ones(5) / 5, mode="valid")
    first, last = int(0.12 * len(smooth)), int(0.7 * len(smooth))
    if last - first < 4:
        return None
    row = first + int(np.argmin([smooth[y] / min(smooth[:y].max(), smooth[y:].max()) for y in range(first, last)]))
    return row if smooth[row] < 0.8 * min(smooth[:row].max(), smooth[row:].max()) else None


def _width_at(region: Flags, y: float) -> float:
    return float(region[int(np.clip(y, 0, len(region) - 1))].sum())


def _middle_at(region: Flags, y: float) -> float:
    columns = np.flatnonzero(region[int(np.clip(round(y), 0, len(region) - 1))])
    return float(columns.mean()) if len(columns) else float(np.argwhere(region)[:, 1].mean())


def _filled(figure: Flags) -> Flags:
    """The figure without holes smaller than a limb's width."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats((~figure).astype(np.uint8), connectivity=4)
    filled = figure.copy()
    for label in range(1, count):
        if stats[label, cv2.CC_STAT_AREA] < 0.002 * figure.size:
            touches = stats[label, cv2.CC_STAT_LEFT] == 0 or stats[label, cv2.CC_STAT_TOP] == 0
            filled |= (labels == label) & (not touches)
    return filled


def _thick(flags: NDArray[np.uint8], radius: int) -> NDArray[np.uint8]:
    """Opening that drops slivers along the core but keeps thin limbs: a piece survives when part of it is thick."""
    opened = cv2.morphologyEx(np.pad(flags, radius), cv2.MORPH_OPEN, disc(radius))[radius:-radius, radius:-radius]
    count, labels, stats, _ = cv2.connectedComponentsWithStats(flags, connectivity=8)
    keep = opened.copy()
    # Thin limbs vanish in the opening: keep long leftovers whole.
    left = (flags > 0) & (opened == 0)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(left.astype(np.uint8), connectivity=8)
    for label in range(1, count):
        long = max(stats[label, cv2.CC_STAT_WIDTH], stats[label, cv2.CC_STAT_HEIGHT]) > 0.1 * len(flags)
        solid = stats[label, cv2.CC_STAT_AREA] > 2.2 * max(
            stats[label, cv2.CC_STAT_WIDTH], stats[label, cv2.CC_STAT_HEIGHT]
        )
        if long and solid:
            keep[labels == label] = 1
    return np.asarray(keep, np.uint8)


__all__ = ["FITTED_SCORE", "Fit", "Limb", "fit_limbs", "fit_skeleton"]
