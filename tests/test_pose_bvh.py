"""BVH: parsed, posed and projected; checked against an independent forward kinematics and by laws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from animx.canvas import Canvas
from animx.errors import InputError
from animx.pose.bvh import parse, positions
from animx.pose.formats import is_pose_file, read_poses
from animx.pose.sequence import PoseSequence
from animx.pose.skeleton import JOINT_NAMES, L_EYE, LEFT_HAND, NECK, NOSE, R_EYE

# name, parent, offset [cm]; the character looks along +z, up is +y, its left is +x
MIXAMO: list[tuple[str, str, tuple[float, float, float]]] = [
    ("Hips", "", (0, 95, 0)),
    ("Spine", "Hips", (0, 12, 0)), ("Spine1", "Spine", (0, 18, 1)), ("Neck", "Spine1", (0, 20, 0)),
    ("Head", "Neck", (0, 9, 2)), ("Head end", "Head", (0, 20, 0)),
    ("LeftShoulder", "Spine1", (6, 16, 0)), ("LeftArm", "LeftShoulder", (12, 0, 0)),
    ("LeftForeArm", "LeftArm", (27, 0, 0)), ("LeftHand", "LeftForeArm", (25, 0, 0)),
    ("LeftHandIndex1", "LeftHand", (9, 0, 3)), ("LeftHandIndex2", "LeftHandIndex1", (4, 0, 0)),
    ("LeftHandIndex3", "LeftHandIndex2", (3, 0, 0)), ("LeftHandIndex3 end", "LeftHandIndex3", (2, 0, 0)),
    ("RightShoulder", "Spine1", (-6, 16, 0)), ("RightArm", "RightShoulder", (-12, 0, 0)),
    ("RightForeArm", "RightArm", (-27, 0, 0)), ("RightHand", "RightForeArm", (-25, 0, 0)),
    ("LeftUpLeg", "Hips", (9, -5, 0)), ("LeftLeg", "LeftUpLeg", (0, -42, 0)), ("LeftFoot", "LeftLeg", (0, -40, -2)),
    ("LeftToeBase", "LeftFoot", (0, -8, 12)), ("LeftToeBase end", "LeftToeBase", (0, 0, 7)),
    ("RightUpLeg", "Hips", (-9, -5, 0)), ("RightLeg", "RightUpLeg", (0, -42, 0)),
    ("RightFoot", "RightLeg", (0, -40, -2)), ("RightToeBase", "RightFoot", (0, -8, 12)),
]  # fmt: skip
OURS = {
    "right_shoulder": "RightArm", "right_elbow": "RightForeArm", "right_wrist": "RightHand",
    "left_shoulder": "LeftArm", "left_elbow": "LeftForeArm", "left_wrist": "LeftHand",
    "right_hip": "RightUpLeg", "right_knee": "RightLeg", "right_ankle": "RightFoot",
    "left_hip": "LeftUpLeg", "left_knee": "LeftLeg", "left_ankle": "LeftFoot",
    "left_big_toe": "LeftToeBase end", "right_small_toe": "RightToeBase", "left_hand_0": "LeftHand",
    "left_hand_5": "LeftHandIndex1", "left_hand_8": "LeftHandIndex3 end",
}  # fmt: skip

Angles = dict[str, NDArray[np.float64]]  # joint -> [T, 3] degrees, in the order of `order`


def angles(frames: int, spread: float = 35.0, seed: int = 0) -> Angles:
    rng = np.random.default_rng(seed)
    names = [name for name, _, _ in MIXAMO if not name.endswith(" end")]
    made = {name: rng.normal(0, spread, (frames, 3)) for name in names}
    made["Hips"] *= 0.2
    return made


def bvh(turns: Angles, order: str = "ZXY", path: NDArray[np.float64] | None = None, rename: Any = None,
        step: str = "0.0333333") -> str:  # fmt: skip
    """The rig and its motion as BVH text."""
    frames = len(turns["Hips"])
    path = np.tile([[0.0, 95.0, 0.0]], (frames, 1)) if path is None else path
    rename = rename or (lambda name: name)
    lines, columns = ["HIERARCHY"], []

    def write(name: str, offset: tuple[float, float, float], depth: int) -> None:
        pad = "  " * depth
        end = name.endswith(" end")
        kind = "End Site" if end else ("ROOT " if depth == 0 else "JOINT ") + rename(name)
        lines.extend([pad + kind, pad + "{", pad + f"  OFFSET {offset[0]} {offset[1]} {offset[2]}"])
        if not end:
            channels = [f"{axis}rotation" for axis in order]
            if depth == 0:
                channels = ["Xposition", "Yposition", "Zposition", *channels]
                columns.extend([path[:, 0], path[:, 1], path[:, 2]])
            columns.extend(turns[name].T)
            lines.append(pad + f"  CHANNELS {len(channels)} {' '.join(channels)}")
        for child, parent, where in MIXAMO:
            if parent == name:
                write(child, where, depth + 1)
        lines.append(pad + "}")

    write("Hips", MIXAMO[0][2], 0)
    lines += ["MOTION", f"Frames: {frames}", f"Frame Time: {step}"]
    lines += [" ".join(f"{value:.6f}" for value in row) for row in np.array(columns).T]
    return "\n".join(lines) + "\n"


def truth(turns: Angles, order: str = "ZXY", path: NDArray[np.float64] | None = None) -> dict[str, NDArray[np.float64]]:
    """World positions [T, 3] by 4x4 matrices and scipy's Euler angles: another road than the code under test."""
    frames = len(turns["Hips"])
    world: dict[str, NDArray[np.float64]] = {}
    for name, parent, offset in MIXAMO:
        local = np.tile(np.eye(4), (frames, 1, 1))
        local[:, :3, 3] = offset if parent or path is None else path
        if name in turns:
            local[:, :3, :3] = Rotation.from_euler(order, turns[name], degrees=True).as_matrix()
        world[name] = world[parent] @ local if parent else local
    return {name: matrix[:, :3, 3] for name, matrix in world.items()}


