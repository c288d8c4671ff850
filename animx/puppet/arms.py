"""Which pixels belong to a swinging arm: a geodesic Voronoi cut, trimmed by rays and by the arm's own colours.

In: picture RGB, the figure's pixels, its anatomy.  Out: one region per arm and half its thickness.  Hair, bags and the
coat behind stay with the body; a drawn outline goes with the arm.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from animx.pose.skeleton import NOSE
from animx.puppet.anatomy import ARM, LEG, SIDES, Anatomy
from animx.puppet.geodesic import spread
from animx.puppet.regions import Flags, Grey, arm_line, distance_to, leg_line, near


@dataclass(frozen=True)
class Reach:
    """How far an arm reaches from its bones, measured by rays at points along them."""

    points: NDArray[np.float64]  # [R, 2] px, on the bones
    outer: NDArray[np.float64]  # [R] px, away from the trunk
    inner: NDArray[np.float64]  # [R] px, towards it
    bordered: Flags  # [R] the outer ray ended at a foreign colour or at a limit, not at the rim
    free: Flags  # [R] the inner ray came out at the rim: the arm hangs clear of the trunk there
    least: float

    @property
    def typical(self) -> tuple[float, float]:
        """Median outer and inner reach [px]."""
        return max(float(np.median(self.outer)), self.least), max(float(np.median(self.inner)), self.least)


def cut_arms(rgb: NDArray[np.uint8], solid: Flags, body: Anatomy) -> tuple[dict[str, Flags], dict[str, float]]:
    """Pixels [H, W] of each swinging arm of the figure `solid`, and half its thickness [px], by side."""
    if not body.arms:
        return {}, {}
    edges = _edge_strength(rgb, solid)
    lab = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB).astype(np.float32)
    reach = {side: _arm_reach(solid, lab, edges, body, side) for side in body.arms}
    radius = {side: sum(found.typical) / 2 for side, found in reach.items()}
    owner = _voronoi(solid, edges, body)
    arms: dict[str, Flags] = {}
    for index, side in enumerate(body.arms, start=1):
        region = owner == index
        region |= _beyond_shoulder(solid, body, side, radius[side]) & (owner <= 0)
        region = _trimmed(region, solid, lab, body, side, reach[side])
        arms[side] = region
    arms = _islands_home(arms, solid, body)
    _outlines_home(arms, solid, lab, body)
    _slivers_home(arms, solid, body)
    # rays pass an outline now and then: what was cut out says better how thick the arm is
    return arms, {side: min(radius[side], _half_thickness(region, body, side)) for side, region in arms.items()}


def _half_thickness(region: Flags, body: Anatomy, side: str) -> float:
    """Half the thickness of a cut arm between shoulder and wrist [px]: the median of its inscribed circles."""
    depth = cv2.distanceTransform(np.pad(region, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    found = []
    for bone, (a, b) in enumerate(itertools.pairwise(arm_line(body, side))):
        across = np.array([a[1] - b[1], b[0] - a[0]]) / max(float(np.linalg.norm(b - a)), 1e-6)
        for t in np.linspace(0.45 if bone == 0 else 0.05, 0.95, 8):
            line = a + t * (b - a) + np.linspace(-1, 1, 41)[:, None] * across * 0.08 * body.height
            x, y = np.clip(line.astype(int), 0, np.array(body.size) - 1).T
            found.append(float(depth[y, x].max()))
    return max(float(np.median(found)), 0.012 * body.height, 3.0)


def _edge_strength(rgb: NDArray[np.uint8], solid: Flags) -> Grey:
    """Lab gradient over its 90th percentile inside the figure [H, W]."""
    lab = cv2.GaussianBlur(cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB).astype(np.float32), (0, 0), 1.2)
    dx = cv2.Sobel(lab, cv2.CV_32F, 1, 0, ksize=3, scale=0.125)
    dy = cv2.Sobel(lab, cv2.CV_32F, 0, 1, ksize=3, scale=0.125)
    strength = np.sqrt((dx * dx + dy * dy).sum(-1))
    inside = cv2.erode(solid.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    scale = float(np.percentile(strength[inside], 90)) if inside.any() else 1.0
    return np.asarray(strength / max(scale, 1e-3), np.float32)


def _flatness(edges: Grey, solid: Flags) -> float:
    """1 for flat drawn art, whose outlines are the only edges, 0 for folds, fur and photographs."""
    inside = cv2.erode(solid.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    typical = float(np.median(edges[inside])) if inside.any() else 1.0
    return float(np.clip((0.12 - typical) / 0.05, 0.0, 1.0))


def _draw(shape: tuple[int, ...], line: list[NDArray[np.float64]], scale: float, thick: int) -> Flags:
    canvas = np.zeros(shape[:2], np.uint8)
    points = np.rint(np.array(line) * scale).astype(np.int32).reshape(-1, 1, 2)
    cv2.polylines(canvas, [points], False, (1,), thick)
    return canvas > 0


def _arm_reach(solid: Flags, lab: Grey, edges: Grey, body: Anatomy, side: str) -> Reach:
    """Cast rays sideways from the arm's bones.

    A ray ends at the rim or where the arm's colours end; a fold or an outline does not end it, the colour must stay
    foreign for a while.  Towards the trunk, where a coat may have the sleeve's colour, a strong edge ends it too.
    """
    line = arm_line(body, side)
    near_bone = distance_to(solid.shape, line) < max(2.0, 0.006 * body.height)
    colours = main_colours(lab[near_bone & solid]) if (near_bone & solid).sum() > 20 else None
    trunk = (body.neck + body.mid_hip) / 2
    patience = max(3, round(0.015 * body.height))
    limit = 0.6 * sum(float(np.linalg.norm(b - a)) for a, b in itertools.pairwise(line))
    starts, reaches, clear = [], [], []
    for bone, (a, b) in enumerate(itertools.pairwise(line)):
        d = b - a
        away = np.array([-d[1], d[0]]) / max(float(np.linalg.norm(d)), 1e-6)
        if float(away @ (trunk - a)) > 0:
            away = -away
        for t in np.linspace(0.45 if bone == 0 else 0.05, 0.95, 12):
            pair: list[int] = []
            for direction, stops_at_edges in ((away, False), (-away, True)):
                points = a + t * d + direction * np.arange(1, int(limit) + 2)[:, None]
                x, y = points[:, 0].astype(int), points[:, 1].astype(int)
                inside = (points >= 0).all(1) & (x < solid.shape[1]) & (y < solid.shape[0])
                inside[inside] = solid[y[inside], x[inside]]
                reach = int(np.argmin(inside)) if not inside.all() else len(inside)
                foreign = np.zeros(reach, bool)
                if colours is not None:
                    foreign = np.linalg.norm(lab[y[:reach], x[:reach], None] - colours, axis=-1).min(1) > 22
                pair += _ray_end(foreign, edges[y[:reach], x[:reach]] > 2.0, patience, stops_at_edges)
            clear.append(pair[2] == reach)
            starts.append(a + t * d)
            reaches.append(pair)
    found = np.array(reaches, np.float64)
    least = max(0.012 * body.height, 3.0)
    outer = _with_outline(found[:, 0], found[:, 1], patience)
    inner = _with_outline(found[:, 2], found[:, 3], patience)
    # beyond this it is no arm but a cape of the same colour
    limit = max(0.35 * body.shoulder_width, 0.06 * body.height)
    vast = outer > limit
    outer = np.minimum(outer, limit)
    cap = max(0.3 * body.shoulder_width, float(np.median(outer)), least)
    bordered = vast | ((found[:, 1] > found[:, 0]) & (outer == found[:, 0]))
    free = np.array(clear) & (inner <= cap)
    return Reach(np.array(starts), outer, np.minimum(_median5(inner), cap), bordered, free, least)


def _ray_end(foreign: Flags, strong: Flags, patience: int, stops_at_edges: bool) -> tuple[int, int]:
    """Where the arm's own colour ends on a ray of pixels, and where the foreign run behind it ends.

    A foreign run shorter than `patience` is a fold or a thin outline and ends nothing.
    """
    edge = len(foreign)
    if stops_at_edges:
        strong = strong.copy()
        strong[:patience] = False
        edge = int(np.argmax(strong)) if strong.any() else edge
        if len(foreign) - edge <= patience:
            edge = len(foreign)  # the rim's own edge
    starts = np.flatnonzero(np.diff(np.concatenate([[False], foreign, [False]]).astype(np.int8)))
    for start, end in starts.reshape(-1, 2):
        if end - start >= patience:
            # an edge a little before the run is the run's own
            return (int(start), int(end)) if start <= edge + patience else (edge, edge)
    return edge, edge


def _with_outline(starts: NDArray[np.float64], ends: NDArray[np.float64], patience: int) -> NDArray[np.float64]:
    """Reaches with a drawn outline added: when most rays meet a run of about the same thickness, it is the outline."""
    thick = ends - starts
    drawn = (thick >= patience) & (thick <= 4 * patience)
    if drawn.mean() < 0.6:
        return starts
    width = float(np.median(thick[drawn]))
    alike = drawn & (thick > 0.5 * width) & (thick < 1.6 * width)
    if alike.sum() < 0.7 * drawn.sum():
        return starts
    return np.where(thick > 0, np.minimum(ends, starts + 1.3 * width), starts)


def _median5(values: NDArray[np.float64]) -> NDArray[np.float64]:
    padded = np.pad(values, 2, mode="edge")
    return np.asarray(np.median(np.lib.stride_tricks.sliding_window_view(padded, 5), axis=1), np.float64)


def _voronoi(solid: Flags, edges: Grey, body: Anatomy) -> NDArray[np.int8]:
    """Geodesic Voronoi cells at half resolution: 0 body, 1.. the arms in order, -1 outside."""
    scale = 0.5 if max(solid.shape) > 400 else 1.0
    small = cv2.resize(solid.astype(np.uint8), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA).astype(bool)
    rough = cv2.resize(np.minimum(edges, 2.0), small.shape[::-1], interpolation=cv2.INTER_AREA)
    weight = 6.0 + 60.0 * _flatness(edges, solid)
    cost = np.where(small, 1.0 + weight * rough.astype(np.float64), -1.0)
    shape = small.shape
    band = max(1, round(0.16 * body.shoulder_width * scale))
    keep_off = np.zeros(shape, bool)
    seeds: list[Flags] = []
    for side in body.arms:
        keep_off |= _draw(shape, arm_line(body, side, 0.25, 0.45), scale, 2 * band)
        seeds.append(_draw(shape, arm_line(body, side, 0.25, 0.3), scale, max(1, round(0.012 * body.height * scale))))
    trunk = np.zeros(shape, np.uint8)
    cv2.fillPoly(trunk, [np.rint(body.polygon(0.6, 0.9) * scale).astype(np.int32)], (1,))
    cv2.polylines(trunk, [np.rint(np.array([body.neck, body.mid_hip]) * scale).astype(np.int32)], False, (1,), 2)
    if body.seen[NOSE]:
        nose = body.joints[NOSE]
        reach = 0.55 * float(np.linalg.norm(nose - body.neck)) * scale
        cv2.circle(trunk, (round(nose[0] * scale), round(nose[1] * scale)), max(1, round(reach)), (1,), -1)
    for side in SIDES:
        if body.seen[LEG[side][0]] and body.seen[LEG[side][1]]:
            trunk |= _draw(shape, leg_line(body, side), scale, 3).astype(np.uint8)
    spine = _draw(shape, [body.neck, body.mid_hip], scale, 1)
    labels = np.zeros(shape, np.int8)
    for label, seed in reversed(list(enumerate([((trunk > 0) & ~keep_off) | (spine & small), *seeds], 1))):
        labels[seed & small] = label  # where seeds meet, the body has the first right
    owner = np.maximum(spread(cost, labels)[0] - 1, 0).astype(np.int8)  # what nothing reaches is body
    owner = cv2.resize(owner, solid.shape[::-1], interpolation=cv2.INTER_NEAREST).astype(np.int8)
    return np.where(solid, owner, np.int8(-1)).astype(np.int8)


def _beyond_shoulder(solid: Flags, body: Anatomy, side: str, radius: float) -> Flags:
    """Pixels round the upper arm beyond the shoulder, for an arm that points away from the trunk."""
    shoulder, elbow, _ = ARM[side]
    upper = body.joints[elbow] - body.joints[shoulder]
    length = float(np.linalg.norm(upper))
    down = (body.mid_hip - body.neck) / body.torso_length
    if length < 1 or float(upper @ down) / length > 0.77:
        return np.zeros(solid.shape, bool)
    axis = upper / length
    rows, columns = np.indices(solid.shape, np.float32)
    px, py = columns + 0.5 - body.joints[shoulder][0], rows + 0.5 - body.joints[shoulder][1]
    along, across = px * axis[0] + py * axis[1], np.abs(py * axis[0] - px * axis[1])
    return np.asarray((along > 0.4 * radius) & (along < length) & (across < 1.3 * radius) & solid, bool)


def _trimmed(region: Flags, solid: Flags, lab: Grey, body: Anatomy, side: str, reach: Reach) -> Flags:
    """Give pixels far from the bones, or far and of foreign colour, back to the body."""
    far = distance_to(solid.shape, arm_line(body, side))
    _, elbow, wrist = ARM[side]
    outer, inner = reach.typical
    radius = (outer + inner) / 2
    # towards the trunk an arm is as thick as measured there; outward a sleeve may be wider
    trunk = _facing(solid.shape, body, side, (body.neck + body.mid_hip) / 2)
    nearest = np.zeros(solid.shape, np.intp)
    rows, columns = np.nonzero(region)
    gaps = (columns[:, None] + 0.5 - reach.points[:, 0]) ** 2 + (rows[:, None] + 0.5 - reach.points[:, 1]) ** 2
    nearest[rows, columns] = np.argmin(gaps, 1)
    wide = np.maximum(1.6 * max(outer, 0.7 * radius), 1.3 * reach.outer)
    wide = np.where(reach.bordered, np.maximum(_median5(reach.outer), reach.outer) + 4.0, wide)
    tight = np.minimum(np.maximum(reach.inner, 0.6 * inner) + 3.0, 1.25 * inner)
    tight = np.where(reach.free, np.maximum(tight, 1.6 * np.maximum(reach.inner, 0.7 * radius)), tight)
    allowed = np.where(trunk, tight[nearest], wide[nearest]).astype(np.float32)
    hand = np.zeros(solid.shape, bool)
    if body.seen[wrist]:
        forearm = body.joints[wrist] - body.joints[elbow]
        length = max(float(np.linalg.norm(forearm)), 1e-6)
        rows, columns = np.indices(solid.shape, np.float32)
        along = (columns + 0.5 - body.joints[wrist][0]) * np.float32(forearm[0] / length) + (
            rows + 0.5 - body.joints[wrist][1]
        ) * np.float32(forearm[1] / length)
        # a hand is wider than the forearm, and longer than wide
        hand = along > 0
        allowed = np.where(hand, np.float32(max(2.2 * radius, 0.75 * length)), allowed)
    region = region & (far < allowed)
    # thin foreign strokes are outlines and folds and stay; broad ones are hair, bags, the coat behind
    thick = 2 * max(2, round(max(0.2 * radius, 0.012 * body.height))) + 1
    brush = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (thick, thick))
    for zone, line in (
        (~hand, arm_line(body, side)),
        (hand, arm_line(body, side, 0.0, 0.45)[-2:]),
    ):
        distance = distance_to(solid.shape, line)
        core = lab[region & zone & (distance < 0.5 * radius)]
        if len(core) < 50:
            continue
        main = main_colours(core[:: max(1, len(core) // 3000)])
        # look a little beyond the arm: a lock of hair is thin where it crosses the sleeve, broad behind it
        y0, y1, x0, x1 = _around(region & zone, round(1.5 * radius))
        window = np.s_[y0:y1, x0:x1]
        unlike = np.min([np.linalg.norm(lab[window] - colour, axis=-1) for colour in main], 0)
        foreign = (solid[window] & (distance[window] > 0.6 * radius) & (unlike > 26)).astype(np.uint8)
        broad = cv2.morphologyEx(foreign, cv2.MORPH_OPEN, brush)
        for _ in range(round(radius)):
            broad = cv2.dilate(broad, np.ones((3, 3), np.uint8)) & foreign
        region[window] &= ~((broad > 0) & zone[window])
    return np.asarray(region, bool)


def _around(region: Flags, reach: int) -> tuple[int, int, int, int]:
    """The bounding box of a region grown by `reach`: y0, y1, x0, x1 [px]."""
    rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    if len(rows) == 0:
        return 0, 0, 0, 0
    return (
        max(int(rows[0]) - reach, 0),
        min(int(rows[-1]) + 1 + reach, region.shape[0]),
        max(int(columns[0]) - reach, 0),
        min(int(columns[-1]) + 1 + reach, region.shape[1]),
    )


def _facing(shape: tuple[int, ...], body: Anatomy, side: str, point: NDArray[np.float64]) -> Flags:
    """Pixels on the same side of the upper arm (or forearm, below the elbow) as `point`."""
    rows, columns = np.indices(shape, np.float32)
    line = arm_line(body, side)
    votes = []
    for a, b in itertools.pairwise(line):
        d = (b - a).astype(np.float32)
        cross = d[0] * (rows + 0.5 - np.float32(a[1])) - d[1] * (columns + 0.5 - np.float32(a[0]))
        votes.append(cross * float(d[0] * (point[1] - a[1]) - d[1] * (point[0] - a[0])) > 0)
    if len(line) == 2:
        return np.asarray(votes[0], bool)
    near_upper = distance_to(shape, line[:2]) < distance_to(shape, line[1:])
    return np.where(near_upper, votes[0], votes[1])


def main_colours(samples: Grey, count: int = 6, rounds: int = 8) -> Grey:
    """`count` cluster centres of colours [N, 3], by farthest-point start and plain k-means.  Deterministic."""
    centres = [np.median(samples, 0)]
    for _ in range(count - 1):
        gap = np.min([np.linalg.norm(samples - c, axis=1) for c in centres], 0)
        centres.append(samples[int(np.argmax(gap))])
    found = np.array(centres, np.float32)
    for _ in range(rounds):
        nearest = np.argmin(np.linalg.norm(samples[:, None] - found[None], axis=-1), 1)
        for i in range(count):
            if (nearest == i).any():
                found[i] = samples[nearest == i].mean(0)
    share = np.bincount(nearest, minlength=count) / len(samples)
    return np.asarray(found[share > 0.04], np.float32)


def _islands_home(arms: dict[str, Flags], solid: Flags, body: Anatomy) -> dict[str, Flags]:
    """Give islands back: arm pixels apart from its bones to the body, body pixels apart from the trunk to an arm."""
    spine = _draw(solid.shape, [body.neck, body.mid_hip], 1.0, 3)
    for side, region in arms.items():
        bones = _draw(solid.shape, arm_line(body, side, 0.3), 1.0, 3)
        arms[side] = _connected(region, bones & region)
    taken = np.any(list(arms.values()), 0)
    rest = solid & ~taken
    trunk = _connected(rest, rest & spine)
    count, labels, stats, _ = cv2.connectedComponentsWithStats((rest & ~trunk).astype(np.uint8), connectivity=4)
    for index in range(1, count):
        x, y, w, h = (int(v) for v in stats[index, :4])
        window = np.s_[max(y - 2, 0) : y + h + 2, max(x - 2, 0) : x + w + 2]
        island = labels[window] == index
        rim = near(island, 1) & ~island
        touches = {side: int((region[window] & rim).sum()) for side, region in arms.items()}
        side = max(touches, key=lambda name: touches[name])
        if touches[side] > int((trunk[window] & rim).sum()) and touches[side] > 0:
            arms[side][window] |= island
    return arms


def _outlines_home(arms: dict[str, Flags], solid: Flags, lab: Grey, body: Anatomy) -> None:
    """Give an arm the dark drawn line along its rim: without it the arm looks torn out, and the body keeps a wire."""
    width = max(2, round(0.009 * body.height))
    brush = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * width + 1, 2 * width + 1))
    light = np.ascontiguousarray(lab[..., 0])
    ridge = cv2.morphologyEx(light, cv2.MORPH_BLACKHAT, brush) > 30
    for side, region in arms.items():
        y0, y1, x0, x1 = _around(region, 2 * width)
        window = np.s_[y0:y1, x0:x1]
        free = (
            ridge[window]
            & solid[window]
            & ~np.any([r[window] for s, r in arms.items() if s != side] or [np.zeros(1, bool)], 0)
        )
        own = region[window] & ridge[window]
        if own.sum() < 30:
            continue
        # in the arm's own ink, or the next garment's outline would come along
        drawn = lab[window][own]
        ink = np.median(drawn[drawn[:, 0] <= np.median(drawn[:, 0])], 0)
        free &= np.linalg.norm((lab[window] - ink) * (0.4, 1, 1), axis=-1) < 27
        grown = region[window].astype(np.uint8)
        for _ in range(width):
            grown |= cv2.dilate(grown, np.ones((3, 3), np.uint8)) & free
        arms[side][window] |= grown > 0


def _slivers_home(arms: dict[str, Flags], solid: Flags, body: Anatomy) -> None:
    """Give an arm the thin strips of body that run along it: the body would keep them as wires in the air."""
    rest = (solid & ~np.any(list(arms.values()), 0)).astype(np.uint8)
    width = max(2, round(0.007 * body.height))
    brush = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * width + 1, 2 * width + 1))
    broad = cv2.morphologyEx(np.pad(rest, width), cv2.MORPH_OPEN, brush)[width:-width, width:-width] > 0
    count, labels, stats, _ = cv2.connectedComponentsWithStats(((rest > 0) & ~broad).astype(np.uint8), connectivity=8)
    for index in range(1, count):
        x, y, w, h = (int(v) for v in stats[index, :4])
        window = np.s_[max(y - 2, 0) : y + h + 2, max(x - 2, 0) : x + w + 2]
        sliver = labels[window] == index
        rim = near(sliver, 1) & ~sliver
        touches = {side: int((region[window] & rim).sum()) for side, region in arms.items()}
        side = max(touches, key=lambda name: touches[name])
        if touches[side] > 1.5 * int((broad[window] & rim).sum()) and touches[side] > 3:
            arms[side][window] |= sliver


def _connected(region: Flags, seed: Flags) -> Flags:
    """The connected pieces of `region` that hold a seed; the largest piece when none does."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(region.astype(np.uint8), connectivity=4)
    if count <= 1:
        return region.copy()
    keep = np.zeros(count, bool)
    keep[labels[seed & region]] = True
    keep[0] = False
    if not keep.any():
        keep[1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))] = True
    return np.asarray(keep[labels], bool)
