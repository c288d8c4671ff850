"""Alignment and one rescaling in one pass: what training does to every clip, a thousand times a second.

The same numbers as `align` (`robust`) and then `rescale`, within rounding: both are built of the same pieces, but the
134 joints are walked once instead of twice, nothing is rounded to float32 in between, and no history is written.
The laws are tested against the two operations themselves.  The two loops over all joints are compiled (numba).

Arrays: one person, T frames, K joints, float64 inside.  U the 19 units of `groups`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

from animx.pose.skeleton import FEET, L_WRIST, LEFT_HAND, MID_HIP, R_WRIST, RIGHT_HAND
from animx.retarget.align import BONE_TABLE, Measure, alignment_shift, ratios, standing
from animx.retarget.ops import Keep, keep_shift
from animx.retarget.tree import HIP_BOTH, HIP_UNKNOWN, Array, Bools, mid_hip, patterns

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Compile with numba: one thread, strict floating point, kept on disk between runs."""
    return cast(F, numba.njit(cache=True, nogil=True, error_model="numpy")(function))


LOWER = FEET.stop
"""Body and feet: the joints that decide where a figure is put."""
SHORT = 96
"""Clips up to this many frames are sorted by insertion."""
LEFT_ROOT, RIGHT_ROOT = LEFT_HAND[0], RIGHT_HAND[0]


def align_and_rescale(
    points: NDArray[np.floating[Any]],
    visible: Bools,
    times: Array,
    reference: Measure | None,
    factors: Array,
    keep: Keep = "ground",
    *,
    before: Array,
    fallback: float = 1.0,
) -> Array:
    """Points [T, K, 2] px aligned to `reference` (None: left where they are), then bones times `factors` [U], float64.

    `before` [U] are the cumulative factors of the points so far, `fallback` is the ratio of sizes when figure and
    reference share no bone.  Coordinates of joints that are not visible are neither read nor meaningful in the result.
    """
    frames, joints = points.shape[:2]
    nodes = np.empty((MID_HIP + 1, frames, 2))  # node-major: the path of a joint lies together
    nodes[:joints] = points.transpose(1, 0, 2)
    body = nodes[:LOWER].transpose(1, 0, 2)
    mid, state = mid_hip(body, visible, before)
    nodes[MID_HIP] = mid
    known = state != HIP_UNKNOWN
    plans = [(np.arange(frames) if rows is None else rows, plan) for rows, plan in patterns(visible, known, joints)]

    whole, shift, still = 1.0, np.zeros((frames, 2)), np.zeros((frames, 2))
    stretch = np.ones(len(factors))
    placed = nodes.copy() if reference is None else np.empty_like(nodes)
    if reference is not None:
        shown = np.ascontiguousarray(visible.T)
        driver = Measure(_lengths(nodes, shown, state, *BONE_TABLE), *standing(body, visible, mid, known))
        stretch, whole = ratios(driver, reference, before, fallback)
        for rows, plan in plans:
            first = plan.stretches(stretch)
            _walk(
                nodes, plan.anchor, plan.order, LOWER, first, np.ones(joints), rows, whole, still, whole * mid, placed
            )
        after = placed[:LOWER].transpose(1, 0, 2)
        shift = alignment_shift(body, after, visible, times, mid, known, driver, reference, whole)
        placed[:LOWER] += shift
    after = placed[:LOWER].transpose(1, 0, 2)
    root = mid_hip(after, visible, before)[0] if reference is not None else mid
    placed[MID_HIP] = root

    out, lower = np.empty((joints, frames, 2)), np.empty((LOWER, frames, 2))
    for rows, plan in plans:
        first, second = plan.stretches(stretch), plan.stretches(factors)
        if keep != "none":
            _walk(placed, plan.anchor, plan.order, LOWER, np.ones(joints), second, rows, 1.0, still, root, lower)
        _walk(nodes, plan.anchor, plan.order, joints, first, second, rows, whole, shift, root, out)
    if keep != "none":
        move = (lower - placed[:LOWER]).transpose(1, 0, 2)
        out += keep_shift(after, move, visible, times, before, keep)
    return out.transpose(1, 0, 2)


@compiled
def _walk(
    nodes: Array,
    anchor: NDArray[np.intp],
    order: NDArray[np.intp],
    joints: int,
    first: Array,
    second: Array,
    rows: NDArray[np.intp],
    whole: float,
    shift: Array,
    root: Array,
    out: Array,
) -> None:
    """Fill `out` [K, T, 2] at the frames `rows` for the first `joints` joints.

    Bones are stretched by `first` [K], then multiplied by `second` [K].  Bones from the mid-hip start anew at the
    aligned hips' own middle (`root` [T, 2]), as a second operation would.  `order` names the joints, those that hang
    on nothing before those that hang on others, outwards.
    """
    last = len(nodes) - 1
    for joint in order:
        if joint >= joints:
            continue
        parent = anchor[joint]
        near, both = first[joint], first[joint] * second[joint]
        for row in rows:
            for axis in range(2):
                here = nodes[joint, row, axis]
                if parent == joint:
                    out[joint, row, axis] = here * whole + shift[row, axis]
                elif parent == last:
                    old = nodes[last, row, axis]
                    aligned = whole * old + shift[row, axis] + (here - old) * near
                    out[joint, row, axis] = root[row, axis] + (aligned - root[row, axis]) * second[joint]
                else:
                    out[joint, row, axis] = out[parent, row, axis] + (here - nodes[parent, row, axis]) * both


@compiled
def _lengths(
    nodes: Array,
    shown: Bools,
    state: NDArray[np.int8],
    child: NDArray[np.intp],
    parent: NDArray[np.intp],
    hand: NDArray[np.intp],
    both_hips: Bools,
) -> Array:
    """[M] Median lengths of the bones of `measure`, from nodes [K+1, T, 2] and visibility [K, T]; 0 where never seen.

    `both_hips` marks the bones from the mid-hip that are measured only where both hips are seen.
    """
    frames = nodes.shape[1]
    last = len(nodes) - 1
    any_both = False
    for t in range(frames):
        any_both = any_both or state[t] == HIP_BOTH
    found = np.zeros(len(child))
    values = np.empty(frames)
    for m in range(len(child)):
        c, p = child[m], parent[m]
        count = 0
        for t in range(frames):
            if not shown[c, t]:
                continue
            if p == last:
                if state[t] == HIP_UNKNOWN or ((both_hips[m] or any_both) and state[t] != HIP_BOTH):
                    continue
            elif not shown[p, t]:
                continue
            if hand[m] == 1 and not (shown[L_WRIST, t] or shown[LEFT_ROOT, t]):
                continue
            if hand[m] == 2 and not (shown[R_WRIST, t] or shown[RIGHT_ROOT, t]):
                continue
            dx, dy = nodes[c, t, 0] - nodes[p, t, 0], nodes[c, t, 1] - nodes[p, t, 1]
            place, length = count, np.sqrt(dx * dx + dy * dy)
            if frames > SHORT:
                values[count] = length
            else:  # sorted in as it comes: faster than any sort of so few
                while place > 0 and values[place - 1] > length:
                    values[place] = values[place - 1]
                    place -= 1
                values[place] = length
            count += 1
        if count:
            some = np.sort(values[:count]) if frames > SHORT else values
            found[m] = (some[(count - 1) // 2] + some[count // 2]) / 2
    return found