def read(folder: Path, text: str, **options: Any) -> PoseSequence:
    path = folder / "x.bvh"
    path.write_text(text)
    return read_poses(path, **options)


def joint(poses: PoseSequence, name: str) -> NDArray[np.float64]:
    """[T, 3]: x, y, depth px."""
    index = JOINT_NAMES.index(name)
    assert poses.depth is not None
    return np.column_stack([poses.keypoints[:, 0, index], poses.depth[:, 0, index]]).astype(float)


@pytest.mark.parametrize("order", ["ZXY", "XYZ", "ZYX", "YXZ"])
def test_positions_equal_an_independent_forward_kinematics(order: str) -> None:
    turns = angles(7)
    path = np.random.default_rng(1).normal(0, 50, (7, 3))
    motion = parse(bvh(turns, order, path), "x")
    place, _ = positions(motion)
    expected = truth(turns, order, path)
    for j, one in enumerate(motion.joints):
        assert np.allclose(place[:, j], expected[one.name], atol=1e-4), one.name


def test_the_projection_is_the_front_view_with_depth(tmp_path: Path) -> None:
    turns = angles(6, 25)
    turns["Hips"][:] = 0
    turns["Spine"][:] = turns["Spine1"][:] = 0  # shoulders and hips stay square to the camera
    turns["LeftShoulder"][:] = turns["RightShoulder"][:] = 0
    poses, expected = read(tmp_path, bvh(turns)), truth(turns)
    hips = (expected["LeftUpLeg"] + expected["RightUpLeg"]) / 2
    scale = (joint(poses, "left_hip")[0, 0] - joint(poses, "right_hip")[0, 0]) / 18
    ours_hips = (joint(poses, "left_hip") + joint(poses, "right_hip")) / 2
    assert scale > 1
    for name, theirs in OURS.items():
        about = expected[theirs] - hips
        assert np.allclose((joint(poses, name) - ours_hips) / scale, about * [1, -1, 1], atol=0.01), name
    assert poses.source["format"] == "bvh"


