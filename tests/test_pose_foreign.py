"""OpenPose folders, POSE_KEYPOINT and COCO-WholeBody: exact both ways, losses named, extras kept while they hold."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from animx.canvas import Canvas
from animx.errors import InputError, UsageError
from animx.pose.formats import describe_poses, read_poses, write_poses
from animx.pose.layouts import to_openpose134
from animx.pose.sequence import PoseSequence
from animx.pose.skeleton import FACE, FEET, JOINT_NAMES, JOINTS, L_HIP, LEFT_HAND, NECK, R_HIP, RIGHT_HAND

RNG = np.random.default_rng(5)


def flat(points: np.ndarray) -> list[float]:
    return [round(float(v), 3) for v in points.reshape(-1)]


def triples(count: int) -> np.ndarray:
    """Random joints, about one in seven missing."""
    points = np.concatenate([RNG.uniform(0, 400, (count, 2)), RNG.uniform(0.05, 1, (count, 1))], axis=1)
    points[RNG.random(count) < 0.15] = 0
    return points.round(3)


def openpose_person(body: int = 25, number: int = -1, face: int = 70) -> dict[str, Any]:
    return {
        "person_id": [number],
        "pose_keypoints_2d": flat(triples(body)),
        "face_keypoints_2d": flat(triples(face)),
        "hand_left_keypoints_2d": flat(triples(21)),
        "hand_right_keypoints_2d": flat(triples(21)),
        "pose_keypoints_3d": [],
    }


def openpose_folder(folder: Path, frames: list[list[dict[str, Any]]]) -> Path:
    folder.mkdir()
    for t, people in enumerate(frames):
        path = folder / f"video_{t:012d}_keypoints.json"
        path.write_text(json.dumps({"version": 1.3, "people": people}))
    return folder


def parts_of(person: dict[str, Any]) -> dict[str, list[float]]:
    return {name: value for name, value in person.items() if name.endswith("_2d") and value}


def full(frames: int = 3, persons: int = 1, **extra: Any) -> PoseSequence:
    rng = np.random.default_rng(frames)
    points = rng.uniform(0, 300, (frames, persons, JOINTS, 2)).astype(np.float32)
    scores = rng.uniform(0.4, 1, (frames, persons, JOINTS)).astype(np.float32)
    return PoseSequence(points, scores, Canvas(310, 320), **extra)


# ---- OpenPose ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [25, 18])
def test_an_openpose_folder_goes_in_and_out_unchanged(tmp_path: Path, body: int) -> None:
    frames = [[openpose_person(body, 0), openpose_person(body, 4)] for _ in range(3)]
    poses = read_poses(openpose_folder(tmp_path / "in", frames), canvas=Canvas(400, 410))
    assert poses.person_ids == (0, 4)
    assert write_poses(poses, tmp_path / "out", kind="openpose") == []
    for t, people in enumerate(frames):
        back = json.loads((tmp_path / f"out/out_{t:012d}_keypoints.json").read_text())
        for theirs, ours in zip(people, back["people"], strict=True):
            assert ours["person_id"] == theirs["person_id"]
            for name, value in parts_of(theirs).items():
                if name == "pose_keypoints_2d" and body == 25:
                    given = np.array(value).reshape(-1, 3)
                    made = np.array(ours[name]).reshape(-1, 3)
                    keep = np.arange(25) != 8 if given[8, 2] == 0 else np.ones(25, bool)
                    assert np.array_equal(given[keep], made[keep])
                else:
                    assert ours[name] == value, name


def test_body25_joints_land_where_they_belong(tmp_path: Path) -> None:
    body = np.array([[i + 1, 100 + i, 0.5] for i in range(25)], float)
    person = {"pose_keypoints_2d": flat(body)}
    poses = read_poses(openpose_folder(tmp_path / "in", [[person]]), canvas=Canvas(200, 200))
    names = {name: poses.keypoints[0, 0, JOINT_NAMES.index(name), 0] - 1 for name in JOINT_NAMES[:24]}
    assert names["nose"] == 0
    assert names["right_wrist"] == 4
    assert names["right_hip"] == 9
    assert names["left_ankle"] == 14
    assert names["right_eye"] == 15
    assert names["left_ear"] == 18
    assert names["left_big_toe"] == 19
    assert names["right_heel"] == 24
    assert 8 not in names.values()
    assert describe_poses(poses)["extras"] == ["mid_hip"]


def test_pupils_and_mid_hip_ride_along_until_their_joints_move(tmp_path: Path) -> None:
    person = openpose_person()
    body, face = (
        np.array(person["pose_keypoints_2d"]).reshape(-1, 3),
        np.array(person["face_keypoints_2d"]).reshape(-1, 3),
    )
    body[[8, 9, 12]] = [[200, 210, 0.9], [190, 211, 0.8], [212, 209, 0.7]]
    face[:, 2] = 0.6
    person["pose_keypoints_2d"], person["face_keypoints_2d"] = flat(body), flat(face)
    poses = read_poses(openpose_folder(tmp_path / "in", [[person]] * 3), canvas=Canvas(400, 400))
    # Through both spellings of the native file, a cut, and a change of joints they do not hang on.
    write_poses(poses, tmp_path / "a.npz")
    write_poses(read_poses(tmp_path / "a.npz"), tmp_path / "a.json")
    scores = read_poses(tmp_path / "a.json").scores.copy()
    scores[..., 3:5] = 0
    kept = replace(read_poses(tmp_path / "a.json"), scores=scores).cut(1, 3)
    assert write_poses(kept, tmp_path / "kept", kind="openpose-25") == ["times"]
    made = json.loads((tmp_path / "kept/kept_000000000000_keypoints.json").read_text())["people"][0]
    assert made["pose_keypoints_2d"][24:27] == [200, 210, 0.9]
    assert made["face_keypoints_2d"][-6:] == person["face_keypoints_2d"][-6:]
    # The hips moved: mid-hip is made anew and that is said; the pupils stay.
    points = poses.keypoints.copy()
    points[:, :, [R_HIP, L_HIP], 1] += 50
    moved = replace(poses, keypoints=points)
    lost = write_poses(moved, tmp_path / "moved", kind="openpose-25")
    assert lost == ["mid_hip (its joints moved since it was read)"]
    made = json.loads((tmp_path / "moved/moved_000000000000_keypoints.json").read_text())["people"][0]
    assert made["pose_keypoints_2d"][24:27] == [201, 260, 0.7]
    assert made["face_keypoints_2d"][-6:] == person["face_keypoints_2d"][-6:]
    assert write_poses(poses, tmp_path / "coco.json", kind="coco")[-3:] == ["mid_hip", "right_pupil", "left_pupil"]


def test_gaps_between_frame_numbers_keep_their_time(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in (7, 8, 12):
        (folder / f"v_{number:012d}_keypoints.json").write_text(json.dumps({"people": [openpose_person(18)]}))
    poses = read_poses(folder, fps=Fraction(10), canvas=Canvas(400, 400))
    assert np.allclose(poses.times, [0, 0.1, 0.5])
    write_poses(poses, tmp_path / "out")
    numbers = sorted(path.name.split("_")[1] for path in (tmp_path / "out").iterdir())
    assert [int(number) for number in numbers] == [0, 1, 5]


def test_absent_people_and_changing_numbers_of_people_are_held(tmp_path: Path) -> None:
    frames = [[], [openpose_person(18)], [openpose_person(18), openpose_person(18)], []]
    poses = read_poses(openpose_folder(tmp_path / "in", frames), canvas=Canvas(400, 400))
    assert (poses.frames, poses.persons) == (4, 2)
    assert (poses.scores > 0).any(axis=2).tolist() == [[False, False], [True, False], [True, True], [False, False]]
    write_poses(poses, tmp_path / "out")
    again = read_poses(tmp_path / "out")
    assert np.array_equal(again.keypoints, poses.keypoints)


def test_a_canvas_that_no_file_tells_is_guessed_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    poses = read_poses(openpose_folder(tmp_path / "in", [[openpose_person()]]))
    assert "holds no canvas size" in caplog.text
    assert (poses.keypoints <= poses.canvas.size).all()


# ---- POSE_KEYPOINT -----------------------------------------------------------------------------------------------


def comfy(people: list[dict[str, Any]], width: int = 400, height: int = 420) -> dict[str, Any]:
    return {"people": people, "canvas_height": height, "canvas_width": width}


def test_pose_keypoint_json_goes_in_and_out_unchanged(tmp_path: Path) -> None:
    person = openpose_person(18)
    frames = [comfy([{**person, "foot_keypoints_2d": flat(triples(6))}]) for _ in range(3)]
    (tmp_path / "in.json").write_text(json.dumps(frames))
    poses = read_poses(tmp_path / "in.json")
    assert poses.canvas == Canvas(400, 420)
    assert write_poses(poses, tmp_path / "out.json", kind="pose-keypoint") == []
    for theirs, ours in zip(frames, json.loads((tmp_path / "out.json").read_text()), strict=True):
        assert ours["canvas_width"] == 400
        for name, value in parts_of(theirs["people"][0]).items():
            assert ours["people"][0][name] == value


def test_fractions_of_the_canvas_become_px(tmp_path: Path) -> None:
    body = triples(18)
    body[:, 2] = 1
    px = comfy([{"pose_keypoints_2d": flat(body), "face_keypoints_2d": None, "hand_left_keypoints_2d": []}])
    part = comfy([{"pose_keypoints_2d": [float(v) for v in (body / [400, 420, 1]).reshape(-1)]}])
    for name, frame in (("px", px), ("part", part)):
        (tmp_path / f"{name}.json").write_text(json.dumps(frame))
    first, second = (read_poses(tmp_path / f"{name}.json") for name in ("px", "part"))
    assert np.allclose(first.keypoints, second.keypoints, atol=1e-3)


def test_one_frame_alone_is_one_frame(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(comfy([openpose_person(18)])))
    assert read_poses(tmp_path / "a.json").frames == 1


# ---- COCO-WholeBody ----------------------------------------------------------------------------------------------


def coco_annotation(image: int, number: int, flags: bool = False) -> dict[str, Any]:
    made: dict[str, Any] = {"id": number, "image_id": image, "category_id": 1, "track_id": number % 10}
    for name, count in (("keypoints", 17), ("foot_kpts", 6), ("face_kpts", 68), ("lefthand_kpts", 21),
                        ("righthand_kpts", 21)):  # fmt: skip
        points = triples(count)
        if flags:
            points[:, 2] = RNG.integers(0, 3, count)
            points[points[:, 2] == 0] = 0
        made[name] = flat(points)
    return made


def coco_set(flags: bool = False) -> dict[str, Any]:
    images = [{"id": i, "width": 400, "height": 420, "file_name": f"{i}.jpg"} for i in (3, 5, 9)]
    people = [coco_annotation(image["id"], 10 * n + p, flags) for n, image in enumerate(images) for p in (0, 1)]
    return {"images": images, "annotations": people}


@pytest.mark.parametrize("flags", [False, True])
def test_a_coco_set_goes_in_and_out_unchanged(tmp_path: Path, flags: bool) -> None:
    data = coco_set(flags)
    (tmp_path / "in.json").write_text(json.dumps(data))
    poses = read_poses(tmp_path / "in.json")
    assert (poses.frames, poses.persons, poses.canvas) == (3, 2, Canvas(400, 420))
    assert write_poses(poses, tmp_path / "out.json", kind="coco") == []
    back = json.loads((tmp_path / "out.json").read_text())
    for theirs, ours in zip(data["annotations"], back["annotations"], strict=True):
        for name in ("keypoints", "foot_kpts", "face_kpts", "lefthand_kpts", "righthand_kpts"):
            assert ours[name] == theirs[name], name
        assert ours["num_keypoints"] == sum(v > 0 for v in theirs["keypoints"][2::3])


def test_coco_joints_land_where_the_detector_glue_puts_them(tmp_path: Path) -> None:
    points = RNG.uniform(1, 399, (133, 2)).round(2)
    flat133 = flat(np.concatenate([points, np.full((133, 1), 0.9)], axis=1))
    parts = {"keypoints": flat133[:51], "foot_kpts": flat133[51:69], "face_kpts": flat133[69:273],
             "lefthand_kpts": flat133[273:336], "righthand_kpts": flat133[336:]}  # fmt: skip
    expected, _ = to_openpose134(points[None], np.full((1, 133), 0.9))
    for value in (parts, {"keypoints": flat133}):
        (tmp_path / "a.json").write_text(json.dumps([{"image_id": 1, **value}]))
        made = read_poses(tmp_path / "a.json", canvas=Canvas(400, 400))
        assert np.allclose(made.keypoints[0, 0], expected[0], atol=1e-4)
        assert made.scores[0, 0, NECK] == np.float32(0.9)


# ---- both ways, all formats --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "held", "lost"),
    [
        ("openpose-25", range(JOINTS), ["fps", "depth", "history"]),
        ("openpose-18", [*range(18), *FACE, *LEFT_HAND, *RIGHT_HAND], [*JOINT_NAMES[18:24], "fps", "depth", "history"]),
        ("pose-keypoint", range(JOINTS), ["person_ids", "fps", "depth", "history"]),
        ("coco-wholebody", [j for j in range(JOINTS) if j != NECK], ["neck", "fps", "depth", "history"]),
    ],
)
def test_every_joint_that_both_layouts_hold_is_exact_and_the_rest_is_named(
    tmp_path: Path, kind: str, held: Any, lost: list[str]
) -> None:
    ours = full(3, 2, fps=Fraction(24), person_ids=(2, 5), depth=np.ones((3, 2, JOINTS)), history=({"op": "smooth"},))
    target = tmp_path / ("folder" if kind.startswith("openpose") else "a.json")
    assert write_poses(ours, target, kind=kind) == lost
    made = read_poses(target, fps=Fraction(24))
    joints = list(held)
    assert made.keypoints[:, :, joints].tobytes() == ours.keypoints[:, :, joints].tobytes()
    assert made.scores[:, :, joints].tobytes() == ours.scores[:, :, joints].tobytes()
    assert made.canvas == ours.canvas
    assert np.allclose(made.times, ours.times)
    assert made.person_ids == ((0, 1) if "person_ids" in lost else (2, 5))
    rest = sorted(set(range(JOINTS)) - set(joints))
    if rest:
        assert set(FEET) == set(rest) or rest == [NECK]


def test_nothing_is_lost_that_is_not_there(tmp_path: Path) -> None:
    scores = full().scores.copy()
    scores[:, :, FEET.start : FEET.stop] = 0
    assert write_poses(replace(full(), scores=scores), tmp_path / "a", kind="openpose-18") == []


def test_a_folder_with_other_things_is_not_replaced(tmp_path: Path) -> None:
    write_poses(full(), tmp_path / "a")
    with pytest.raises(UsageError, match="exists"):
        write_poses(full(), tmp_path / "a")
    write_poses(full(2), tmp_path / "a", overwrite=True)
    assert len(list((tmp_path / "a").iterdir())) == 2
    (tmp_path / "a/notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="notes"):
        write_poses(full(), tmp_path / "a", overwrite=True)


# ---- damage ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ({"people": 3}, r"\[0\]: people: missing, or no list"),
        ({"people": [3]}, r"people\[0\]: expected an object"),
        ({"people": [{"pose_keypoints_2d": [1, 2]}]}, r"people\[0\]\.pose_keypoints_2d: 2 numbers, expected 75 or 54"),
        ({"people": [{"pose_keypoints_2d": ["a"] * 54}]}, "pose_keypoints_2d: not an array"),
        ({"people": [{"pose_keypoints_2d": [1e39] * 54}]}, "pose_keypoints_2d: NaN"),
        ({"people": [{"pose_keypoints_2d": [-1] * 54}]}, "pose_keypoints_2d: a score outside"),
        ({"people": [{"hand_left_keypoints_2d": [0] * 60}]}, "hand_left_keypoints_2d: 60 numbers, expected 63"),
        ({"people": [{}], "canvas_width": 0, "canvas_height": 5}, "canvas_width, canvas_height: canvas: 0x5"),
        ({"people": [{}], "canvas_width": 5}, "canvas_width, canvas_height"),
        ({"people": [{}] * 65}, "65 entries"),
        ({"people": []}, "no canvas size"),
        ([], "empty list"),
        (3, "no pose file"),
    ],
)
def test_damaged_pose_keypoint_json_is_refused_by_name(tmp_path: Path, frame: Any, message: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps([frame] if isinstance(frame, dict) else frame))
    with pytest.raises(InputError, match=message):
        read_poses(tmp_path / "a.json")


def test_scores_above_one_are_cut_as_openpose_writes_some(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(comfy([{"pose_keypoints_2d": [5, 6, 1.04] * 18}])))
    assert (read_poses(tmp_path / "a.json").scores[0, 0, :18] == 1).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotations": 3}, "annotations: missing"),
        ({"annotations": [3]}, "annotations: missing"),
        ({"annotations": [{"image_id": 77}]}, r"annotations\[0\].image_id: names no image"),
        ({"annotations": [{"image_id": []}]}, r"annotations\[0\].image_id"),
        (
            {"annotations": [{"image_id": 3, "keypoints": [1, 2, 3]}]},
            r"annotations\[0\].keypoints: 3 numbers, expected 51",
        ),
        ({"annotations": [{"image_id": 3, "keypoints": [3] * 51}]}, "score outside 0..2"),
        ({"images": [{"id": 3}, {"id": 3}]}, "images"),
        ({"images": [{"id": None}]}, r"images\[0\].id"),
        ({"images": [{"id": 3, "width": -4, "height": 4}]}, r"images\[0\]: canvas"),
        ({"images": [{"id": 3, "width": 4, "height": 4}, {"id": 5, "width": 9, "height": 4}]}, "share one canvas"),
        ({"images": 3}, "images: no list"),
    ],
)
def test_damaged_coco_is_refused_by_name(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps(coco_set() | change))
    with pytest.raises(InputError, match=message):
        read_poses(tmp_path / "a.json")


_VALUES = st.one_of(
    st.none(),
    st.integers(-3, 10**20),
    st.text(max_size=3),
    st.floats(),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
)
_DOCUMENTS = [json.dumps(one) for one in (comfy([openpose_person(18)]), [comfy([openpose_person()])] * 2, coco_set())]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), value=_VALUES)
def test_any_value_anywhere_in_foreign_json_gives_poses_or_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, value: Any
) -> None:
    document: Any = json.loads(data.draw(st.sampled_from(_DOCUMENTS)))
    at = document
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        key = data.draw(st.sampled_from(keys))
        if isinstance(at[key], dict | list) and at[key] and data.draw(st.booleans()):
            at = at[key]
            continue
        at[key] = value
        break
    path = tmp_path_factory.getbasetemp() / "foreign.json"
    path.write_text(json.dumps(document))
    try:
        poses = read_poses(path)
    except InputError:
        return
    assert np.isfinite(poses.keypoints).all()
