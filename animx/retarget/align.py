"""Alignment: give the driving poses the bone lengths, place and height of a reference, keeping their motion.

`robust` (default): lengths are medians over all frames where both joints of a bone are visible, every bone keeps its
angle and its foreshortening, the person's path is scaled to the character's height, feet keep their contact with the
ground.  Idempotent; equal for a driver that is moved or scaled as a whole; a missing bone never yields inf or NaN.
`released`: what the released tool does, see `animx.retarget.released`.  `none`: only fits to the reference's canvas.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from animx.canvas import Canvas, Fit, place
from animx.errors import NoFigureError, UsageError, nearest
from animx.pose.sequence import PoseSequence
from animx.pose.skeleton import (
    FACE,
    JOINTS,
    L_ANKLE,
    L_WRIST,
    LEFT_HAND,
    MID_HIP,
    NECK,
    NOSE,
    PARENT,
    R_ANKLE,
    R_WRIST,
    RIGHT_HAND,
)
from animx.retarget.groups import UNIT_INDEX, UNIT_OF, UNITS
from animx.retarget.history import cumulative_factors, factor_table
from animx.retarget.ops import person_points
from animx.retarget.tree import (
    CHUNK,
    HIP_BOTH,
    HIP_UNKNOWN,
    Array,
    Bools,
    lowest,
    median,
    mid_hip,
    over_gaps,
    scale,
)

log = logging.getLogger(__name__)

Mode = Literal["robust", "released", "none"]
MODES: tuple[Mode, ...] = ("robust", "released", "none")

SMALLEST_BONE = 0.025
"""A body bone shorter than this part of the upright figure is foreshortened to nothing: it cannot be measured."""
LARGEST_RATIO = 6.0
"""Faces, hands and feet whose size says more than this times the figure's own ratio (or less than its inverse) are
misdetections and take the figure's ratio."""
FLOOR_QUANTILE = 0.9
"""The floor is where this part of the frames has its lowest ankle above; jumps do not lift it."""

_BONES = 14
"""The first units are single bones of the body; the rest (face, hands, feet) are measured by many bones each."""

_CHILD = np.array(
    [*(unit.joints[0] for unit in UNITS[:_BONES]), *range(14, 24), *FACE, *LEFT_HAND[1:], *RIGHT_HAND[1:]], np.intp
)
_FROM_ROOT = [i for i, j in enumerate(_CHILD) if PARENT[j] == MID_HIP]
_PARENT = np.array([0 if PARENT[j] == MID_HIP else PARENT[j] for j in _CHILD], np.intp)
_HAND = np.array([1 if j in LEFT_HAND else 2 if j in RIGHT_HAND else 0 for j in _CHILD])
"""Which hand a bone belongs to.  Without a root (wrist or hand root) a whole hand hangs on the elbow and is not scaled
by its own ratio alone, so its bones are not measured then."""
_UNIT = UNIT_OF[_CHILD]
BONE_TABLE: tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp], Bools] = (
    _CHILD,
    np.array([PARENT[j] for j in _CHILD], np.intp),
    _HAND.astype(np.intp),
    np.array([PARENT[j] == MID_HIP and j != NECK for j in _CHILD]),
)
"""The measured bones [M]: child, parent (`MID_HIP` among them), hand (1 left, 2 right), and the hips' own bones."""
_SWAP = {"left": "right", "right": "left"}
_OTHER = {
    u: UNIT_INDEX["_".join(_SWAP.get(word, word) for word in UNITS[u].name.split("_"))]
    for u in range(_BONES, len(UNITS))
}
"""Face, hands and feet, each with the same part of the other side (the face with itself)."""
_UPRIGHT = np.zeros(_BONES)  # the bones that make up a standing figure's height
for _name, _weight in (("torso", 1), ("neck", 1)):
    _UPRIGHT[UNIT_INDEX[_name]] = _weight
for _name in ("right_thigh", "left_thigh", "right_shin", "left_shin"):
    _UPRIGHT[UNIT_INDEX[_name]] = 0.5

