"""OpenPose JSON folders (BODY_25, COCO-18) and ComfyUI's POSE_KEYPOINT JSON, both ways.

Read: exact (in float32) for every joint that both layouts hold.  Scores above 1 are cut to 1 (OpenPose writes some); a
joint with score 0 is missing and its coordinates become 0.  Pupils and mid-hip become extras (`extras.py`).
Write: the extras go back where their joints have not moved; else mid-hip is the middle of the hips, pupils are missing.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from animx.canvas import Canvas
from animx.errors import InputError
from animx.pose import extras, jsontext, native
from animx.pose.clip import Clip, Person, person_id, triples
from animx.pose.layouts import (
    BODY25_MID_HIP,
    FACE70_PUPILS,
    LEFT_PUPIL,
    MID_HIP_EXTRA,
    OURS_FROM_BODY25,
    RIGHT_PUPIL,
)
from animx.pose.sequence import MAX_PERSONS, PoseSequence
from animx.pose.skeleton import FACE, FEET, L_HIP, LEFT_HAND, R_HIP, RIGHT_HAND

OPENPOSE_18, OPENPOSE_25, POSE_KEYPOINT = "openpose-18", "openpose-25", "pose-keypoint"
MAX_FRAME_BYTES = 16 << 20
"""Largest file of one frame that is read [bytes]."""

_PARTS: dict[str, tuple[range, tuple[int, ...]]] = {
    "face_keypoints_2d": (FACE, (68, 70)),
    "hand_left_keypoints_2d": (LEFT_HAND, (21,)),
    "hand_right_keypoints_2d": (RIGHT_HAND, (21,)),
    "foot_keypoints_2d": (FEET, (6,)),
}


def read_openpose_folder(path: Path, canvas: Canvas | None = None, fps: Fraction | None = None) -> PoseSequence:
    """A folder of OpenPose JSON files, one a frame, in the order of the numbers in their names (gaps keep their time).

    `person_id`, where OpenPose tracked people, tells who is who.  Body of 25 or 18 joints, face of 70 (or 68), hands.
    """
    files = openpose_files(path)
    if not files:
        raise InputError(f"{path}: no OpenPose JSON files (*_keypoints.json) in this folder")
    clip = Clip(str(path), OPENPOSE_25, canvas, fps)
    digest = hashlib.sha256()
    for file in files:
        where = str(file)
        try:
            if file.stat().st_size > MAX_FRAME_BYTES:
                raise InputError(f"{where}: larger than {MAX_FRAME_BYTES >> 20} MB. It is no frame of a pose folder")
            data = file.read_bytes()
        except OSError as error:
            raise InputError(f"{where}: cannot be read ({error.strerror or error})") from error
        digest.update(data)
        frame = jsontext.parse(jsontext.decode(data, where), where)
        people, body = _people(frame, where)
        clip.kind = OPENPOSE_18 if body == 18 and not clip.frames else clip.kind
        _note_canvas(clip, frame, where)
        clip.add(people)
    numbers = [int(found[-1]) for file in files if (found := re.findall(r"\d{1,15}", file.stem))]
    if len(numbers) == len(files) and all(a < b for a, b in pairwise(numbers)):
        clip.numbers = numbers
    poses = clip.poses()
    return replace(poses, source={"name": path.name, "hash": digest.hexdigest(), **poses.source})


def openpose_files(path: Path) -> list[Path]:
    """The frame files of an OpenPose folder in time order; `*_keypoints.json`, else any `*.json`."""
    try:
        files = [file for file in path.iterdir() if file.suffix.lower() == ".json" and file.is_file()]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    frames = [file for file in files if file.stem.endswith("_keypoints")] or files
    return sorted(frames, key=lambda file: [part.zfill(20) for part in re.findall(r"\d+|\D+", file.name)])


def read_pose_keypoint(
    frames: Iterable[Any], where: str, canvas: Canvas | None = None, fps: Fraction | None = None
) -> PoseSequence:
    """The frames of ComfyUI's POSE_KEYPOINT JSON; coordinates in px, or as fractions of the canvas."""
    clip = Clip(where, POSE_KEYPOINT, canvas, fps, may_be_normalised=True)
    for t, frame in enumerate(frames):
        place = f"{where}: [{t}]"
        people, _ = _people(frame, place)
        _note_canvas(clip, frame, place)
        clip.add(people)
    return clip.poses()


def _people(frame: Any, where: str) -> tuple[list[Person], int]:
    """The people of a frame, and how many joints a body has in this file (0 when nobody is there)."""
    if not isinstance(frame, dict) or not isinstance(frame.get("people"), list):
        raise InputError(f"{where}: people: missing, or no list")
    if len(frame["people"]) > MAX_PERSONS:
        raise InputError(f"{where}: people: {len(frame['people'])} entries, at most {MAX_PERSONS}")
    people, joints = [], 0
    for n, entry in enumerate(frame["people"]):
        place = f"{where}: people[{n}]"
        if not isinstance(entry, dict):
            raise InputError(f"{place}: expected an object")
        person = Person(id=person_id(entry.get("person_id")))
        body = triples(entry.get("pose_keypoints_2d"), f"{place}.pose_keypoints_2d", (25, 18))
        if body is not None:
            joints = len(body)
            if joints == 25:
                person.points[: len(OURS_FROM_BODY25)] = body[list(OURS_FROM_BODY25)]
                person.extras[MID_HIP_EXTRA] = body[BODY25_MID_HIP]
            else:
                person.points[:18] = body
        for name, (ours, counts) in _PARTS.items():
            part = triples(entry.get(name), f"{place}.{name}", counts)
            if part is not None:
                person.points[ours.start : ours.stop] = part[: len(ours)]
                if len(part) == 70:
                    for extra, index in zip((RIGHT_PUPIL, LEFT_PUPIL), FACE70_PUPILS, strict=True):
                        person.extras[extra] = part[index]
        people.append(person)
    return people, joints


