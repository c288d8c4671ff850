"""Cuts the figure into layers: each swinging arm, each free leg, and the body with what hides behind the arms.

In: picture RGB, mask 0..1, anatomy.  Out: `Parts`, whose layers carry premultiplied RGBA textures on the canvas grid.
Below the row where the legs part each leg is a layer of its own; above it, skirt and coat stay whole.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from animx.puppet.anatomy import ARM, SIDES, Anatomy
from animx.puppet.arms import cut_arms, main_colours
from animx.puppet.matting import cut_out
from animx.puppet.regions import Flags, Grey, distance_to, leg_line, near, nearest_true

MARGIN = 3
"""Transparent border round a texture [px], so that bilinear sampling never leaves it."""


@dataclass(frozen=True)
class Layer:
    """One sheet of the puppet."""

    name: str
    """`body`, `right_arm`, `left_arm`, `right_leg`, `left_leg`, or `figure` when it moves as a whole."""
    texture: NDArray[np.uint8]  # RGBA [h, w, 4], premultiplied
    origin: tuple[int, int]
    """Canvas position of the texture's first pixel: x, y [px]; may be negative."""


@dataclass(frozen=True)
class Parts:
    """The figure, cut."""

    layers: tuple[Layer, ...]
    arm_radius: dict[str, float]
    """Half the thickness of each swinging arm [px]."""
    leg_radius: float
    """Half the thickness of a leg [px]."""
    leg_cut: float | None
    """y below which the legs are separate [px]; None: joined all the way or no legs."""
    region: Flags
    """[H, W]: where the body's weights are computed: the body with what lies behind the arms, and the legs."""
    leg_side: NDArray[np.int8]
    """[H, W]: 1 right leg, 2 left leg below `leg_cut`, 0 elsewhere."""


def cut(rgb: NDArray[np.uint8], mask: Grey, body: Anatomy) -> Parts:
    """Cut the figure of `rgb` [H, W, 3] under `mask` (0..1 [H, W]) into layers.  Deterministic."""
    alpha = _antialiased(mask)
    colours = _own_colours(rgb, alpha)
    solid = mask > 0.5
    nothing = np.zeros(solid.shape, np.int8)
    if not body.has_torso:
        return Parts((_layer("figure", colours, alpha),), {}, 0.0, None, solid, nothing)
    arms, radius = cut_arms(rgb, solid, body)
    layers: list[Layer] = []
    arm_pixels = np.zeros(solid.shape, bool)
    for region in arms.values():
        arm_pixels |= region
    own = solid & ~arm_pixels
    behind = _behind_arms(own, arm_pixels, solid, body, radius)
    leg_radius = _leg_radius(solid, body)
    leg_cut, leg_side = _split_legs(rgb, own, body)
    # the body's soft rim belongs to whichever part is nearest
    share = _soft_share(own, solid)
    body_alpha = alpha * share
    body_alpha[behind] = alpha[behind]
    body_colours = _fill_from(colours, own, behind)
    upper = body_alpha.copy()
    if leg_cut is not None:
        row = round(leg_cut)
        upper[row:][near(leg_side[row:] > 0, 2)] = 0
        for index, side in enumerate(SIDES, start=1):
            # the leg reaches up under the body, where both deform alike, so no seam opens
            reach = int(max(6.0, 0.6 * leg_radius))
            part = leg_side == index
            above = _above(part, row, reach, body, side, leg_radius) & own
            layers.append(_layer(f"{side}_leg", body_colours, body_alpha * near(part | above, 1)))
    layers.append(_layer("body", body_colours, upper))
    for side, region in arms.items():
        joint = np.zeros(solid.shape, np.uint8)
        centre = body.joints[ARM[side][0]]
        cv2.circle(joint, (int(centre[0]), int(centre[1])), round(radius[side] * 1.15), (1,), -1)
        whole = region | ((joint > 0) & solid & ~_other(arms, side))
        layers.append(_layer(f"{side}_arm", colours, alpha * _soft_share(whole, solid)))
    return Parts(tuple(layers), radius, leg_radius, leg_cut, solid & (own | behind), leg_side)


def _own_colours(rgb: NDArray[np.uint8], alpha: Grey) -> NDArray[np.uint8]:
    """The picture's colours, at the soft rim free of the background's."""
    clean = cut_out(rgb, alpha)
    a = np.maximum(clean[..., 3:], 1e-3)
    straight = np.clip(np.rint(clean[..., :3] / a * 255.0), 0, 255).astype(np.uint8)
    return np.where((alpha > 1e-3)[..., None] & (alpha < 1)[..., None], straight, rgb)


