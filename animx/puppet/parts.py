"""Cuts the figure into layers: each swinging arm, each free leg, and the body with what hides behind the arms.

In: picture RGB, mask 0..1, anatomy.  Out: `Parts`, whose layers carry premultiplied RGBA textures on the canvas grid.
The arm's border is a geodesic Voronoi cut (colour edges cost), trimmed by rays and by the arm's own colours so that
hair and coat stay with the body.  Below the row where the legs part each leg is a layer of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from animx.puppet.anatomy import ARM, LEG, SIDES, Anatomy
from animx.pose.skeleton import NOSE

Grey = NDArray[np.float32]
Flags = NDArray[np.bool_]

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
    """[H, W]: the ground the body's weights are computed on (the body with what lies behind the arms, and the legs)."""
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
    edges = _edge_strength(rgb, solid)
    arms, radius = _cut_arms(rgb, solid, edges, body)
    layers: list[Layer] = []
    arm_pixels = np.zeros(solid.shape, bool)
    for region in arms.values():
        arm_pixels |= region
    own = solid & ~arm_pixels
    behind = _behind_arms(own, arm_pixels, solid, body, radius)
    leg_radius = _leg_radius(solid, body)
    leg_cut, leg_side = _split_legs(own, body)
    # the body's soft rim belongs to whichever part is nearest
    share = _soft_share(own, solid)
    body_alpha = alpha * share
    body_alpha[behind] = alpha[behind]
    body_colours = _fill_from(colours, own, behind)
    upper = body_alpha.copy()
    if leg_cut is not None:
        row = int(round(leg_cut))
        upper[row:][_near(leg_side[row:] > 0, 2)] = 0
        for index, side in enumerate(SIDES, start=1):
            # the leg reaches up under the body, where both deform alike, so no seam opens
            reach = int(max(6.0, 0.6 * leg_radius))
            part = leg_side == index
            above = _above(part, row, reach, body, side, leg_radius) & own
            layers.append(_layer(f"{side}_leg", body_colours, body_alpha * _near(part | above, 1)))
    layers.append(_layer("body", body_colours, upper))
    for side, region in arms.items():
        joint = np.zeros(solid.shape, np.uint8)
        centre = body.joints[ARM[side][0]]
        cv2.circle(joint, (int(centre[0]), int(centre[1])), int(round(radius[side] * 1.15)), 1, -1)
        whole = region | ((joint > 0) & solid & ~_other(arms, side))
        layers.append(_layer(f"{side}_arm", colours, alpha * _soft_share(whole, solid)))
    return Parts(tuple(layers), radius, leg_radius, leg_cut, solid & (own | behind), leg_side)


def _own_colours(rgb: NDArray[np.uint8], alpha: Grey) -> NDArray[np.uint8]:
    """The picture's colours, at the soft rim free of the background's."""
    from animx.puppet.matting import cut_out

    clean = cut_out(rgb, alpha)
    a = np.maximum(clean[..., 3:], 1e-3)
    straight = np.clip(np.rint(clean[..., :3] / a * 255.0), 0, 255).astype(np.uint8)
    return np.where((alpha > 1e-3)[..., None] & (alpha < 1)[..., None], straight, rgb)