def test_every_bone_keeps_its_length_in_three_dimensions(tmp_path: Path) -> None:
    poses = read(tmp_path, bvh(angles(9, 50)))
    scale = None
    for a, b, length in (("left_shoulder", "left_elbow", 27), ("right_knee", "right_ankle", np.hypot(40, 2)),
                         ("left_hip", "left_knee", 42), ("right_elbow", "right_wrist", 25)):  # fmt: skip
        lengths = np.linalg.norm(joint(poses, a) - joint(poses, b), axis=1)
        assert np.ptp(lengths) < 1e-3 * lengths.mean()
        scale = scale or lengths.mean() / length
        assert lengths.mean() / length == pytest.approx(scale, rel=1e-4)


def test_the_camera_stands_before_the_figure_wherever_it_looks(tmp_path: Path) -> None:
    front = read(tmp_path, bvh(angles(6)))
    turned = angles(6)
    # Turned as a whole about the vertical axis: R' = Y(130) R, in channel order YXZ.
    base = Rotation.from_euler("ZXY", turned["Hips"], degrees=True)
    whole = Rotation.from_euler("Y", 130, degrees=True) * base
    turned["Hips"] = whole.as_euler("ZXY", degrees=True)
    other = read(tmp_path, bvh(turned))
    assert np.allclose(front.keypoints, other.keypoints, atol=0.05)
    assert front.depth is not None
    assert other.depth is not None
    assert np.allclose(front.depth, other.depth, atol=0.05)


def test_up_may_be_another_axis(tmp_path: Path) -> None:
    upright = angles(5)
    lying = angles(5)
    tilt = Rotation.from_euler("X", 90, degrees=True)  # y up becomes z up
    lying["Hips"] = (tilt * Rotation.from_euler("ZXY", lying["Hips"], degrees=True)).as_euler("ZXY", degrees=True)
    assert np.allclose(read(tmp_path, bvh(lying)).keypoints, read(tmp_path, bvh(upright)).keypoints, atol=0.05)


def test_the_motion_fits_the_canvas_and_left_is_left(tmp_path: Path) -> None:
    path = np.column_stack([np.linspace(-100, 200, 8), np.full(8, 95.0), np.linspace(0, 300, 8)])
    for canvas in (None, Canvas(300, 200)):
        poses = read(tmp_path, bvh(angles(8, 20), path=path), canvas=canvas)
        assert poses.canvas == (canvas or Canvas(640, 960))
        seen = poses.keypoints[poses.scores > 0]
        share = (np.ptp(seen, axis=0) / poses.canvas.size).max()
        assert share == pytest.approx(0.9, abs=1e-3)
        assert (seen > 0).all()
        assert (seen < poses.canvas.size).all()
    assert (joint(poses, "left_shoulder")[:, 0] > joint(poses, "right_shoulder")[:, 0]).all()
    assert (joint(poses, "neck")[:, 1] < joint(poses, "left_ankle")[:, 1]).all()


def test_the_face_looks_where_the_head_turns(tmp_path: Path) -> None:
    turns = {name: np.zeros((9, 3)) for name in angles(1)}
    turns["Head"][:, 2] = np.linspace(-60, 60, 9)  # about the vertical axis, mean 0
    poses = read(tmp_path, bvh(turns))
    nose, neck = joint(poses, "nose"), joint(poses, "neck")
    side = (nose - neck)[:, 0]
    assert (np.diff(side) > 0).all(), "a turn to the character's left moves the nose to the picture's right"
    assert side[4] == pytest.approx(0, abs=0.1)
    assert (nose[:, 2] > neck[:, 2]).all(), "the nose is nearer than the neck"
    assert (poses.scores[:, 0, [NOSE, NECK, L_EYE, R_EYE]] == 1).all()
    assert poses.keypoints[4, 0, L_EYE, 0] > poses.keypoints[4, 0, R_EYE, 0]


def test_what_a_rig_lacks_is_missing_and_not_invented(tmp_path: Path) -> None:
    poses = read(tmp_path, bvh(angles(2)))
    assert not poses.scores[:, 0, 24:92].any(), "a rig has no face points"
    assert not poses.scores[:, 0, LEFT_HAND[9] :].any(), "only the left index finger exists"
    assert not poses.scores[:, 0, JOINT_NAMES.index("left_heel")].any()


