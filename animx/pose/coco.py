"""COCO-WholeBody JSON (133 joints), both ways.

Read: a data set (`images`, `annotations`) or a list of results; exact (in float32) for every joint that both layouts
hold.  The neck, which COCO does not hold, is the middle of the shoulders where both are there, with the lower score.
Write: a data set with one image a frame.  Visibility is the score, or the flags 0, 1, 2 when the poses came as flags.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from animx.canvas import Canvas
from animx.errors import InputError
from animx.pose import native
from animx.pose.clip import Clip, Person, person_id, triples
from animx.pose.layouts import COCO_PARTS, OURS_FROM_COCO133
from animx.pose.sequence import PoseSequence
from animx.pose.skeleton import JOINT_NAMES, L_SHOULDER, NECK, R_SHOULDER

COCO = "coco-wholebody"


def read(value: Any, where: str, canvas: Canvas | None = None, fps: Fraction | None = None) -> PoseSequence:
    """A frame is an image, in the order of `images` (results: by `image_id`); `track_id` tells who is who.

    Visibility is a score in 0..1, or the flags 0, 1, 2 when any is above 1; the flags become 0, 0.5, 1.
    """
    data: dict[str, Any] = value if isinstance(value, dict) else {"annotations": value}
    annotations = data.get("annotations")
    if not isinstance(annotations, list) or not all(isinstance(entry, dict) for entry in annotations):
        raise InputError(f"{where}: annotations: missing, or no list of objects")
    order, canvas = _coco_images(data, annotations, where, canvas)
    frames: dict[Any, list[Person]] = {image: [] for image in order}
    for n, entry in enumerate(annotations):
        place = f"{where}: annotations[{n}]"
        image = entry.get("image_id")
        if not isinstance(image, int | str) or image not in frames:
            raise InputError(f"{place}.image_id: names no image of this file")
        frames[image].append(_coco_person(entry, place))
    clip = Clip(where, COCO, canvas, fps)
    flags = any((person.points[:, 2] > 1).any() for people in frames.values() for person in people)
    for people in frames.values():
        for person in people:
            if flags:
                person.points[:, 2] /= 2
            _add_neck(person.points)
        clip.add(people)
    poses = clip.poses()
    if not flags:
        return poses
    return replace(poses, source={**poses.source, "visibility": "flags"})


def _coco_images(
    data: dict[str, Any], annotations: list[dict[str, Any]], where: str, canvas: Canvas | None
) -> tuple[list[Any], Canvas | None]:
    images = data.get("images")
    if images is None:
        ids = {entry.get("image_id") for entry in annotations if isinstance(entry.get("image_id"), int | str)}
        return sorted(ids, key=lambda i: (isinstance(i, str), i)), canvas
    if not isinstance(images, list) or not all(isinstance(entry, dict) for entry in images):
        raise InputError(f"{where}: images: no list of objects")
    order: list[int | str] = []
    for n, entry in enumerate(images):
        if not isinstance(entry.get("id"), int | str) or entry["id"] in order[-1:]:
            raise InputError(f"{where}: images[{n}].id: missing or doubled")
        order.append(entry["id"])
        if entry.get("width") and entry.get("height"):
            try:
                size = native.read_canvas([entry["width"], entry["height"]])
            except InputError as error:
                raise InputError(f"{where}: images[{n}]: {error}") from error
            if n and canvas is not None and size != canvas:
                raise InputError(f"{where}: images[{n}]: {size} after {canvas}: the frames of a clip share one canvas")
            canvas = size
    if len(set(order)) != len(order):
        raise InputError(f"{where}: images: an id stands twice")
    return order, canvas


def _coco_person(entry: dict[str, Any], where: str) -> Person:
    person = Person(id=person_id(entry.get("track_id")))
    value = entry.get("keypoints")
    if isinstance(value, list) and len(value) == 399:
        # All 133 joints in one list, as pose libraries write results.
        whole = triples(value, f"{where}.keypoints", (133,), 2.0)
        if whole is not None:
            person.points[:] = whole[list(OURS_FROM_COCO133)]
            person.points[NECK] = 0
        return person
    for name, ours in COCO_PARTS.items():
        part = triples(entry.get(name), f"{where}.{name}", (len(ours),), 2.0)
        if part is not None:
            person.points[list(ours)] = part
    return person


def _add_neck(points: NDArray[np.float32]) -> None:
    shoulders = points[[R_SHOULDER, L_SHOULDER]]
    points[NECK] = 0
    if (shoulders[:, 2] > 0).all():
        points[NECK, :2] = _middle(shoulders[:, :2])
        points[NECK, 2] = shoulders[:, 2].min()


def _middle(shoulders: NDArray[np.float32]) -> NDArray[np.float32]:
    middle: NDArray[np.float32] = np.asarray(shoulders, np.float64).mean(axis=-2).astype(np.float32)
    return middle


def neck_is_derived(poses: PoseSequence) -> bool:
    """Whether every neck is what reading the written file back gives, so that nothing is lost without it."""
    shoulders = poses.keypoints[:, :, [R_SHOULDER, L_SHOULDER]]
    score = poses.scores[:, :, [R_SHOULDER, L_SHOULDER]].min(axis=-1)
    expected = np.where(score[..., None] > 0, _middle(shoulders), np.float32(0))
    return bool(
        np.array_equal(poses.scores[:, :, NECK], score) and np.array_equal(poses.keypoints[:, :, NECK], expected)
    )


def lines(poses: PoseSequence) -> Iterator[str]:
    """The data set as text, an annotation a line."""
    factor = 2.0 if poses.source.get("visibility") == "flags" and np.isin(poses.scores, (0, 0.5, 1)).all() else 1.0
    width, height = poses.canvas.size
    order = COCO_PARTS["keypoints"]
    names = [JOINT_NAMES[joint] for joint in order]
    yield '{\n"info": {"description": "poses written by animx"},\n'
    yield f'"categories": [{json.dumps({"id": 1, "name": "person", "keypoints": names, "skeleton": []})}],\n'
    yield '"images": [\n'
    images = [
        json.dumps({"id": t, "file_name": f"frame_{t:06d}.png", "width": width, "height": height})
        for t in range(poses.frames)
    ]
    yield ",\n".join(images) + '\n],\n"annotations": [\n'
    number = 0
    for t in range(poses.frames):
        for p in range(poses.persons):
            if (poses.scores[t, p] > 0).any():
                number += 1
                text = json.dumps(_annotation(poses, t, p, number, factor), separators=(",", ":"))
                yield (",\n" if number > 1 else "") + text.replace(".0,", ",").replace(".0]", "]")
    yield "\n]\n}\n"


def _annotation(poses: PoseSequence, t: int, p: int, number: int, factor: float) -> dict[str, Any]:
    points, scores = poses.keypoints[t, p], poses.scores[t, p]
    triple = np.concatenate([points, (scores * np.float32(factor))[:, None]], axis=1)
    seen = points[scores > 0]
    x, y, right, bottom = (float(v) for v in (*seen.min(axis=0), *seen.max(axis=0)))
    made: dict[str, Any] = {
        "id": number,
        "image_id": t,
        "category_id": 1,
        "track_id": int(poses.person_ids[p]),
        "iscrowd": 0,
        "bbox": [round(v, 2) for v in (x, y, right - x, bottom - y)],
        "area": round((right - x) * (bottom - y), 2),
        "num_keypoints": int((scores[list(COCO_PARTS["keypoints"])] > 0).sum()),
    }
    for name, joints in COCO_PARTS.items():
        made[name] = native.shortest(triple[list(joints)]).reshape(-1).tolist()
        if name != "keypoints":
            made[name.replace("kpts", "valid")] = bool((scores[list(joints)] > 0).any())
    return made