def _antialiased(mask: Grey) -> Grey:
    """The mask as alpha; a hard mask gets a soft rim of about one pixel."""
    soft = float(((mask > 0.02) & (mask < 0.98)).sum())
    rim = float(np.abs(np.diff((mask > 0.5).astype(np.int8), axis=0)).sum()) + 1.0
    if soft < 0.5 * rim:
        mask = cv2.GaussianBlur(mask, (0, 0), 0.7).astype(np.float32)
    return np.clip(mask, 0, 1).astype(np.float32)


def _layer(name: str, rgb: NDArray[np.uint8], alpha: Grey) -> Layer:
    covered = alpha > 1 / 512
    if not covered.any():
        return Layer(name, np.zeros((2 * MARGIN, 2 * MARGIN, 4), np.uint8), (0, 0))
    rows, columns = np.flatnonzero(covered.any(1)), np.flatnonzero(covered.any(0))
    y0, y1, x0, x1 = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    a = alpha[y0:y1, x0:x1, None]
    body = np.concatenate([rgb[y0:y1, x0:x1] * a, a * 255.0], -1)
    texture = np.pad(np.rint(body).astype(np.uint8), ((MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)))
    return Layer(name, texture, (int(x0) - MARGIN, int(y0) - MARGIN))


def _other(regions: dict[str, Flags], side: str) -> Flags:
    found = [region for name, region in regions.items() if name != side]
    return found[0] if found else np.zeros(next(iter(regions.values())).shape, bool)


def _soft_share(part: Flags, solid: Flags) -> Grey:
    """1 on the part and on the soft rim beside it, 0 on the other parts; softened by a pixel along inner cuts."""
    if not part.any():
        return np.zeros(part.shape, np.float32)
    owner = part[nearest_true(solid)] if solid.any() else part
    return np.asarray(cv2.blur(owner.astype(np.float32), (3, 3)), np.float32)


def _behind_arms(own: Flags, arm_pixels: Flags, solid: Flags, body: Anatomy, radius: dict[str, float]) -> Flags:
    """Arm pixels behind which the body goes on: its closing over an arm's width, and the shoulder-hip polygon."""
    if not radius:
        return np.zeros(own.shape, bool)
    reach = round(1.2 * float(np.mean(list(radius.values()))))
    brush = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    padded = np.pad(own.astype(np.uint8), reach)
    closed = cv2.morphologyEx(padded, cv2.MORPH_CLOSE, brush)[reach:-reach, reach:-reach] > 0
    trunk = np.zeros(own.shape, np.uint8)
    cv2.fillPoly(trunk, [np.rint(body.polygon()).astype(np.int32)], (1,))
    return np.asarray((closed | (trunk > 0)) & arm_pixels & solid, bool)