CMU = {"LeftShoulder": "LeftShoulder", "Spine": "LowerBack", "Hips": "hip"}
AD = {"Hips": "root", "Head": "head"}
BIPED = {
    "Hips": "Bip01", "Head": "Bip01 Head", "LeftShoulder": "Bip01 L Clavicle", "LeftArm": "Bip01 L UpperArm",
    "LeftForeArm": "Bip01 L Forearm", "LeftHand": "Bip01 L Hand", "RightShoulder": "Bip01 R Clavicle",
    "RightArm": "Bip01 R UpperArm", "RightForeArm": "Bip01 R Forearm", "RightHand": "Bip01 R Hand",
    "LeftUpLeg": "Bip01 L Thigh", "LeftLeg": "Bip01 L Calf", "LeftFoot": "Bip01 L Foot", "LeftToeBase": "Bip01 L Toe0",
    "RightUpLeg": "Bip01 R Thigh", "RightLeg": "Bip01 R Calf", "RightFoot": "Bip01 R Foot",
    "RightToeBase": "Bip01 R Toe0",
}  # fmt: skip
SMPL = {
    "Hips": "Pelvis", "LeftShoulder": "L_Collar", "LeftArm": "L_Shoulder", "LeftForeArm": "L_Elbow",
    "LeftHand": "L_Wrist", "RightShoulder": "R_Collar", "RightArm": "R_Shoulder", "RightForeArm": "R_Elbow",
    "RightHand": "R_Wrist", "LeftUpLeg": "L_Hip", "LeftLeg": "L_Knee", "LeftFoot": "L_Ankle", "LeftToeBase": "L_Foot",
    "RightUpLeg": "R_Hip", "RightLeg": "R_Knee", "RightFoot": "R_Ankle", "RightToeBase": "R_Foot",
}  # fmt: skip
OLD = {
    "LeftShoulder": "LeftCollar", "LeftArm": "LeftShoulder", "LeftForeArm": "LeftElbow", "LeftHand": "LeftWrist",
    "RightShoulder": "RightCollar", "RightArm": "RightShoulder", "RightForeArm": "RightElbow",
    "RightHand": "RightWrist", "LeftUpLeg": "LeftHip", "LeftLeg": "LeftKnee", "LeftFoot": "LeftAnkle",
    "LeftToeBase": "LeftToe", "RightUpLeg": "RightHip", "RightLeg": "RightKnee", "RightFoot": "RightAnkle",
    "RightToeBase": "RightToe",
}  # fmt: skip
BLENDER = {
    name: name.replace("Left", "").replace("Right", "").lower() + (".L" if "Left" in name else ".R")
    for name, _, _ in MIXAMO
    if "Left" in name or "Right" in name
} | {"LeftUpLeg": "thigh.L", "RightUpLeg": "thigh.R", "LeftLeg": "shin.L", "RightLeg": "shin.R",
     "LeftArm": "upper_arm.L", "RightArm": "upper_arm.R"}  # fmt: skip


@pytest.mark.parametrize(
    "names",
    [CMU, AD, BIPED, SMPL, OLD, BLENDER, {name: f"mixamorig:{name}" for name, _, _ in MIXAMO}],
    ids=["cmu", "animated-drawings", "biped", "smpl", "old", "blender", "mixamo"],
)
def test_rigs_of_many_tools_give_the_same_body(tmp_path: Path, names: dict[str, str]) -> None:
    turns = angles(3)
    expected = read(tmp_path, bvh(turns))
    made = read(tmp_path, bvh(turns, rename=lambda name: names.get(name, name)))
    assert np.array_equal(made.keypoints[:, :, :24], expected.keypoints[:, :, :24])


def test_an_unknown_rig_names_what_is_missing(tmp_path: Path) -> None:
    text = bvh(angles(2), rename=lambda name: {"LeftForeArm": "Tentacle", "RightFoot": "Wheel"}.get(name, name))
    message = r"no joint found for left elbow, right ankle\. The rig's joints: Hips, Spine"
    with pytest.raises(InputError, match=message) as e:
        read(tmp_path, text)
    assert "Tentacle" in str(e.value)