_ANKLES = [R_ANKLE, L_ANKLE]


@dataclass(frozen=True)
class Measure:
    """What alignment has to know of one person: bone lengths and where the person stands.  float64, px."""

    lengths: Array
    """[M] median length of each measured bone; 0 where never seen."""
    places: dict[str, Array]
    """Median place (x, y) of `mid_hip`, `neck`, `nose`, where ever seen."""
    floor: float | None
    """y of the floor under the ankles; None when no ankle is ever seen."""


def measure(
    points: NDArray[np.floating[Any]],
    visible: Bools,
    factors: Array,
    root: tuple[Array, NDArray[np.int8]] | None = None,
) -> Measure:
    """Measure one person: points [T, K, D >= 2] px, visible [T, K]; `factors` [U] are the cumulative ones.

    `root` is what `mid_hip` said, if that is known already.
    """
    mid, state = root or mid_hip(points[:, :18, :2].astype(np.float64), visible, factors)
    mid = mid[:, :2]
    x, y, shown = points[..., 0].T, points[..., 1].T, visible.T  # [K, T]
    always = np.ones(len(points), bool)
    rooted = np.stack([always, shown[L_WRIST] | shown[LEFT_HAND[0]], shown[R_WRIST] | shown[RIGHT_HAND[0]]])
    lengths = np.zeros(len(_CHILD))
    block = len(_CHILD) if len(points) <= CHUNK else 16  # memory
    for start in range(0, len(_CHILD), block):
        part = slice(start, start + block)
        child, parent = _CHILD[part], _PARENT[part]
        dx, dy = x[child].astype(np.float64), y[child].astype(np.float64)
        dx -= x[parent]
        dy -= y[parent]
        seen = shown[child] & shown[parent] & rooted[_HAND[part]]
        if start == 0:
            _from_root(dx, dy, seen, x, y, shown, mid, state)
        lengths[part] = _medians(np.sqrt(dx * dx + dy * dy), seen)
    return Measure(lengths, *standing(points[:, :18].astype(np.float64), visible, mid, state != HIP_UNKNOWN))


def standing(points: Array, visible: Bools, mid: Array, known: Bools) -> tuple[dict[str, Array], float | None]:
    """Where a person stands, the `places` and `floor` of `Measure`: points [T, >= 18, D], root `mid` where `known`."""
    places = {}
    if known.any():
        places["mid_hip"] = median(mid[known, :2])
    for name, joint in (("neck", NECK), ("nose", NOSE)):
        if visible[:, joint].any():
            places[name] = median(points[visible[:, joint], joint, :2])
    return places, _floor(*lowest(points[:, _ANKLES, 1], visible[:, _ANKLES]))


def _from_root(
    dx: Array, dy: Array, seen: Bools, x: Any, y: Any, shown: Bools, mid: Array, state: NDArray[np.int8]
) -> None:
    """Put the bones that start at the mid-hip in their rows: a hip only where both are seen, else its own length went
    into the guess; the torso so too, if there is any such frame."""
    both = state == HIP_BOTH
    for row in _FROM_ROOT:
        child = _CHILD[row]
        usable = both if child != NECK or both.any() else state != HIP_UNKNOWN
        dx[row], dy[row], seen[row] = x[child] - mid[:, 0], y[child] - mid[:, 1], shown[child] & usable