def _fill_from(rgb: NDArray[np.uint8], known: Flags, hole: Flags) -> NDArray[np.uint8]:
    """Continue the known texture into the hole by mirroring it at the nearest known pixel, slightly softened."""
    if not hole.any() or not known.any():
        return rgb
    # the outermost known pixels carry outline and halo: start a little inside
    inner = cv2.erode(known.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    inner = inner if inner.any() else known
    near_y, near_x = nearest_true(inner)
    rows, columns = np.nonzero(hole)
    ny, nx = near_y[rows, columns], near_x[rows, columns]
    my, mx = 2 * ny - rows, 2 * nx - columns
    height, width = known.shape
    inside = (my >= 0) & (my < height) & (mx >= 0) & (mx < width)
    my, mx = np.where(inside, my, ny), np.where(inside, mx, nx)
    good = inner[my, mx]
    my, mx = np.where(good, my, ny), np.where(good, mx, nx)
    filled = rgb.copy()
    filled[rows, columns] = rgb[my, mx]
    soft = cv2.GaussianBlur(filled, (0, 0), 2.5)
    filled[rows, columns] = soft[rows, columns]
    return filled


def _leg_radius(solid: Flags, body: Anatomy) -> float:
    if not body.legs:
        return 0.0
    depth = cv2.distanceTransform(np.pad(solid, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    lengths: list[np.float32] = []
    for side in body.legs:
        line = leg_line(body, side, 0.5)
        for a, b in itertools.pairwise(line):
            for t in (0.25, 0.5, 0.75):
                x, y = np.clip((a + t * (b - a)).astype(int), 0, np.array(body.size) - 1)
                lengths.append(depth[y, x])
    return max(float(np.median(np.array(lengths))), 0.012 * body.height, 3.0)


def _split_legs(rgb: NDArray[np.uint8], own: Flags, body: Anatomy) -> tuple[float | None, NDArray[np.int8]]:
    """The row where the legs part, and the side of each pixel below it (1 right, 2 left, 0 none).

    They part where the figure opens between the leg bones, or where, below the knees, the ground shows between them
    although the mask holds it: its colour is that of neither leg.
    """
    nothing = np.zeros(own.shape, np.int8)
    if len(body.legs) < 2:
        return None, nothing
    lines = {side: leg_line(body, side) for side in SIDES}
    top = int(max(float(line[0][1]) for line in lines.values()))
    bottom = int(min(min(float(line[-1][1]) for line in lines.values()) + 0.08 * body.height, own.shape[0] - 1))
    if any(line[-1][1] <= line[0][1] for line in lines.values()) or bottom <= top + 4:
        return None, nothing
    tolerance = max(2, round(0.012 * body.height))
    strange = _strange_between(rgb, own, lines)
    cut, open_rows = None, 0
    for y in range(top, bottom + 1):
        columns = [_column(line, y) for line in lines.values()]
        x0, x1 = min(columns), max(columns)
        span = np.s_[max(int(x0), 0) : int(x1) + 1]
        between = own[y, span] & ~strange[y, span]
        gap = bool(len(between)) and _longest_gap(between) > max(1.0, 0.05 * (x1 - x0))
        open_rows = open_rows + 1 if gap else 0
        if open_rows >= tolerance:
            cut = y - open_rows + 1
            break
    if cut is None:
        return None, nothing
    right, left = (distance_to(own.shape, [*lines[s], lines[s][-1] + (0.0, 0.1 * body.height)]) for s in SIDES)
    below = own.copy()
    below[:cut] = False
    leg_side = np.where(below, np.where(right <= left, 1, 2), 0).astype(np.int8)
    return float(cut), leg_side


def _strange_between(rgb: NDArray[np.uint8], own: Flags, lines: dict[str, list[NDArray[np.float64]]]) -> Flags:
    """Pixels below both knees, between the shins, that look like the ground beside the figure and unlike the shins."""
    found = np.zeros(own.shape, bool)
    if any(len(line) < 3 for line in lines.values()):
        return found
    top = max(int(max(float(line[1][1]) for line in lines.values())), 0)
    bottom = min(int(min(float(line[2][1]) for line in lines.values())), own.shape[0])
    if bottom - top < 8:
        return found
    lab = cv2.cvtColor(rgb[top:bottom], cv2.COLOR_RGB2LAB).astype(np.float32)
    ground = lab[~near(own, 5)[top:bottom]]
    if len(ground) < 100:
        return found
    grounds = main_colours(ground[:: max(1, len(ground) // 3000)], 10)
    for y in range(top, bottom):
        x0, x1 = sorted(round(_column(line, y)) for line in lines.values())
        third, row = (x1 - x0) // 3, lab[y - top]
        if third < 3 or x0 < 2 or x1 > own.shape[1] - 3:
            continue
        middle = row[x0 + third : x1 - third + 1]
        shins = np.concatenate([row[x0 - 2 : x0 + third // 2], row[x1 - third // 2 : x1 + 3]])
        unlike = np.linalg.norm(middle[:, None] - shins[None], axis=-1).min(1) > 30
        alike = np.linalg.norm(middle[:, None] - grounds[None], axis=-1).min(1) < 25
        odd = unlike & alike
        # a button or a stripe is no gap
        if odd.mean() > 0.5:
            found[y, x0 + third : x1 - third + 1] = odd
    return found


def _column(line: list[NDArray[np.float64]], y: float) -> float:
    """x of a leg's polyline at row y; straight down beyond its end."""
    points = np.array(line)
    for a, b in itertools.pairwise(points):
        if min(a[1], b[1]) <= y <= max(a[1], b[1]) and a[1] != b[1]:
            return float(a[0] + (b[0] - a[0]) * (y - a[1]) / (b[1] - a[1]))
    return float(points[-1][0] if y > points[-1][1] else points[0][0])


def _longest_gap(row: Flags) -> int:
    """Longest run of False in a row [px]."""
    best = run = 0
    for value in row:
        run = 0 if value else run + 1
        best = max(best, run)
    return best


def _above(part: Flags, row: int, reach: int, body: Anatomy, side: str, radius: float) -> Flags:
    """The strip of `reach` rows over the cut where the leg continues under the body."""
    top = max(row - reach, 0)
    strip = np.zeros(part.shape, bool)
    if row >= part.shape[0]:
        return strip
    columns = part[row : row + 3].any(0)
    strip[top:row] = columns[None]
    strip &= distance_to(part.shape, leg_line(body, side)) < 2.5 * radius
    return strip
