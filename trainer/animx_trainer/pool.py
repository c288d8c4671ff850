"""The pose pool: anchors that driving poses are realigned to in training (explicit pose indicator, paper section 3.2).

In: pose files, or folders of them.  Out: one pose file whose frames are the anchors, one person each, all on one
canvas; so every tool for pose files reads a pool.  Which frames are taken follows from the seed alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from animx.canvas import Canvas, place
from animx.errors import InputError, NoFigureError, UsageError
from animx.pose.detection import MIN_JOINT_SCORE
from animx.pose.sequence import PoseSequence
from animx.pose.skeleton import L_HIP, NECK, NOSE, R_HIP
from animx.retarget.align import Measure, measure
from animx.retarget.groups import UNITS

log = logging.getLogger("animx.data")

TRAINING = Canvas(512, 768)
"""The canvas of the paper [px]."""
SUFFIXES = (".npz", ".json")
MIN_ANCHOR_JOINTS = 9
"""An anchor shows at least this many of the 14 joints from nose to ankles."""
SMALLEST_ANCHOR = 0.15
"""An anchor is at least this part of its canvas high."""


@dataclass
class PosePool:
    """Anchors by number.  `on(canvas)` puts all of them on a training canvas."""

    poses: PoseSequence
    """One anchor a frame, one person."""
    _measures: dict[int, Measure] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.poses.persons != 1:
            raise InputError(f"pose pool: {self.poses.persons} persons, expected 1. Make a pool with: animx data pool")
        empty = ~(self.poses.scores[:, 0, :14] > 0).any(axis=1)
        if empty.any():
            raise InputError(
                f"pose pool: anchor {int(empty.argmax())} shows no joint. Make a pool with: animx data pool"
            )

    def __len__(self) -> int:
        return self.poses.frames

    def on(self, canvas: Canvas) -> PosePool:
        """The pool on another canvas; every anchor stays whole (`contain`)."""
        if canvas == self.poses.canvas:
            return self
        return PosePool(self.poses.on(canvas, place(self.poses.canvas, canvas, "contain")))

    def measured(self, index: int) -> Measure:
        """Bone lengths, place and floor of anchor `index` [px of the pool's canvas]."""
        if index not in self._measures:
            points, scores = self.poses.keypoints[index : index + 1, 0], self.poses.scores[index : index + 1, 0]
            self._measures[index] = measure(points, scores > 0, np.ones(len(UNITS)))
        return self._measures[index]


def load_pool(path: str | Path) -> PosePool:
    """A pool from a pose file; what is no usable pool is an `InputError` that names the file."""
    from animx.pose.formats import read_poses

    try:
        return PosePool(read_poses(path))
    except InputError as error:
        text = str(error)
        raise InputError(text if str(path) in text else f"{path}: {text}") from error


def pool_of(poses: PoseSequence, canvas: Canvas = TRAINING) -> PosePool:
    """Every usable frame of one clip's first person as an anchor; none is a `NoFigureError`."""
    rows = usable_anchors(poses)
    if not len(rows):
        raise NoFigureError("no frame of the clip can be an anchor. Give a pose pool with --pool")
    there = poses.on(canvas, place(poses.canvas, canvas, "contain"))
    scores = there.scores[rows, :1]
    scores = np.where(scores >= MIN_JOINT_SCORE, scores, np.float32(0))
    return PosePool(PoseSequence(there.keypoints[rows, :1], scores, canvas, source={"name": "pose pool"}))


def pose_files(paths: Sequence[str | Path]) -> list[Path]:
    """The pose files among `paths` and below folders of `paths`, sorted by name within each, each once.

    None at all is an `InputError`.  JSON files that hold no poses are left out inside folders.
    """
    from animx.pose.formats import is_pose_file

    found: dict[Path, None] = {}
    for one in map(Path, paths):
        if one.is_dir():
            inside = sorted(file for file in one.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
            hits = [file for file in inside if is_pose_file(file)]
            if not hits:
                raise InputError(f"{one}: no pose file in this folder. Make some with: animx pose extract VIDEO")
            found.update(dict.fromkeys(hits))
        elif one.exists():
            found[one] = None
        else:
            raise InputError(f"{one}: no such file")
    if not found:
        raise UsageError("a pose pool needs at least one pose file or folder of them")
    return list(found)


def usable_anchors(poses: PoseSequence, person: int = 0) -> NDArray[np.intp]:
    """The frames whose figure can be an anchor: upright, with a torso, most joints, inside the canvas and not tiny."""
    points, seen = poses.keypoints[:, person], poses.scores[:, person] >= MIN_JOINT_SCORE
    body, shown = points[:, :14].astype(np.float64), seen[:, :14]
    torso = seen[:, NECK] & (seen[:, R_HIP] | seen[:, L_HIP])
    enough = shown.sum(axis=1) >= MIN_ANCHOR_JOINTS
    top = np.where(shown, body[..., 1], np.inf).min(axis=1)
    bottom = np.where(shown, body[..., 1], -np.inf).max(axis=1)
    left = np.where(shown, body[..., 0], np.inf).min(axis=1)
    right = np.where(shown, body[..., 0], -np.inf).max(axis=1)
    margin = 0.1 * poses.canvas.long_side
    inside = (top > -margin) & (left > -margin) & (bottom < poses.canvas.height + margin)
    inside &= right < poses.canvas.width + margin
    hips = np.where(seen[:, R_HIP], body[:, R_HIP, 1], body[:, L_HIP, 1])
    upright = (body[:, NECK, 1] < hips) & (~seen[:, NOSE] | (body[:, NOSE, 1] < hips))
    tall = bottom - top >= SMALLEST_ANCHOR * poses.canvas.height
    return np.flatnonzero(torso & enough & inside & upright & tall)


def build_pool(
    paths: Sequence[str | Path],
    count: int = 1000,
    seed: int = 0,
    canvas: Canvas = TRAINING,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[PosePool, list[dict[str, Any]]]:
    """At most `count` anchors out of pose files, and what became of each file (`file`, `usable`, `taken`, `error`,
    `why`).

    Every file and person in turn gives one frame, drawn by the seed, until there are enough: files with long clips do
    not rule.  A file that cannot be read is left out, as if it were not there: its row has `error` true.  Nothing but
    such files, or no figure in the others, is an `InputError`; no usable figure in good files is a `NoFigureError`.
    """
    from animx.pose.formats import read_poses

    if count < 1:
        raise UsageError(f"-n {count}: a pool needs at least one anchor")
    files = pose_files(paths)
    report: list[dict[str, Any]] = []
    tracks: list[tuple[int, NDArray[np.float32], NDArray[np.float32]]] = []  # (file, points, scores) of usable frames
    rng = np.random.default_rng(seed)
    for number, file in enumerate(files):
        on_progress(number, len(files))
        try:
            poses = read_poses(file)
        except InputError as error:
            report.append({"file": str(file), "usable": 0, "taken": 0, "error": True, "why": str(error)})
            continue
        usable = 0
        there = poses.on(canvas, place(poses.canvas, canvas, "contain"))
        for person in range(poses.persons):
            rows = rng.permutation(usable_anchors(poses, person))[:count]
            usable += len(rows)
            if len(rows):
                tracks.append((number, there.keypoints[rows, person], there.scores[rows, person]))
        why = "" if usable else "no frame shows an upright figure with a torso and most of its joints"
        report.append({"file": str(file), "usable": usable, "taken": 0, "error": False, "why": why})
    on_progress(len(files), len(files))
    bad = [row["why"] for row in report if row["error"]]
    order = rng.permutation(len(tracks))
    picks: list[tuple[int, int]] = []
    turn = 0
    while len(picks) < count:
        some = [(int(t), turn) for t in order if turn < len(tracks[t][1])]
        if not some:
            break
        picks += some[: count - len(picks)]
        turn += 1
    if not picks and bad:
        raise InputError(bad[0] + (f" ({len(files)} pose files, none of them usable)" if len(files) > 1 else ""))
    if not picks:
        raise NoFigureError(f"no usable anchor in {len(files)} pose files: none shows an upright figure with a torso")
    keypoints = np.stack([tracks[t][1][row] for t, row in picks])[:, None]
    scores = np.stack([tracks[t][2][row] for t, row in picks])[:, None]
    for t, _ in picks:
        report[tracks[t][0]]["taken"] += 1
    scores = np.where(scores >= MIN_JOINT_SCORE, scores, np.float32(0))  # a guess is no anchor
    source = {"name": "pose pool", "files": len(files) - len(bad), "seed": seed}
    return PosePool(PoseSequence(keypoints, scores, canvas, source=source)), report