def _medians(values: Array, seen: Bools) -> Array:
    """Medians of the rows [M, T] over the seen values; 0 where none is."""
    ordered = np.sort(np.where(seen, values, np.inf), axis=1)
    count = seen.sum(axis=1)
    rows = np.arange(len(values))
    low, high = ordered[rows, np.maximum(count - 1, 0) // 2], ordered[rows, np.minimum(count // 2, values.shape[1] - 1)]
    return np.where(count > 0, (low + high) / 2, 0.0)


def _floor(low: Array, seen: Bools) -> float | None:
    """The `FLOOR_QUANTILE` of the seen values, interpolated; commutes with a move and a change of size."""
    if not seen.any():
        return None
    ordered = np.sort(low[seen].astype(np.float64))
    place = FLOOR_QUANTILE * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return float(ordered[below] + (ordered[above] - ordered[below]) * (place - below))


def ratios(driver: Measure, reference: Measure, factors: Array, fallback: float) -> tuple[Array, float]:
    """How many times as long each unit's bones [U], and the person as a whole, must become.

    `factors` [U] are the driver's cumulative ones: the target is the reference's length times the factor.  A bone that
    one of the two lacks takes the ratio of the whole; `fallback` is that ratio when they share no bone at all.
    """
    natural = driver.lengths / factors[_UNIT]
    shared = (natural > 0) & (reference.lengths > 0)
    body = shared[:_BONES]
    upright = _UPRIGHT * body if (_UPRIGHT * body).any() else body.astype(np.float64)
    # against the very bones that make the ratio of the whole: so a bone that is too short once is too short for ever
    own, target = natural[:_BONES], reference.lengths[:_BONES]
    body = body & (own > SMALLEST_BONE * (own @ upright)) & (target > SMALLEST_BONE * (target @ upright))

    def ratio(weights: Array) -> float:
        return float((reference.lengths @ weights) / (natural @ weights)) if weights.any() else 0.0

    weights = np.zeros(len(natural))
    weights[:_BONES] = upright * body if (upright * body).any() else body
    whole = ratio(weights) or ratio((shared & (_UNIT >= _BONES)).astype(np.float64)) or fallback

    result = np.full(len(UNITS), whole)
    result[:_BONES][body] = target[body] / own[body]
    sums = [np.bincount(_UNIT, lengths * shared, len(UNITS)) for lengths in (reference.lengths, natural)]
    extents = {u: float(sums[0][u] / sums[1][u]) if sums[1][u] else 0.0 for u in _OTHER}
    for u, measured in extents.items():
        # a hand that is seen in one picture only is as large as the other hand
        size = measured or extents[_OTHER[u]]
        if whole / LARGEST_RATIO <= size <= whole * LARGEST_RATIO:
            result[u] = size
    return result, whole


def alignment_shift(
    points: Array,
    placed: Array,
    visible: Bools,
    times: Array,
    mid: Array,
    known: Bools,
    driver: Measure,
    reference: Measure,
    whole: float,
) -> Array:
    """The shift [T, 2] that puts `placed` [T, >= 18, D], which was `points` before, on the reference's place.

    `mid` [T, D] and `known` [T] are the driver's root; `whole` is the ratio of the figure as a whole.
    """
    # feet first: whatever the legs' own ratio, the lower ankle goes the driver's way up and down, times the whole ratio
    low, seen = lowest(points[:, _ANKLES, 1], visible[:, _ANKLES])
    now, _ = lowest(placed[:, _ANKLES, 1], visible[:, _ANKLES])
    shift = np.zeros((len(points), 2))
    shift[:, 1] = over_gaps(whole * low - now, seen, times)
    # then the clip as a whole: onto the reference's place
    name = next((name for name in reference.places if name in driver.places), None)
    if name is not None:
        tracks = {"mid_hip": (whole * mid[:, :2], known)}
        for joint_name, joint in (("neck", NECK), ("nose", NOSE)):
            tracks[joint_name] = (placed[:, joint, :2], visible[:, joint])
        track, usable = tracks[name]
        shift += reference.places[name] - median((track + shift)[usable])
    floor = _floor(now + shift[:, 1], seen)
    if floor is not None and reference.floor is not None:
        shift[:, 1] += reference.floor - floor
    return shift


def align_points(
    points: NDArray[np.floating[Any]],
    visible: Bools,
    times: Array,
    reference: Measure,
    factors: Array,
    fallback: float,
    out: NDArray[np.floating[Any]],
) -> tuple[Array, float]:
    """The core of `robust` for one person: points [T, K, D] -> `out` of the same shape, computed in float64.

    Returns the ratios used ([U], whole).  Coordinates of joints that are not visible are not meaningful in `out`.
    """
    mid, state = mid_hip(points[:, :18].astype(np.float64), visible, factors)
    driver = measure(points, visible, factors, (mid, state))
    stretch, whole = ratios(driver, reference, factors, fallback)
    known = state != HIP_UNKNOWN

    def moved(rows: slice, joints: int) -> Array:
        part = points[rows, :joints].astype(np.float64)
        return part + scale(part, visible[rows, :joints], mid[rows], known[rows], stretch, whole)

    chunks = [slice(start, start + CHUNK) for start in range(0, len(points), CHUNK)]
    single = len(chunks) == 1
    placed = moved(chunks[0], points.shape[1]) if single else np.concatenate([moved(rows, 18) for rows in chunks])

    shift = alignment_shift(
        points[:, :18].astype(np.float64), placed[:, :18], visible, times, mid, known, driver, reference, whole
    )
    if single:
        placed[..., :2] += shift[:, None]
        out[...] = placed
    else:
        for rows in chunks:
            part = moved(rows, points.shape[1])
            part[..., :2] += shift[rows, None]
            out[rows] = part
    return stretch, whole


def align(poses: PoseSequence, reference: PoseSequence, mode: Mode = "robust") -> PoseSequence:
    """Give `poses` the bone lengths, place and height of `reference`, keeping their motion, on `reference.canvas` [px].

    Every person of `poses` is aligned to the first person of `reference` (one frame, or a clip: medians).  Lengths that
    were rescaled before (see `history`) keep their factor.  Joints with score 0 stay 0 and take no part.  `robust` is
    idempotent; modes: see the module.  A reference without any joint is a `NoFigureError`.
    """
    if mode not in MODES:
        raise UsageError(f"--align {mode}: use robust, released or none.{nearest(str(mode), MODES)}")
    if mode == "none":
        return fit(poses, reference.canvas)
    if not (reference.scores[:, 0] > 0).any():
        raise NoFigureError("the reference pose has no visible joint. Use --ref-pose FILE, or --align none")
    if mode == "released":
        from animx.retarget.released import align_released

        return align_released(poses, reference)
    factors = cumulative_factors(poses.history)
    target = measure(reference.keypoints[:, 0], reference.scores[:, 0] > 0, np.ones(len(UNITS)))
    fallback = min(
        reference.canvas.width / poses.canvas.width,
        reference.canvas.height / poses.canvas.height,
    )
    keypoints = np.zeros_like(poses.keypoints)
    depth = None if poses.depth is None else np.zeros_like(poses.depth)
    scales = []
    for p in range(poses.persons):
        visible = poses.scores[:, p] > 0
        if not visible.any():
            continue
        points = person_points(poses, p)
        moved = keypoints[:, p] if depth is None else np.empty_like(points)
        scales.append(align_points(points, visible, poses.times, target, factors, fallback, moved)[1])
        if depth is not None:
            keypoints[:, p], depth[:, p] = moved[..., :2], moved[..., 2]
    keypoints.setflags(write=False)  # a read-only array is shared, not copied
    step: dict[str, Any] = {"op": "align", "mode": "robust", "scale": [round(value, 6) for value in scales]}
    if kept := factor_table(factors):
        step["kept"] = kept
    log.debug("aligned: ratio of the whole figure %s", scales)
    return replace(poses, keypoints=keypoints, depth=depth, canvas=reference.canvas, history=(*poses.history, step))


def fit(poses: PoseSequence, canvas: Canvas, how: Fit = "cover") -> PoseSequence:
    """The poses on another canvas by a plain map, as frames are fitted (`cover`, `contain`, `stretch`)."""
    if poses.canvas == canvas:
        return poses
    step = {"op": "fit", "fit": how, "canvas": [canvas.width, canvas.height]}
    return replace(poses.on(canvas, place(poses.canvas, canvas, how)), history=(*poses.history, step))


assert len(_CHILD) + 2 == JOINTS  # every joint but the two hand roots, which lie on the wrists
