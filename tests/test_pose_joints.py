"""Joints YAML: written for a person, read strictly, AnimatedDrawings' characters included."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from animx.canvas import Canvas
from animx.errors import InputError, UsageError
from animx.pose.formats import is_pose_file, read_poses
from animx.pose.joints import pose_of, pose_of_annotation, read_joints, write_joints
from animx.pose.sequence import PoseSequence
from animx.pose.skeleton import BODY_NAMES, JOINT_NAMES, L_BIG_TOE, L_WRIST, R_EAR

CANVAS = Canvas(508, 602)


def figure(missing: tuple[str, ...] = ("right_ear", "left_ear")) -> PoseSequence:
    rng = np.random.default_rng(4)
    places = {name: None if name in missing else rng.uniform(5, 500, 2).round(1).tolist() for name in BODY_NAMES}
    return pose_of(places, CANVAS, {"name": "bear.png", "hash": "ab" * 32})


def test_joints_are_written_one_a_line_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "bear.joints.yaml"
    write_joints(figure(), path, "bear.png")
    lines = path.read_text().splitlines()
    for name in BODY_NAMES:
        assert sum(line.startswith(f"  {name}: ") for line in lines) == 1
    assert "  right_ear: null" in lines
    assert "left_big_toe" not in path.read_text(), "feet that are not seen are left out"
    made = read_joints(path)
    assert np.allclose(made.keypoints, figure().keypoints, atol=0.051)
    assert np.array_equal(made.scores > 0, figure().scores > 0)
    assert made.canvas == CANVAS
    assert made.source == {"format": "joints", "name": "bear.png", "hash": "ab" * 32}
    assert np.array_equal(read_poses(path).keypoints, made.keypoints)
    assert is_pose_file(path)


def test_what_a_person_corrects_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "bear.yaml"
    write_joints(figure(), path, "bear.png")
    text = path.read_text().replace("  right_ear: null", "  right_ear: [-30, 12.5]")
    text = "\n".join("  left_wrist: null" if line.startswith("  left_wrist") else line for line in text.splitlines())
    path.write_text(text + "\n  left_big_toe: [10, 20]\n")
    made = read_joints(path)
    assert made.keypoints[0, 0, R_EAR].tolist() == [-30, 12.5]
    assert made.scores[0, 0, L_WRIST] == 0
    assert made.keypoints[0, 0, L_BIG_TOE].tolist() == [10, 20]


def test_hands_and_feet_that_are_seen_are_written(tmp_path: Path) -> None:
    names = ("left_heel", "face_30", "left_hand_8", "right_hand_20")
    write_joints(pose_of(dict.fromkeys(names, (5, 6)), CANVAS), tmp_path / "a.yaml", "x")
    assert set(names) <= set(yaml.safe_load((tmp_path / "a.yaml").read_text())["joints"])


def test_an_existing_file_is_not_replaced_unasked(tmp_path: Path) -> None:
    write_joints(figure(), tmp_path / "a.yaml", "x")
    with pytest.raises(UsageError, match="exists"):
        write_joints(figure(), tmp_path / "a.yaml", "x")
    write_joints(figure(), tmp_path / "a.yaml", "x", overwrite=True)


@pytest.mark.parametrize("name", ['quote".png', "colon: x.png", "# hash.png", "- dash\n.png", "ünï.png", "null"])
def test_any_picture_name_survives(tmp_path: Path, name: str) -> None:
    write_joints(figure(), tmp_path / "a.yaml", name)
    assert read_joints(tmp_path / "a.yaml").source["name"] == name


GOOD = "canvas: [508, 602]\npicture: 'bear.png'\njoints:\n  nose: [10, 20]\n  neck: [10, 50.5]\n"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("nose", "noze", "unknown joint 'noze'. Did you mean 'nose'?"),
        ("nose", "left_foot", "unknown joint 'left_foot'"),
        ("joints:", "joint:", "unknown key 'joint'. Did you mean 'joints'?"),
        ("canvas: [508, 602]\n", "", "canvas: missing"),
        ("[508, 602]", "[508, -2]", "canvas: 508x-2"),
        ("[508, 602]", "508", "canvas: expected"),
        ("[10, 20]", "[10]", r"joints.nose: expected \[x, y\]"),
        ("[10, 20]", "10, 20", r"joints.nose: expected \[x, y\]"),
        ("[10, 20]", "[10, .nan]", "joints.nose: "),
        ("[10, 20]", "[10, .inf]", "joints.nose: "),
        ("[10, 20]", "[10, 1e9]", "joints.nose: .* no place near"),
        ("[10, 20]", "[10, true]", "joints.nose: 'True' is no number"),
        ("[10, 20]", "[10, a]", "joints.nose: 'a' is no number"),
        ("neck", "nose", "nose"),
        ("'bear.png'", "5", "picture: expected a text"),
        ("  nose: [10, 20]\n  neck: [10, 50.5]\n", "  nose: null\n", "none is given"),
        ("joints:\n  nose: [10, 20]\n  neck: [10, 50.5]\n", "joints: 5\n", "joints: expected lines"),
        (GOOD, "", "empty"),
        (GOOD, "- 1\n", "expected 'key: value'"),
        (GOOD, "a: &x 1\nb: *x\n", "aliases"),
        (GOOD, "a: !!python/object/apply:os.system [x]\n", "tags"),
    ],
)
def test_a_wrong_entry_is_refused_by_file_and_name(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "bear.yaml"
    assert old in GOOD
    path.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(InputError, match=message) as caught:
        read_joints(path)
    assert "bear.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


CFG = """height: 602
width: 508
skeleton:
- {loc: [264, 397], name: root, parent: null}
- {loc: [264, 397], name: hip, parent: root}
- {loc: [247, 232], name: torso, parent: hip}
- {loc: [231, 119], name: neck, parent: torso}
- {loc: [46, 311], name: right_hand, parent: right_elbow}
- {loc: [409, 549], name: left_foot, parent: left_knee}
"""


def test_a_character_of_animated_drawings_is_read(tmp_path: Path) -> None:
    (tmp_path / "char_cfg.yaml").write_text(CFG)
    made = read_joints(tmp_path / "char_cfg.yaml")
    seen = {JOINT_NAMES[j]: made.keypoints[0, 0, j].tolist() for j in range(18) if made.scores[0, 0, j]}
    assert seen == {"nose": [231, 119], "neck": [247, 232], "right_wrist": [46, 311], "left_ankle": [409, 549]}
    assert made.canvas == CANVAS
    assert is_pose_file(tmp_path / "char_cfg.yaml")
    (tmp_path / "char_cfg.yaml").write_text(CFG.replace("right_hand", "right_hnd"))
    with pytest.raises(InputError, match=r"skeleton\[4\]: unknown joint 'right_hnd'. Did you mean 'right_hand'"):
        read_joints(tmp_path / "char_cfg.yaml")


def test_shared_characters_equal_their_annotation(shared: Path) -> None:
    truth = json.loads((shared / "data/ref_keypoints.json").read_text())["images"]
    for name in ("drawing_char1", "drawing_char3"):
        made = read_joints(shared / "data" / name / "char_cfg.yaml")
        expected = pose_of_annotation(truth[f"{name}/texture.png"])
        assert made.canvas == expected.canvas
        assert np.array_equal(made.scores[0, 0, :14], expected.scores[0, 0, :14])
        assert np.abs(made.keypoints[0, 0, :14] - expected.keypoints[0, 0, :14]).max() <= 1
    assert pose_of_annotation(truth["ref_ghost.jpg"]).scores.sum() == 3


def test_a_wrong_annotation_is_refused() -> None:
    for entry in ({}, {"keypoints": [[1, 2]] * 17, "size": [5, 5]}, {"keypoints": [[1, 2]] * 18, "size": [0, 5]},
                  {"keypoints": [[1]] * 18, "size": [5, 5]}, {"keypoints": "x" * 18, "size": [5, 5]}):  # fmt: skip
        with pytest.raises(InputError):
            pose_of_annotation(entry)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.sampled_from([GOOD, CFG]),
    at=st.integers(0, 400),
    length=st.integers(0, 12),
    new=st.sampled_from(
        ["", "null", "[", "]", "{", ":", "- ", "\n", "\t", "&a ", "*a", "!!set", "1e999", "\x00", "é", "%"]
    ),
)
def test_any_mutation_gives_a_pose_or_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, text: str, at: int, length: int, new: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "m.yaml"
    path.write_text(text[:at] + new + text[at + length :])
    try:
        made = read_joints(path)
    except InputError:
        return
    assert np.isfinite(made.keypoints).all()
