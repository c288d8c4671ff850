"""What of a figure can move: its joints, the limbs that may swing, and what must stay, each with a reason.

In: the mask (coverage 0..1 [H, W]) and the reference pose (or None).  Out: an `Anatomy`, read by the parts, the motion
and the weights.  Left and right are the character's own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from animx.errors import NoFigureError
from animx.pose.sequence import PoseSequence
from animx.pose.skeleton import (
    L_ANKLE,
    L_EAR,
    L_ELBOW,
    L_EYE,
    L_HIP,
    L_KNEE,
    L_SHOULDER,
    L_WRIST,
    NECK,
    NOSE,
    R_ANKLE,
    R_EAR,
    R_ELBOW,
    R_EYE,
    R_HIP,
    R_KNEE,
    R_SHOULDER,
    R_WRIST,
)

SIDES = ("right", "left")
ARM = {"right": (R_SHOULDER, R_ELBOW, R_WRIST), "left": (L_SHOULDER, L_ELBOW, L_WRIST)}
LEG = {"right": (R_HIP, R_KNEE, R_ANKLE), "left": (L_HIP, L_KNEE, L_ANKLE)}
EYES, EARS = (R_EYE, L_EYE), (R_EAR, L_EAR)
BODY_JOINTS = 18

SMALLEST_FIGURE = 0.002
"""Smallest share of the picture a mask may cover; below there is nothing to move (`find_mask` is stricter)."""

FLESH = 1.7
"""How far a trunk reaches sideways beyond its joints, over their distance from its axis: so far a factor widens it."""


@dataclass(frozen=True)
class Anatomy:
    """The moving parts of one figure on the job's canvas [px]."""

    joints: NDArray[np.float64]  # [18, 2] px; rows that are not `seen` are 0 and never read
    seen: NDArray[np.bool_]  # [18]
    box: tuple[int, int, int, int]
    """The figure's bounding box: x0, y0, x1, y1 (exclusive) [px]."""
    size: tuple[int, int]
    """Width and height of the canvas [px]."""
    arms: tuple[str, ...] = ()
    """Sides whose arm swings on its own layer."""
    legs: tuple[str, ...] = ()
    """Sides whose leg follows the driver."""
    head: bool = False
    """There is a head: what lies above the neck can grow, shrink and, if it `nods`, tilt."""
    nods: bool = False
    """The head tilts about the neck; not when the face sits on the trunk."""
    cropped: bool = False
    """The lower border of the picture cuts the figure."""
    crown: float | None = None
    """y of the figure's top over its nose [px]; None without a head."""
    notes: tuple[str, ...] = field(default=())
    """What cannot be animated well, each a few words."""

    @property
    def height(self) -> float:
        """Height of the figure's box [px], the unit H of all relative measures."""
        return float(self.box[3] - self.box[1])

    @property
    def has_torso(self) -> bool:
        """A neck and a hip: enough to carry limbs.  Without it the figure moves as a whole."""
        return bool(self.seen[NECK] and (self.seen[R_HIP] or self.seen[L_HIP]))

    @property
    def neck(self) -> NDArray[np.float64]:
        """The neck [px]."""
        return np.asarray(self.joints[NECK], np.float64)

    @property
    def mid_hip(self) -> NDArray[np.float64]:
        """Middle of the hips that are there [px]; meaningless without `has_torso`."""
        hips = [j for j in (R_HIP, L_HIP) if self.seen[j]]
        return np.asarray(self.joints[hips].mean(0) if hips else np.zeros(2), np.float64)

    @property
    def torso_length(self) -> float:
        """Mid-hip to neck [px]."""
        return float(np.linalg.norm(self.neck - self.mid_hip))

    @property
    def floor(self) -> float | None:
        """y of the lower ankle [px]: where the figure stands; None without ankles."""
        ankles = [LEG[side][2] for side in self.legs if self.seen[LEG[side][2]]]
        return float(self.joints[ankles, 1].max()) if ankles else None

    def polygon(self, across: float = 1.0, along: float = 1.0) -> NDArray[np.float64]:
        """Shoulders and hips as a polygon [4, 2] px, shrunk about its middle.

        A missing shoulder or hip is taken from the other side, mirrored about the torso; with both missing from a
        quarter of the torso length beside it.
        """
        up = self.neck - self.mid_hip
        length = max(float(np.linalg.norm(up)), 1e-6)
        axis = up / length
        normal = np.array([-axis[1], axis[0]])
        corners = []
        for joint, other, root in (
            (R_SHOULDER, L_SHOULDER, self.neck),
            (L_SHOULDER, R_SHOULDER, self.neck),
            (L_HIP, R_HIP, self.mid_hip),
            (R_HIP, L_HIP, self.mid_hip),
        ):
            if self.seen[joint]:
                corners.append(self.joints[joint])
            elif self.seen[other] and np.linalg.norm(self.joints[other] - root) > 0.05 * length:
                offset = self.joints[other] - root
                corners.append(root + offset - 2 * normal * float(offset @ normal))
            else:
                # the axis points up, so its normal points to the picture's right, the character's left
                side = 1.0 if joint in (L_SHOULDER, L_HIP) else -1.0
                corners.append(root + side * 0.25 * length * normal)
        quad = np.array(corners)
        middle = quad.mean(0)
        local = quad - middle
        a, b = local @ axis, local @ normal
        return np.asarray(middle + np.outer(a * along, axis) + np.outer(b * across, normal), np.float64)

    @property
    def shoulder_width(self) -> float:
        """Distance of the shoulders [px], a quarter-torso guess each side where one is missing."""
        quad = self.polygon()
        return float(np.linalg.norm(quad[0] - quad[1]))


