"""Points that a foreign layout holds and ours does not: the middle of the hips and the pupils of OpenPose.

They ride along in `source["extras"]` and go back out when the poses are written in that layout again.  An extra belongs
to the joints it hangs on (hips; the contour of its eye): while those keep their coordinates, whatever else happens to
the sequence (cut, another person dropped, arms removed), the extra holds.  Where they moved, it is left out and named.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from animx.pose.layouts import EXTRAS
from animx.pose.sequence import PoseSequence

KEY = "extras"


def pack(points: dict[str, NDArray[np.float32]], poses: PoseSequence) -> dict[str, Any]:
    """Extras [T, P, 3] (x, y px, score) by name as the JSON value for `source["extras"]`; absent ones are left out."""
    packed: dict[str, Any] = {}
    for name, array in points.items():
        if (array[..., 2] > 0).any():
            packed[name] = {
                "times": poses.times.tolist(),
                "person_ids": list(poses.person_ids),
                "points": [[[float(str(v)) for v in point] for point in frame] for frame in array],
                "anchors": _anchors(name, poses).tolist(),
            }
    return packed


def unpack(poses: PoseSequence, name: str) -> tuple[NDArray[np.float32], bool]:
    """The extra `name` as [T, P, 3], 0 where there is none, and whether one was left out because its joints moved."""
    found = np.zeros((poses.frames, poses.persons, 3), np.float32)
    packed = poses.source.get(KEY)
    entry = packed.get(name) if isinstance(packed, dict) else None
    if entry is None:
        return found, False
    try:
        rows = {float(t): i for i, t in enumerate(entry["times"])}
        columns = {int(p): i for i, p in enumerate(entry["person_ids"])}
        points = np.asarray(entry["points"], np.float32).reshape(len(rows), len(columns), 3)
        anchors = np.asarray(entry["anchors"], np.int64).reshape(len(rows), len(columns))
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError, RecursionError):
        return found, True  # somebody edited it by hand: it cannot be trusted
    points = np.where(np.isfinite(points), points, 0)
    points[..., 2] = points[..., 2].clip(0, 1)
    now = _anchors(name, poses)
    moved = False
    for t, time in enumerate(poses.times.tolist()):
        for p, person in enumerate(poses.person_ids):
            row, column = rows.get(time), columns.get(person)
            if row is None or column is None:
                moved = True
            elif anchors[row, column] == now[t, p]:
                found[t, p] = points[row, column]
            elif points[row, column, 2] > 0:
                moved = True
    return found, moved


def names(poses: PoseSequence) -> list[str]:
    """The extras that ride along with `poses`."""
    packed = poses.source.get(KEY)
    return [name for name in EXTRAS if name in packed] if isinstance(packed, dict) else []


def _anchors(name: str, poses: PoseSequence) -> NDArray[np.int64]:
    """[T, P] checksums of the joints that an extra hangs on; of all joints where none of those is seen."""
    near = list(EXTRAS[name])
    sums = np.zeros((poses.frames, poses.persons), np.int64)
    for t in range(poses.frames):
        for p in range(poses.persons):
            seen = (poses.scores[t, p, near] > 0).any()
            points = poses.keypoints[t, p, near] if seen else poses.keypoints[t, p]
            # + 0: a negative zero is the same place.
            sums[t, p] = zlib.crc32(np.ascontiguousarray(points + np.float32(0)).tobytes())
    return sums