def nearest_true(known: Flags) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Row and column of the nearest True pixel, for every pixel.  `known` must hold one."""
    _, labels = cv2.distanceTransformWithLabels(
        (~known).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    rows, columns = np.nonzero(known)
    order = np.zeros((int(labels.max()) + 1, 2), np.intp)
    order[labels[rows, columns]] = np.stack([rows, columns], 1)
    return order[labels, 0], order[labels, 1]


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


def _near(region: Flags, reach: int) -> Flags:
    size = 2 * reach + 1
    return cv2.dilate(region.astype(np.uint8), np.ones((size, size), np.uint8)) > 0


def _other(regions: dict[str, Flags], side: str) -> Flags:
    found = [region for name, region in regions.items() if name != side]
    return found[0] if found else np.zeros(next(iter(regions.values())).shape, bool)


def _soft_share(part: Flags, solid: Flags) -> Grey:
    """1 on the part and on the soft rim beside it, 0 on the other parts; softened by a pixel along inner cuts."""
    if not part.any():
        return np.zeros(part.shape, np.float32)
    owner = part[nearest_true(solid)] if solid.any() else part
    return np.asarray(cv2.blur(owner.astype(np.float32), (3, 3)), np.float32)


def _edge_strength(rgb: NDArray[np.uint8], solid: Flags) -> Grey:
    """Lab gradient over its 90th percentile inside the figure [H, W]."""
    lab = cv2.GaussianBlur(cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB).astype(np.float32), (0, 0), 1.2)
    dx = cv2.Sobel(lab, cv2.CV_32F, 1, 0, ksize=3, scale=0.125)
    dy = cv2.Sobel(lab, cv2.CV_32F, 0, 1, ksize=3, scale=0.125)
    strength = np.sqrt((dx * dx + dy * dy).sum(-1))
    inside = cv2.erode(solid.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    scale = float(np.percentile(strength[inside], 90)) if inside.any() else 1.0
    return np.asarray(strength / max(scale, 1e-3), np.float32)


def _distance_to(shape: tuple[int, ...], points: list[NDArray[np.float64]]) -> Grey:
    """Distance of every pixel centre to a polyline [px]."""
    rows, columns = np.indices(shape[:2], np.float32)
    best = np.full(shape[:2], np.inf, np.float32)
    for a, b in zip(points[:-1], points[1:], strict=True):
        d = b - a
        px, py = columns + 0.5 - np.float32(a[0]), rows + 0.5 - np.float32(a[1])
        t = np.clip((px * np.float32(d[0]) + py * np.float32(d[1])) / np.float32(max(float(d @ d), 1e-6)), 0, 1)
        best = np.minimum(best, np.hypot(px - t * np.float32(d[0]), py - t * np.float32(d[1])))
    return best


def arm_line(body: Anatomy, side: str, start: float = 0.0, hand: float = 0.0) -> list[NDArray[np.float64]]:
    """The arm's bones as a polyline from `start` of the upper arm to `hand` forearm lengths beyond the wrist."""
    shoulder, elbow, wrist = ARM[side]
    line = [body.joints[shoulder] + start * (body.joints[elbow] - body.joints[shoulder]), body.joints[elbow]]
    if body.seen[wrist]:
        line.append(body.joints[wrist] + hand * (body.joints[wrist] - body.joints[elbow]))
    return line


def leg_line(body: Anatomy, side: str, start: float = 0.0) -> list[NDArray[np.float64]]:
    """The leg's bones as a polyline from `start` of the thigh to the ankle (or the knee)."""
    hip, knee, ankle = LEG[side]
    line = [body.joints[hip] + start * (body.joints[knee] - body.joints[hip]), body.joints[knee]]
    if body.seen[ankle]:
        line.append(body.joints[ankle])
    return line


def _draw(shape: tuple[int, ...], line: list[NDArray[np.float64]], scale: float, thick: int) -> Flags:
    canvas = np.zeros(shape[:2], np.uint8)
    points = np.rint(np.array(line) * scale).astype(np.int32).reshape(-1, 1, 2)
    cv2.polylines(canvas, [points], False, 1, thick)
    return canvas > 0


def _cut_arms(
    rgb: NDArray[np.uint8], solid: Flags, edges: Grey, body: Anatomy
) -> tuple[dict[str, Flags], dict[str, float]]:
    """Pixels of each swinging arm and the arm's radius [px]."""
    if not body.arms:
        return {}, {}
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
    return _islands_home(arms, solid, body), radius


@dataclass(frozen=True)
class Reach:
    """How far an arm reaches from its bones, measured by rays at points along them."""

    points: NDArray[np.float64]  # [R, 2] px, on the bones
    outer: NDArray[np.float64]  # [R] px, away from the trunk
    inner: NDArray[np.float64]  # [R] px, towards it
    bordered: Flags  # [R] the outer ray ended at a foreign colour, not at the rim
    least: float

    @property
    def typical(self) -> tuple[float, float]:
        """Median outer and inner reach [px]."""
        return max(float(np.median(self.outer)), self.least), max(float(np.median(self.inner)), self.least)


def _arm_reach(solid: Flags, lab: Grey, edges: Grey, body: Anatomy, side: str) -> Reach:
    """Cast rays sideways from the arm's bones.

    A ray ends at the rim or where the arm's colours end; a fold or an outline does not end it, the colour must stay
    foreign for a while.  Towards the trunk, where a coat may have the sleeve's colour, a strong edge ends it too.
    """
    line = arm_line(body, side)
    near_bone = _distance_to(solid.shape, line) < max(2.0, 0.006 * body.height)
    colours = _main_colours(lab[near_bone & solid]) if (near_bone & solid).sum() > 20 else None
    trunk = (body.neck + body.mid_hip) / 2
    patience = max(3, round(0.015 * body.height))
    limit = 0.6 * sum(float(np.linalg.norm(b - a)) for a, b in zip(line[:-1], line[1:], strict=True))
    starts, reaches = [], []
    for bone, (a, b) in enumerate(zip(line[:-1], line[1:], strict=True)):
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
            starts.append(a + t * d)
            reaches.append(pair)
    found = np.array(reaches, np.float64)
    least = max(0.012 * body.height, 3.0)
    outer = _with_outline(found[:, 0], found[:, 1], patience)
    inner = _with_outline(found[:, 2], found[:, 3], patience)
    cap = max(0.3 * body.shoulder_width, float(np.median(outer)), least)
    bordered = (found[:, 1] > found[:, 0]) & (outer == found[:, 0])
    return Reach(np.array(starts), outer, np.minimum(_median5(inner), cap), bordered, least)