@pytest.mark.parametrize(
    ("step", "rate"),
    [("0.0333333", "30"), ("0.033333", "30"), ("0.0333667", "30000/1001"), ("0.0083333", "120"), ("0.04", "25"),
     ("0.0416667", "24"), ("0.0417083", "24000/1001"), ("0.016667", "60"), ("0.0166833", "60000/1001"), ("2", "1/2")],
)  # fmt: skip
def test_rounded_frame_times_mean_their_rate(tmp_path: Path, step: str, rate: str) -> None:
    assert str(read(tmp_path, bvh(angles(2), step=step)).fps) == rate


def _edit(old: str, new: str) -> str:
    text = bvh(angles(2))
    assert old in text
    return text.replace(old, new, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("HIERARCHY", "ends where ROOT"),
        (_edit("ROOT Hips", "JOINT Hips"), "line 2: 'JOINT' where ROOT"),
        (_edit("OFFSET 0 95 0", "OFFSET 0 x 0"), "line 4: OFFSET of Hips: 'x' is no number"),
        (_edit("OFFSET 0 95 0", "OFFSET 0 nan 0"), "OFFSET of Hips: not finite"),
        (_edit("OFFSET 0 95 0", "OFFSET 0 1e12 0"), "OFFSET of Hips: too large"),
        (_edit("CHANNELS 6", "CHANNELS 7"), "CHANNELS of Hips: 7, expected a whole number from 0 to 6"),
        (_edit("Zrotation", "Wrotation"), "CHANNELS of Hips"),
        (_edit("Zrotation", "Xrotation"), "CHANNELS of Hips"),
        (_edit("MOTION", "MOVES"), "MOTION: missing|where OFFSET"),
        (_edit("Frames: 2", "Frames: 3"), "numbers, expected 3 frames"),
        (_edit("Frames: 2", "Frames: 0"), "Frames: 0"),
        (_edit("Frames: 2", "Frames: 999999999999"), "Frames: 999999999999"),
        (_edit("Frames: 2", "Frames: -2"), "'Frames: N'"),
        (_edit("Frame Time: 0.0333333", "Frame Time: 0"), "Frame Time: 0 s"),
        (_edit("Frame Time: 0.0333333", "Frame Time: soon"), "Frame Time: 'soon'"),
        (bvh(angles(2)) + "word", "holds what is no number"),
        (bvh(angles(2)) + " 5", "numbers, expected 2 frames"),
        (bvh(angles(2)).rsplit(" ", 1)[0] + " nan", "NaN"),
        (bvh(angles(2)).rsplit(" ", 1)[0] + " 1e300", "NaN, infinite or huge"),
        ("HIERARCHY ROOT a { " + "JOINT a { " * 3000, "more than 2000 joints"),
    ],
)
def test_a_damaged_bvh_is_refused_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path, text)
    assert "x.bvh" in str(caught.value)


def test_a_flat_figure_has_no_front(tmp_path: Path) -> None:
    turns = {name: np.zeros((2, 3)) for name in angles(1)}
    text = bvh(turns)
    lines = [
        " ".join([*line.split()[:1], "0", *line.split()[2:]]) if line.strip().startswith("OFFSET") else line
        for line in text.splitlines()
    ]
    with pytest.raises(InputError, match="no width"):
        read(tmp_path, "\n".join(lines))


_TEXT = bvh(angles(2))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    at=st.integers(0, len(_TEXT)),
    length=st.integers(0, 40),
    new=st.sampled_from(["", "{", "}", "0", "1e999", "nan", "JOINT x", "MOTION", "\n", "-", "\x00", "é", "CHANNELS"]),
)
def test_any_mutation_gives_poses_or_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, at: int, length: int, new: str
) -> None:
    try:
        poses = read(tmp_path_factory.getbasetemp(), _TEXT[:at] + new + _TEXT[at + length :])
    except InputError:
        return
    assert np.isfinite(poses.keypoints).all()


def test_a_bvh_is_a_pose_file(tmp_path: Path) -> None:
    (tmp_path / "a.bvh").write_text(_TEXT)
    (tmp_path / "a.txt").write_text(_TEXT)
    assert is_pose_file(tmp_path / "a.bvh")
    assert is_pose_file(tmp_path / "a.txt")
    assert read_poses(tmp_path / "a.txt").frames == 2