def study(mask: NDArray[np.float32], pose: PoseSequence | None) -> Anatomy:
    """Decide what of the figure under `mask` (0..1 [H, W]) can move, given its own pose (one frame) or None.

    Raises `NoFigureError` when the mask is empty.
    """
    solid = mask > 0.5
    if solid.mean() < SMALLEST_FIGURE:
        raise NoFigureError(
            f"the mask covers {100 * float(solid.mean()):.2f} % of the picture: there is no figure in it. "
            "Give one with --mask FILE"
        )
    rows, columns = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    size = (mask.shape[1], mask.shape[0])
    joints = np.zeros((BODY_JOINTS, 2))
    seen = np.zeros(BODY_JOINTS, bool)
    if pose is not None:
        seen = pose.scores[0, 0, :BODY_JOINTS] > 0
        joints = np.where(seen[:, None], pose.keypoints[0, 0, :BODY_JOINTS].astype(np.float64), 0.0)
        if not seen[NECK] and seen[R_SHOULDER] and seen[L_SHOULDER]:
            joints[NECK], seen[NECK] = (joints[R_SHOULDER] + joints[L_SHOULDER]) / 2, True
    bare = Anatomy(joints, seen, box, size)
    if not bare.has_torso or bare.torso_length < 0.04 * bare.height:
        why = (
            "no limbs were found: the figure moves as a whole"
            if pose is None or not seen.any()
            else ("neck and hips were not found: the figure moves as a whole")
        )
        return Anatomy(joints, np.zeros(BODY_JOINTS, bool), box, size, notes=(why,))
    notes: list[str] = []
    cropped = _is_cropped(solid, bare)
    legs = tuple(s for s in SIDES if seen[LEG[s][0]] and seen[LEG[s][1]] and not cropped)
    if cropped:
        notes.append("the picture's border cuts the figure: legs stay")
    held = _held(solid, bare)
    arms = tuple(s for s in SIDES if seen[ARM[s][0]] and seen[ARM[s][1]] and not held[s])
    frozen = [s for s in SIDES if seen[ARM[s][0]] and seen[ARM[s][1]] and held[s]]
    if frozen:
        which = "arms lie" if len(frozen) == 2 else f"{frozen[0]} arm lies"
        notes.append(f"the {which} on the body in the picture: kept still")
    if not arms and not frozen and not legs:
        notes.append("no limbs that can swing were found")
    head = bool(seen[NOSE]) and float((joints[NOSE] - bare.neck) @ (bare.neck - bare.mid_hip)) > 0
    nods = head and not _face_on_body(solid, bare)
    crown = _crown(solid, joints[NOSE], 0.1 * bare.height) if head else None
    return Anatomy(joints, seen, box, size, arms, legs, head, nods, cropped, crown, tuple(notes))


