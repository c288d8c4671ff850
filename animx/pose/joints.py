"""Joints YAML: the joints of one picture for a person to look at, correct and hand back.

Written: canvas, the picture's name and hash, and one line a joint, `name: [x, y]` px or `null` for one that is missing.
Read: the same, strictly, and the `char_cfg.yaml` of AnimatedDrawings.  A joint that a person wrote is there: score 1.
A place outside the canvas is fine (a hand beyond the border); NaN and unknown names are not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from animx.atomic import writing
from animx.canvas import Canvas
from animx.errors import InputError, nearest
from animx.pose import native
from animx.pose.sequence import PoseSequence
from animx.pose.skeleton import BODY, BODY_NAMES, JOINT_NAMES, JOINTS

_FAR = 1e6
_CHAR_CFG: dict[str, str] = {
    "neck": "nose",
    "torso": "neck",
    "right_hand": "right_wrist",
    "left_hand": "left_wrist",
    "right_foot": "right_ankle",
    "left_foot": "left_ankle",
    **{
        f"{side}_{part}": f"{side}_{part}"
        for side in ("right", "left")
        for part in ("shoulder", "elbow", "hip", "knee")
    },
}
"""Joint names of AnimatedDrawings' characters -> ours.  Its `neck` is the point in the face, its `torso` lies between
the shoulders; its `root` and `hip` are the middle of the hips, which is no joint here."""


def write_joints(
    pose: PoseSequence,
    path: str | Path,
    picture_name: str,
    *,
    picture_hash: str = "",
    overwrite: bool = False,
) -> None:
    """Write the first frame of the first person as joints YAML, whole or not at all.

    All body joints stand in it, `null` where missing; feet, face and hands where they are seen.  Places are rounded to
    a tenth of a px.  `UsageError` when the file exists, without `overwrite`.
    """
    points, scores = pose.keypoints[0, 0], pose.scores[0, 0]
    picture_hash = picture_hash or str(pose.source.get("hash", ""))
    lines = [
        "# Joints of one picture, in px from its top-left corner.  Left and right are the character's own.",
        "# Correct them and hand the file back with --ref-pose.  null: the joint is missing.",
        f"canvas: [{pose.canvas.width}, {pose.canvas.height}]",
        f"picture: {native.to_json('picture', picture_name)}",
    ]
    if picture_hash:
        lines.append(f"hash: {native.to_json('hash', picture_hash)}")
    lines.append("joints:")
    for joint in range(JOINTS):
        if joint in BODY or scores[joint] > 0:
            x, y = (_decimal(float(v)) for v in points[joint])
            place = f"[{x}, {y}]" if scores[joint] > 0 else "null"
            lines.append(f"  {JOINT_NAMES[joint]}: {place}")
    with writing(path, overwrite) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _decimal(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def read_joints(path: str | Path) -> PoseSequence:
    """The pose in a joints YAML or a `char_cfg.yaml`: one frame, one person.  `InputError` with file and key."""
    from animx.config import read_yaml

    found = read_yaml(path)
    try:
        return _from_char_cfg(found) if "skeleton" in found else _from_joints(found)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def pose_of(
    places: Mapping[str, Sequence[float] | None], canvas: Canvas, source: Mapping[str, Any] | None = None
) -> PoseSequence:
    """A pose of one frame and one person from joint names and places [x, y] px; None is a missing joint."""
    points = np.zeros((1, 1, JOINTS, 2), np.float32)
    scores = np.zeros((1, 1, JOINTS), np.float32)
    index = {name: joint for joint, name in enumerate(JOINT_NAMES)}
    for name, place in places.items():
        if name not in index:
            raise InputError(f"joints: unknown joint '{name}'.{nearest(name, JOINT_NAMES)}")
        if place is not None:
            points[0, 0, index[name]] = _place(f"joints.{name}", place)
            scores[0, 0, index[name]] = 1
    if not scores.any():
        raise InputError("joints: none is given")
    return PoseSequence(points, scores, canvas, source=dict(source or {}))


def pose_of_annotation(entry: Mapping[str, Any]) -> PoseSequence:
    """The pose of an annotation with `size` [w, h] and `keypoints`: 18 times [x, y] or null, in OpenPose order."""
    keypoints = entry.get("keypoints")
    if not isinstance(keypoints, Sequence) or isinstance(keypoints, str) or len(keypoints) != len(BODY_NAMES):
        raise InputError(f"keypoints: expected {len(BODY_NAMES)} entries [x, y] or null")
    return pose_of(dict(zip(BODY_NAMES, keypoints, strict=True)), native.read_canvas(entry.get("size")))


def _from_joints(found: Mapping[str, Any]) -> PoseSequence:
    known = ("canvas", "picture", "hash", "joints")
    for key in found:
        if key not in known:
            raise InputError(f"unknown key '{key}'.{nearest(key, known)} Known: {', '.join(known)}")
    for key in ("canvas", "joints"):
        if key not in found:
            raise InputError(f"{key}: missing")
    places = found["joints"]
    if not isinstance(places, Mapping):
        raise InputError("joints: expected lines 'name: [x, y]'")
    source: dict[str, Any] = {"format": "joints"}
    for key, name in (("picture", "name"), ("hash", "hash")):
        if not isinstance(found.get(key, ""), str):
            raise InputError(f"{key}: expected a text in quotes")
        if found.get(key):
            source[name] = found[key]
    return pose_of(places, native.read_canvas(found["canvas"]), source)


def _from_char_cfg(found: Mapping[str, Any]) -> PoseSequence:
    skeleton = found["skeleton"]
    if not isinstance(skeleton, list) or not all(isinstance(joint, Mapping) for joint in skeleton):
        raise InputError("skeleton: expected a list of joints with name and loc")
    places: dict[str, Any] = {}
    for i, joint in enumerate(skeleton):
        name = joint.get("name")
        if not isinstance(name, str) or "loc" not in joint:
            raise InputError(f"skeleton[{i}]: name or loc is missing")
        if name in ("root", "hip"):
            continue
        if name not in _CHAR_CFG:
            raise InputError(f"skeleton[{i}]: unknown joint '{name}'.{nearest(name, _CHAR_CFG)}")
        places[_CHAR_CFG[name]] = joint["loc"]
    return pose_of(places, native.read_canvas([found.get("width"), found.get("height")]), {"format": "char_cfg"})


def _place(name: str, value: Any) -> tuple[float, float]:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise InputError(f"{name}: expected [x, y] in px, or null for a missing joint")
    for number in value:
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise InputError(f"{name}: '{number}' is no number")
        if abs(number) > _FAR or not math.isfinite(number):
            raise InputError(f"{name}: {str(number)[:20]} is no place near a picture")
    return float(value[0]), float(value[1])