def _note_canvas(clip: Clip, frame: dict[str, Any], where: str) -> None:
    if "canvas_width" not in frame and "canvas_height" not in frame:
        return
    size = [frame.get("canvas_width"), frame.get("canvas_height")]
    whole = [int(side) if isinstance(side, float) and side.is_integer() else side for side in size]
    try:
        canvas = native.read_canvas(whole)
    except InputError as error:
        raise InputError(f"{where}: canvas_width, canvas_height: {error}") from error
    if clip.frames and clip.canvas is not None and canvas != clip.canvas:
        raise InputError(f"{where}: canvas {canvas} after {clip.canvas}: the frames of a clip share one canvas")
    clip.canvas = canvas


# ---- writing -----------------------------------------------------------------------------------------------------


def write_folder(poses: PoseSequence, folder: Path, stem: str, body: int) -> list[str]:
    """Write `STEM_000000000000_keypoints.json` ... into `folder`; `body` is 25 or 18.  Returns the extras left out."""
    people, left_out = _frames(poses, body, foot=False)
    for number, persons in zip(_numbers(poses), people, strict=True):
        frame = {
            "version": 1.3,
            "canvas_width": poses.canvas.width,
            "canvas_height": poses.canvas.height,
            "people": [{"person_id": [poses.person_ids[p]], **parts} for p, parts in persons],
        }
        (folder / f"{stem}_{number:012d}_keypoints.json").write_text(_compact(frame) + "\n", encoding="utf-8")
    return left_out


def pose_keypoint_lines(poses: PoseSequence, left_out: list[str]) -> Iterator[str]:
    """The POSE_KEYPOINT text, a frame a line, px.  The extras left out are appended to `left_out` first."""
    people, dropped = _frames(poses, 18, foot=True)
    left_out += dropped
    yield "[\n"
    for t, persons in enumerate(people):
        frame = {
            "people": [parts for _, parts in persons],
            "canvas_height": poses.canvas.height,
            "canvas_width": poses.canvas.width,
        }
        yield _compact(frame) + (",\n" if t + 1 < poses.frames else "\n")
    yield "]\n"


def _numbers(poses: PoseSequence) -> list[int]:
    """Frame numbers from the times; plain counting where two frames would get the same number."""
    numbers = np.rint((poses.times - poses.times[0]) * float(poses.fps))
    return numbers.astype(int).tolist() if (np.diff(numbers) > 0).all() else list(range(poses.frames))


_People = list[tuple[int, dict[str, list[float]]]]


def _frames(poses: PoseSequence, body: int, foot: bool) -> tuple[Iterator[_People], list[str]]:
    """Per frame the people present (their position, their parts), and the extras that this layout or a move loses."""
    points = np.concatenate([poses.keypoints, poses.scores[..., None]], axis=-1)
    held = extras.names(poses)
    found = {name: extras.unpack(poses, name) for name in held}
    left_out = []
    for name in held:
        if name == MID_HIP_EXTRA and body == 18:
            left_out.append(name)
        elif found[name][1]:
            left_out.append(f"{name} (its joints moved since it was read)")
    shown = {name for name, (joints, _) in _PARTS.items() if (poses.scores[:, :, joints] > 0).any()}
    if not foot:
        shown.discard("foot_keypoints_2d")
    hips = _mid_hip(points)
    if MID_HIP_EXTRA in found:
        given = found[MID_HIP_EXTRA][0]
        hips = np.where(given[..., 2:] > 0, given, hips)
    none = np.zeros((poses.frames, poses.persons, 3), np.float32)
    pupils = np.stack([found.get(name, (none, False))[0] for name in (RIGHT_PUPIL, LEFT_PUPIL)], axis=2)
    if (pupils[..., 2] > 0).any():
        shown.add("face_keypoints_2d")

    def people() -> Iterator[_People]:
        for t in range(poses.frames):
            yield [(p, parts(t, p)) for p in range(poses.persons) if (points[t, p, :, 2] > 0).any()]

    def parts(t: int, p: int) -> dict[str, list[float]]:
        mine = points[t, p]
        if body == 25:
            whole = np.empty((25, 3), np.float32)
            whole[list(OURS_FROM_BODY25)] = mine[: len(OURS_FROM_BODY25)]
            whole[BODY25_MID_HIP] = hips[t, p]
        else:
            whole = mine[:18]
        made = {"pose_keypoints_2d": _flat(whole)}
        for name, (joints, _) in _PARTS.items():
            if name == "foot_keypoints_2d" and name not in shown:
                continue
            part = mine[joints.start : joints.stop]
            if name == "face_keypoints_2d":
                part = np.concatenate([part, pupils[t, p]])
            made[name] = _flat(part) if name in shown else []
        return made

    return people(), left_out


def _mid_hip(points: NDArray[np.float32]) -> NDArray[np.float32]:
    hips = points[:, :, [R_HIP, L_HIP]]
    middle: NDArray[np.float32] = np.asarray(hips, np.float64).mean(axis=2).astype(np.float32)
    middle[..., 2] = hips[..., 2].min(axis=2)
    middle[middle[..., 2] == 0] = 0
    return middle


def _flat(points: NDArray[np.float32]) -> list[float]:
    values: list[float] = native.shortest(points).reshape(-1).tolist()
    return values


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":")).replace(".0,", ",").replace(".0]", "]")