def _ray_end(foreign: Flags, strong: Flags, patience: int, stops_at_edges: bool) -> tuple[int, int]:
    """Where the arm's own colour ends on a ray of pixels, and where the foreign run behind it ends.

    A foreign run shorter than `patience` is a fold or a thin outline and ends nothing.
    """
    edge = len(foreign)
    if stops_at_edges:
        strong = strong.copy()
        strong[:patience] = False
        edge = int(np.argmax(strong)) if strong.any() else edge
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
    from skimage.graph import MCP_Geometric

    scale = 0.5 if max(solid.shape) > 400 else 1.0
    small = cv2.resize(
        solid.astype(np.uint8), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA
    ).astype(bool)
    rough = cv2.resize(np.minimum(edges, 2.0), small.shape[::-1], interpolation=cv2.INTER_AREA)
    cost = np.where(small, 1.0 + 6.0 * rough.astype(np.float64), -1.0)
    shape = small.shape
    band = max(1, round(0.16 * body.shoulder_width * scale))
    keep_off = np.zeros(shape, bool)
    seeds: list[Flags] = []
    for side in body.arms:
        keep_off |= _draw(shape, arm_line(body, side, 0.25, 0.45), scale, 2 * band)
        seeds.append(_draw(shape, arm_line(body, side, 0.25), scale, max(1, round(0.012 * body.height * scale))))
    trunk = np.zeros(shape, np.uint8)
    cv2.fillPoly(trunk, [np.rint(body.polygon(0.6, 0.9) * scale).astype(np.int32)], 1)
    cv2.polylines(trunk, [np.rint(np.array([body.neck, body.mid_hip]) * scale).astype(np.int32)], False, 1, 2)
    if body.seen[NOSE]:
        nose = body.joints[NOSE]
        reach = 0.55 * float(np.linalg.norm(nose - body.neck)) * scale
        cv2.circle(trunk, (round(nose[0] * scale), round(nose[1] * scale)), max(1, round(reach)), 1, -1)
    for side in SIDES:
        if body.seen[LEG[side][0]] and body.seen[LEG[side][1]]:
            trunk |= _draw(shape, leg_line(body, side), scale, 3).astype(np.uint8)
    spine = _draw(shape, [body.neck, body.mid_hip], scale, 1)
    costs = []
    for seed in [((trunk > 0) & ~keep_off) | (spine & small), *seeds]:
        where = np.argwhere(seed & small)
        if len(where) == 0:
            costs.append(np.full(shape, np.inf))
            continue
        costs.append(MCP_Geometric(cost).find_costs([tuple(p) for p in where])[0])
    owner = np.argmin(np.stack(costs), 0).astype(np.int8)
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
    far = _distance_to(solid.shape, arm_line(body, side))
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
    brush = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * max(2, round(max(0.2 * radius, 0.012 * body.height))) + 1,) * 2)
    for zone, line in (
        (~hand, arm_line(body, side)),
        (hand, arm_line(body, side, 0.0, 0.45)[-2:]),
    ):
        distance = _distance_to(solid.shape, line)
        core = region & zone & (distance < 0.5 * radius)
        if core.sum() < 50:
            continue
        samples = lab[core][:: max(1, int(core.sum()) // 3000)]
        unlike = np.min([np.linalg.norm(lab - colour, axis=-1) for colour in _main_colours(samples)], 0)
        foreign = (region & zone & (distance > 0.6 * radius) & (unlike > 26)).astype(np.uint8)
        region = region & ~(cv2.morphologyEx(foreign, cv2.MORPH_OPEN, brush) > 0)
    return np.asarray(region, bool)


def _facing(shape: tuple[int, ...], body: Anatomy, side: str, point: NDArray[np.float64]) -> Flags:
    """Pixels on the same side of the upper arm (or forearm, below the elbow) as `point`."""
    rows, columns = np.indices(shape, np.float32)
    line = arm_line(body, side)
    votes = []
    for a, b in zip(line[:-1], line[1:], strict=True):
        d = (b - a).astype(np.float32)
        cross = d[0] * (rows + 0.5 - np.float32(a[1])) - d[1] * (columns + 0.5 - np.float32(a[0]))
        votes.append(cross * float(d[0] * (point[1] - a[1]) - d[1] * (point[0] - a[0])) > 0)
    if len(line) == 2:
        return np.asarray(votes[0], bool)
    near_upper = _distance_to(shape, line[:2]) < _distance_to(shape, line[1:])
    return np.where(near_upper, votes[0], votes[1])


def _main_colours(samples: Grey, count: int = 6, rounds: int = 8) -> Grey:
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
    """Give islands back: arm pixels apart from the arm's bones to the body, body pixels apart from the trunk to an arm."""
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
        rim = _near(island, 1) & ~island
        touches = {side: int((region[window] & rim).sum()) for side, region in arms.items()}
        side = max(touches, key=lambda name: touches[name])
        if touches[side] > int((trunk[window] & rim).sum()) and touches[side] > 0:
            arms[side][window] |= island
    return arms


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


def _behind_arms(own: Flags, arm_pixels: Flags, solid: Flags, body: Anatomy, radius: dict[str, float]) -> Flags:
    """Arm pixels behind which the body goes on: its closing over an arm's width, and the shoulder-hip polygon."""
    if not radius:
        return np.zeros(own.shape, bool)
    reach = int(round(1.2 * float(np.mean(list(radius.values())))))
    brush = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    padded = np.pad(own.astype(np.uint8), reach)
    closed = cv2.morphologyEx(padded, cv2.MORPH_CLOSE, brush)[reach:-reach, reach:-reach] > 0
    trunk = np.zeros(own.shape, np.uint8)
    cv2.fillPoly(trunk, [np.rint(body.polygon()).astype(np.int32)], 1)
    return np.asarray((closed | (trunk > 0)) & arm_pixels & solid, bool)


def _fill_from(rgb: NDArray[np.uint8], known: Flags, hole: Flags) -> NDArray[np.uint8]:
    """Continue the known texture into the hole by mirroring it at the nearest known pixel, softened along the middle."""
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
    lengths = []
    for side in body.legs:
        line = leg_line(body, side, 0.5)
        for a, b in zip(line[:-1], line[1:], strict=True):
            for t in (0.25, 0.5, 0.75):
                x, y = np.clip((a + t * (b - a)).astype(int), 0, np.array(body.size) - 1)
                lengths.append(float(depth[y, x]))
    return float(max(np.median(lengths), 0.012 * body.height, 3.0))


def _split_legs(own: Flags, body: Anatomy) -> tuple[float | None, NDArray[np.int8]]:
    """The row where the legs part, and the side of each pixel below it (1 right, 2 left, 0 none)."""
    nothing = np.zeros(own.shape, np.int8)
    if len(body.legs) < 2:
        return None, nothing
    lines = {side: leg_line(body, side) for side in SIDES}
    top = int(max(line[0][1] for line in lines.values()))
    bottom = int(min(min(line[-1][1] for line in lines.values()) + 0.08 * body.height, own.shape[0] - 1))
    if any(line[-1][1] <= line[0][1] for line in lines.values()) or bottom <= top + 4:
        return None, nothing
    tolerance = max(2, round(0.012 * body.height))
    cut, open_rows = None, 0
    for y in range(top, bottom + 1):
        x0, x1 = sorted(_column(line, y) for line in lines.values())
        between = own[y, max(int(x0), 0) : int(x1) + 1]
        gap = bool(len(between)) and _longest_gap(between) > max(1.0, 0.05 * (x1 - x0))
        open_rows = open_rows + 1 if gap else 0
        if open_rows >= tolerance:
            cut = y - open_rows + 1
            break
    if cut is None:
        return None, nothing
    right, left = (_distance_to(own.shape, [*lines[s], lines[s][-1] + (0.0, 0.1 * body.height)]) for s in SIDES)
    below = own.copy()
    below[:cut] = False
    leg_side = np.where(below, np.where(right <= left, 1, 2), 0).astype(np.int8)
    # what hangs below the cut without a leg of its own (a tail, a hem) and is far from both stays with the body
    return float(cut), leg_side


def _column(line: list[NDArray[np.float64]], y: float) -> float:
    """x of a leg's polyline at row y; straight down beyond its end."""
    points = np.array(line)
    for a, b in zip(points[:-1], points[1:], strict=True):
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
    strip &= _distance_to(part.shape, leg_line(body, side)) < 2.5 * radius
    return strip