def _crown(solid: NDArray[np.bool_], nose: NDArray[np.float64], reach: float) -> float | None:
    """Top of the figure over its nose, `reach` px to both sides [px]."""
    columns = solid[: max(int(nose[1]), 0), max(int(nose[0] - reach), 0) : max(int(nose[0] + reach), 0)]
    rows = np.flatnonzero(columns.any(1)) if columns.size else np.zeros(0)
    return float(rows[0]) if len(rows) else None


def _is_cropped(solid: NDArray[np.bool_], body: Anatomy) -> bool:
    height = body.size[1]
    if solid[-1].mean() <= 0.04:
        return False
    ankles = [j for j in (R_ANKLE, L_ANKLE) if body.seen[j]]
    if not ankles:
        return True
    # shoes may touch the border of a tightly cut picture; a figure that goes on far below its ankles is cut
    # (or its reflection belongs to the mask)
    return bool(height - body.joints[ankles, 1].max() > 0.12 * body.height or len(ankles) == 1)


def _held(solid: NDArray[np.bool_], body: Anatomy) -> dict[str, bool]:
    """Which arms lie on the trunk, so that cutting them off would tear the picture.

    A detector misses clasped hands by a few percent of the figure, so no single joint decides: the forearm lies on the
    trunk, or the hand lies deep inside the silhouette and on the trunk, or the hands meet; of two hands that are near
    each other one held arm holds the other.
    """
    wide = max(body.shoulder_width, 1e-6)
    rim = cv2.distanceTransform(np.pad(solid, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    quad = body.polygon().astype(np.float32).reshape(-1, 1, 2)

    def depth(point: NDArray[np.float64]) -> float:
        """How far inside the trunk a point lies, in shoulder widths; negative outside."""
        return float(cv2.pointPolygonTest(quad, (float(point[0]), float(point[1])), True)) / wide

    held = dict.fromkeys(SIDES, False)
    hands: list[NDArray[np.float64]] = []
    for side in SIDES:
        _, elbow, wrist = ARM[side]
        if not (body.seen[elbow] and body.seen[wrist]):
            continue
        forearm = body.joints[wrist] - body.joints[elbow]
        hand = body.joints[wrist] + 0.35 * forearm
        hands.append(hand)
        inside = [depth(body.joints[elbow] + t * forearm) > 0 for t in np.linspace(0.0, 1.0, 41)]
        buried = [
            float(rim[int(y), int(x)]) > 0.3 * wide and depth(point) > -0.1
            for point in (body.joints[wrist], hand)
            for x, y in [np.clip(point, 0, np.array(body.size) - 1)]
        ]
        held[side] = float(np.mean(inside)) > 0.55 or any(buried)
    if len(hands) == 2:
        apart = float(np.linalg.norm(body.joints[R_WRIST] - body.joints[L_WRIST])) / wide
        close = min(apart, float(np.linalg.norm(hands[0] - hands[1])) / wide)
        if apart < 0.6 or (any(held.values()) and close < 1.0):
            held = dict.fromkeys(SIDES, True)
    return held


def _face_on_body(solid: NDArray[np.bool_], body: Anatomy) -> bool:
    """The figure is about as wide at the neck as at face and chest: its face sits on the trunk, nothing can nod."""
    radius = cv2.distanceTransform(solid.astype(np.uint8), cv2.DIST_L2, 5)

    def at(point: NDArray[np.float64]) -> float:
        x, y = np.clip(point.astype(int), 0, np.array(body.size) - 1)
        return float(radius[y, x])

    nose = body.joints[NOSE]
    chest = body.neck + 0.35 * (body.mid_hip - body.neck)
    return at(body.neck) > 0.85 * max(at(nose), at(chest), 1.0)
