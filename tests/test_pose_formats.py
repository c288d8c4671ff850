"""The native pose file in both spellings, the door to all formats, and their behaviour on damaged input."""

from __future__ import annotations

import io
import json
import sys
import tracemalloc
import zipfile
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from animx.canvas import Canvas
from animx.errors import InputError, OutputError, UsageError
from animx.pose.formats import check_poses, describe_poses, is_pose_file, read_poses, write_poses
from animx.pose.native import shortest
from animx.pose.sequence import PoseSequence
from animx.pose.skeleton import JOINTS, TEMPLATE

SUFFIXES = {"json": ".pose.json", "npz": ".npz"}


def clip(frames: int = 5, persons: int = 2, **extra: Any) -> PoseSequence:
    """Random poses, some joints missing, with everything a file can hold."""
    rng = np.random.default_rng(frames)
    keypoints = rng.normal(150, 200, (frames, persons, JOINTS, 2)).astype(np.float32)
    scores = rng.uniform(0, 1, (frames, persons, JOINTS)).astype(np.float32)
    scores[rng.random(scores.shape) < 0.2] = 0
    full: dict[str, Any] = {
        "fps": Fraction(30000, 1001),
        "person_ids": tuple(range(7, 7 + persons)),
        "source": {"name": "dance é.mp4", "hash": "ab12", "nested": {"n": [1, 2.5, None, True]}},
        "history": ({"op": "smooth", "seconds": 0.28}, {"op": "drop", "groups": ["arms"]}),
        "depth": rng.normal(0, 30, scores.shape).astype(np.float32),
    }
    return PoseSequence(keypoints, scores, Canvas(320, 241), **(full | extra))


def standing(frames: int = 12) -> PoseSequence:
    """A template figure that sways: plausible poses for the findings."""
    points = np.zeros((frames, 1, JOINTS, 2), np.float32)
    scores = np.zeros((frames, 1, JOINTS), np.float32)
    for joint, (x, y) in TEMPLATE.items():
        points[:, 0, joint, 0] = x * 400 + 160 + 3 * np.sin(np.arange(frames))
        points[:, 0, joint, 1] = y * 400 + 220
        scores[:, 0, joint] = 1
    return PoseSequence(points, scores, Canvas(320, 440))


def same(a: PoseSequence, b: PoseSequence) -> bool:
    """Equal in every bit and field."""
    arrays = all(
        getattr(a, name).tobytes() == getattr(b, name).tobytes() for name in ("keypoints", "scores", "times")
    ) and ((a.depth is None) == (b.depth is None) and (a.depth is None or a.depth.tobytes() == b.depth.tobytes()))
    fields = ("canvas", "fps", "person_ids", "layout", "source", "history")
    return arrays and all(getattr(a, name) == getattr(b, name) for name in fields)


# ---- both spellings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SUFFIXES)
def test_what_is_written_is_read_back_in_every_bit(tmp_path: Path, kind: str) -> None:
    for poses in (clip(), clip(1, 1, depth=None, source={}, history=(), person_ids=())):
        path = tmp_path / f"a{SUFFIXES[kind]}"
        assert write_poses(poses, path, overwrite=True) == []
        assert same(read_poses(path), poses)


def test_both_spellings_are_the_same_bits(tmp_path: Path) -> None:
    write_poses(clip(), tmp_path / "a.npz")
    write_poses(read_poses(tmp_path / "a.npz"), tmp_path / "b.pose.json")
    write_poses(read_poses(tmp_path / "b.pose.json"), tmp_path / "c.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "c.npz").read_bytes()


@pytest.mark.parametrize("kind", SUFFIXES)
def test_the_same_poses_give_the_same_bytes(tmp_path: Path, kind: str) -> None:
    first, second = tmp_path / f"a{SUFFIXES[kind]}", tmp_path / f"b{SUFFIXES[kind]}"
    write_poses(clip(), first)
    write_poses(clip(), second)
    assert first.read_bytes() == second.read_bytes()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40))
def test_json_decimals_are_short_and_give_the_bits_back(values: list[float]) -> None:
    array = np.array(values, np.float32)
    texts = [repr(value) for value in shortest(array).tolist()]
    assert np.array([float(text) for text in texts], np.float32).tobytes() == array.tobytes()
    for text, value in zip(texts, array, strict=True):
        assert len(text) <= len(repr(float(value)))
        assert len(text.replace("e-0", "e-").replace("e+", "e")) <= len(str(value)) + 2


def test_every_float32_survives_a_json_file(tmp_path: Path) -> None:
    bits = np.random.default_rng(0).integers(0, 1 << 32, 4 * JOINTS * 2, dtype=np.uint64).astype(np.uint32)
    values = bits.view(np.float32)
    values = np.where(np.isfinite(values), values, np.float32(-0.0)).astype(np.float32)
    poses = replace(clip(4, 1), keypoints=values.reshape(4, 1, JOINTS, 2), scores=np.ones((4, 1, JOINTS)))
    write_poses(poses, tmp_path / "a.json")
    assert read_poses(tmp_path / "a.json").keypoints.tobytes() == poses.keypoints.tobytes()


def test_json_is_readable_one_frame_a_line_and_diffable(tmp_path: Path) -> None:
    poses = standing(6)
    moved = poses.keypoints.copy()
    moved[2, 0, 4] += 1
    write_poses(poses, tmp_path / "a.json")
    write_poses(replace(poses, keypoints=moved), tmp_path / "b.json")
    before, after = ((tmp_path / name).read_text().splitlines() for name in ("a.json", "b.json"))
    assert sum(a != b for a, b in zip(before, after, strict=True)) == 1
    data = json.loads("\n".join(before))
    assert data["keypoints"][0][0][0] == [round(float(v), 4) for v in poses.keypoints[0, 0, 0]]
    assert list(data)[:4] == ["schema", "layout", "canvas", "fps"]


def test_npz_is_plain_numpy_without_pickle(tmp_path: Path) -> None:
    write_poses(clip(), tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as data:
        assert np.array_equal(data["keypoints"], clip().keypoints)
        assert json.loads(str(data["source"])) == clip().source
        assert data["source"].shape == ()
        assert data["fps"].tolist() == [30000, 1001]


def test_npz_written_by_numpy_is_read(tmp_path: Path) -> None:
    poses = clip()
    np.savez_compressed(
        tmp_path / "a.npz", schema=1, canvas=[320, 241], fps=[30000, 1001], times=poses.times,
        keypoints=np.asfortranarray(poses.keypoints.astype(">f8")), scores=poses.scores,
    )  # fmt: skip
    made = read_poses(tmp_path / "a.npz")
    assert made.keypoints.tobytes() == poses.keypoints.tobytes()


def test_times_and_rate_default_when_a_file_leaves_them_out(tmp_path: Path) -> None:
    fields = document(standing(3))
    for name in ("times", "fps", "person_ids", "source", "history", "layout"):
        del fields[name]
    made = read_poses(save(tmp_path, fields))
    assert made.fps == 25
    assert np.allclose(made.times, [0, 0.04, 0.08])


def test_a_ten_minute_npz_needs_less_than_three_copies_of_its_array(tmp_path: Path) -> None:
    frames = 15000 // 5
    keypoints = np.random.default_rng(0).uniform(0, 500, (frames, 1, JOINTS, 2)).astype(np.float32)
    poses = PoseSequence(keypoints, np.ones((frames, 1, JOINTS), np.float32), Canvas(512, 512))
    path = tmp_path / "a.npz"
    tracemalloc.start()
    try:
        write_poses(poses, path)
        written = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        base = tracemalloc.get_traced_memory()[0]
        made = read_poses(path)
        read = tracemalloc.get_traced_memory()[1] - base
    finally:
        tracemalloc.stop()
    assert made.frames == frames
    # The two arrays themselves are 1.5 copies; buffers of fixed size (3 MB) come on top in a clip this short.
    assert read < 2.2 * keypoints.nbytes + 4e6
    assert written < 0.3 * keypoints.nbytes + 4e6


# ---- damage ------------------------------------------------------------------------------------------------------


def document(poses: PoseSequence) -> dict[str, Any]:
    text = io.StringIO()
    from animx.pose.native import json_lines

    text.writelines(json_lines(poses))
    found: dict[str, Any] = json.loads(text.getvalue())
    return found


def save(folder: Path, fields: Any) -> Path:
    path = folder / "x.pose.json"
    path.write_text(fields if isinstance(fields, str) else json.dumps(fields))
    return path


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("schema", 2, "schema: 2 is newer"),
        ("schema", "1", "schema: expected"),
        ("schema", 0, "schema: expected"),
        ("schema", True, "schema: expected"),
        ("layout", 5, "layout: expected"),
        ("layout", "coco-17", "layout: 'coco-17'"),
        ("canvas", [0, 5], "canvas: 0x5"),
        ("canvas", [320], "canvas: expected"),
        ("canvas", [3.5, 4], "canvas: expected"),
        ("canvas", "320x240", "canvas: expected"),
        ("canvas", [65000, 65000], "canvas: 65000x65000 px is larger"),
        ("canvas", [10**400, 4], "canvas: "),
        ("fps", 25, "fps: expected"),
        ("fps", [25, 0], "fps: 25/0"),
        ("fps", [-1, 1], "fps: -1/1"),
        ("fps", [10**9, 1], "fps: "),
        ("times", [0, 0, 1], "times: not strictly"),
        ("times", [0, 1], "times: 2 entries"),
        ("times", "now", "times: not an array"),
        ("times", [[0], [1], [2]], "times: expected one"),
        ("person_ids", [1, 2], "person_ids: 2 entries"),
        ("person_ids", ["a"], "person_ids: expected"),
        ("source", [], "source: expected"),
        ("history", {}, "history: expected"),
        ("history", [1], r"history\[0\]: expected"),
        ("keypoints", None, "keypoints: not an array"),
        ("keypoints", [], "keypoints: no frames"),
        ("keypoints", {}, "keypoints: not an array"),
        ("keypoints", [[[[1, 2]]]] * 3, r"keypoints: shape \[1, 1, 1, 2\]"),
        ("keypoints", [[[["1", "2"]] * 134]] * 3, r"keypoints\[0\]: not an array"),
        ("keypoints", [[[[1, 2]] * 133 + [[1]]]] * 3, r"keypoints\[0\]: lists of unequal"),
        ("keypoints", [[[[1, 2]] * 134], [[[1, 2]] * 133]], r"keypoints\[1\]: shape"),
        ("keypoints", [[[[1e39, 2]] * 134]] * 3, "keypoints: NaN or infinite"),
        ("keypoints", [[[[1, 2]] * 134] * 65] * 3, "keypoints: 65 persons"),
        ("keypoints", [[[[1, 10**400]] * 134]] * 3, "keypoints"),
        ("scores", [[[2] * 134]] * 3, "scores: values outside"),
        ("scores", [[[0.5] * 134]] * 2, "scores: shape"),
        ("scores", "x", "scores: not an array"),
        ("depth", [[[0.5] * 133]] * 3, "depth: shape"),
        ("depth", 5, "depth: "),
    ],
)
def test_a_wrong_json_field_is_refused_by_file_and_name(tmp_path: Path, field: str, value: Any, message: str) -> None:
    fields = document(standing(3)) | {field: value}
    with pytest.raises(InputError, match=message) as caught:
        read_poses(save(tmp_path, fields))
    assert "x.pose.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("field", ["schema", "canvas", "keypoints", "scores"])
def test_a_missing_field_is_named(tmp_path: Path, field: str) -> None:
    fields = document(standing(3))
    del fields[field]
    with pytest.raises(InputError, match=f"{field}: missing"):
        read_poses(save(tmp_path, fields))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("   \n", "no pose file"),
        ("{", "expected a key"),
        ('{"schema": 1', "expected ',' or '}'"),
        ('{"schema": 1,}', "expected a key"),
        ('{"schema": 1, "schema": 1}', "'schema' stands here twice"),
        ('{"source": {"a": 1, "a": 2}}', "'a' stands twice"),
        ('{"keypoints": [[[[NaN, 0]]]]}', "NaN is no number"),
        ('{"keypoints": [[[[-Infinity, 0]]]]}', "-Infinity is no number"),
        ('{"schema": 1} trailing', "text after the end"),
        ('{"source": ' + "[" * 100_000, "nested too deeply"),
        ('{"keypoints": ' + "[" * 100_000, "nested too deeply"),
        ("[" * 100_000, "nested too deeply"),
        ('{"schema": ' + "9" * 5000 + "}", "line 1"),
        ("[]", "empty list"),
        ("[1, 2]", "annotations"),
        ('{"a": 1}', "missing"),
        ('"text"', "no pose file"),
    ],
)
def test_damaged_json_is_refused_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_poses(save(tmp_path, text))


@pytest.mark.parametrize(
    "data",
    [b'{"schema": 1, "layout": "\xff\xfe"}', "{}".encode("utf-16"), b"\x00" * 50, b"GIF89a" + bytes(50), b"PK\x03\x04"],
)
def test_bytes_that_are_no_pose_file_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.pose.json").write_bytes(data)
    with pytest.raises(InputError, match=r"x\.pose\.json"):
        read_poses(tmp_path / "x.pose.json")


def _npz(path: Path, **arrays: Any) -> Path:
    poses = standing(3)
    whole = {"schema": 1, "canvas": [320, 440], "keypoints": poses.keypoints, "scores": poses.scores}
    np.savez(path, **{name: array for name, array in (whole | arrays).items() if array is not None})
    return path


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"keypoints": None}, "keypoints: missing"),
        ({"keypoints": np.zeros((3, 1, 134, 3))}, "keypoints: shape"),
        ({"keypoints": np.zeros((0, 1, 134, 2))}, "keypoints: 0 frames"),
        ({"keypoints": np.full((3, 1, 134, 2), np.nan)}, "keypoints: NaN"),
        ({"keypoints": np.full((3, 1, 134, 2), 1e300)}, "keypoints: NaN or infinite"),
        ({"keypoints": np.zeros((3, 1, 134, 2), complex)}, "keypoints: type complex128"),
        ({"keypoints": np.zeros((3, 1, 134, 2), "M8[s]")}, "keypoints"),
        ({"keypoints": np.zeros((3, 1, 134, 2), "U4")}, "keypoints: type"),
        ({"keypoints": np.zeros((3, 1, 134, 2), [("a", "f4")])}, "keypoints: not a plain array"),
        ({"keypoints": np.array([{}, []], object)}, "keypoints: not a plain array"),
        ({"scores": np.zeros((3, 1, 134)) + 2}, "scores: values"),
        ({"scores": np.zeros((3, 2, 134))}, "scores: shape"),
        ({"canvas": np.array([320.0, 440.0])}, "canvas: type"),
        ({"canvas": [[320, 440]]}, "canvas: shape"),
        ({"times": np.zeros((3, 3))}, "times: shape"),
        ({"times": np.zeros(3)}, "times: not strictly"),
        ({"fps": np.array([25])}, "fps: expected"),
        ({"source": np.array("{")}, "source: line 1"),
        ({"source": np.array("[]")}, "source: expected"),
        ({"source": np.array(["{}", "{}"])}, "source: shape"),
        ({"history": np.array(3)}, "history: type"),
        ({"layout": np.array('"x"')}, "layout: 'x'"),
        ({"schema": np.array([1, 2])}, "schema"),
    ],
)
def test_a_wrong_npz_array_is_refused_by_file_and_name(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_poses(_npz(tmp_path / "x.npz", **arrays))
    assert "x.npz" in str(caught.value)


def _entry(header: str, data: bytes = b"", version: int = 1) -> bytes:
    text = header.encode()
    return b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(2, "little") + text + data


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 64, 134, 2), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (999999999999, 1, 134, 2), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999999999, 1, 134, 2), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (9000, 1, 134, 2), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (1, 1, 134, 2), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 1, 134, 2), }",
        "{'descr': '<f99999', 'fortran_order': False, 'shape': (1, 1, 134, 2), }",
        "__import__('os').system('true')",
        "(" * 4000,
        "",
    ],
)
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_header_that_lies_takes_no_memory(tmp_path: Path, header: str, method: int) -> None:
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("keypoints.npy", _entry(header, bytes(1000)))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="keypoints"):
            read_poses(path)
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()


def test_a_zip_bomb_is_refused_from_its_directory(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("keypoints.npy", bytes(1000))
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02")
    data[at + 24 : at + 28] = (2**32 - 2).to_bytes(4, "little")  # claims to unpack to 4 GiB
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"claims a size|unpacks to more"):
        read_poses(path)


def test_packed_in_another_way_or_doubled_or_encrypted_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.writestr("keypoints.npy", bytes(1000))
        with pytest.raises(InputError, match="keypoints: encrypted or packed"):
            read_poses(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("keypoints.npy", b"a")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("keypoints.npy", b"b")
    with pytest.raises(InputError, match="keypoints: stands twice"):
        read_poses(path)


def _mutated(data: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    for at, length, new in edits:
        at %= max(1, len(data))
        data = data[:at] + new + data[at + length :]
    return data


_EDITS = st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(0, 12), st.binary(max_size=6)), min_size=1, max_size=4)
_WORDS = st.sampled_from([b"null", b"[]", b"{}", b"-1", b"1e999", b'"a"', b"NaN", b"[[[[", b",", b"true", b"9" * 40])
_TEXT_EDITS = st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(0, 30), _WORDS), min_size=1, max_size=3)


def _survives(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    message = ""
    try:
        poses = read_poses(path)
        assert np.isfinite(poses.keypoints).all()
        describe_poses(poses)
    except InputError as error:
        message = str(error)
    assert "\n" not in message


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.one_of(_EDITS, _TEXT_EDITS), kind=st.sampled_from(sorted(SUFFIXES)))
def test_any_mutation_gives_poses_or_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[int, int, bytes]], kind: str
) -> None:
    folder = tmp_path_factory.getbasetemp()
    valid = folder / f"valid{SUFFIXES[kind]}"
    if not valid.exists():
        write_poses(standing(2), valid)
    _survives(folder / f"mutated{SUFFIXES[kind]}", _mutated(valid.read_bytes(), edits))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=_JSON, field=st.sampled_from(["schema", "canvas", "fps", "times", "person_ids", "source", "history",
                                           "keypoints", "scores", "depth", "layout", "other"]))  # fmt: skip
def test_any_value_in_any_field_gives_poses_or_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, value: Any, field: str
) -> None:
    fields = document(standing(2)) | {field: value}
    _survives(tmp_path_factory.getbasetemp() / "field.pose.json", json.dumps(fields).encode())


# ---- the door ----------------------------------------------------------------------------------------------------


def test_content_decides_not_the_name(tmp_path: Path) -> None:
    write_poses(clip(), tmp_path / "a.npz")
    write_poses(clip(), tmp_path / "a.json")
    (tmp_path / "b.json").write_bytes((tmp_path / "a.npz").read_bytes())
    (tmp_path / "c.npz").write_bytes((tmp_path / "a.json").read_bytes())
    assert same(read_poses(tmp_path / "b.json"), clip())
    assert same(read_poses(tmp_path / "c.npz"), clip())


def test_stdin_takes_json_or_npz_and_stdout_gives_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: Any
) -> None:
    write_poses(clip(), "-")
    out = capfdbinary.readouterr().out
    write_poses(clip(), tmp_path / "a.npz")
    for data in (out, (tmp_path / "a.npz").read_bytes()):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        assert same(read_poses("-"), clip())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    with pytest.raises(InputError, match="stdin: empty"):
        read_poses("-")
    with pytest.raises(UsageError, match="JSON"):
        write_poses(clip(), "-", kind="npz")


def test_pose_files_are_known_by_name_and_content(tmp_path: Path) -> None:
    write_poses(clip(), tmp_path / "a.pose.json")
    write_poses(clip(), tmp_path / "a.npz")
    write_poses(clip(), tmp_path / "folder")
    (tmp_path / "plain.dat").write_bytes((tmp_path / "a.npz").read_bytes())
    (tmp_path / "other.json").write_text('{"name": "package", "version": 1}')
    (tmp_path / "clip.mp4").write_bytes(b"\x00\x00\x00\x18ftypmp42" + bytes(100))
    (tmp_path / "empty").mkdir()
    known = {path.name: is_pose_file(path) for path in tmp_path.iterdir()}
    assert known == {
        "a.pose.json": True, "a.npz": True, "folder": True, "plain.dat": True,
        "other.json": False, "clip.mp4": False, "empty": False,
    }  # fmt: skip
    assert not is_pose_file(tmp_path / "missing.mp4")


def test_what_cannot_be_done_is_said(tmp_path: Path) -> None:
    write_poses(clip(), tmp_path / "a.npz")
    with pytest.raises(UsageError, match="exists"):
        write_poses(clip(), tmp_path / "a.npz")
    with pytest.raises(UsageError, match=r"not '\.csv'"):
        write_poses(clip(), tmp_path / "a.csv")
    with pytest.raises(UsageError, match="bvh is read, not written"):
        write_poses(clip(), tmp_path / "a.bvh", kind="bvh")
    with pytest.raises(UsageError, match="Did you mean 'npz'"):
        read_poses(tmp_path / "a.npz", kind="npy")
    with pytest.raises(InputError, match="no such file"):
        read_poses(tmp_path / "missing.json")
    with pytest.raises(OutputError, match="does not exist"):
        write_poses(clip(), tmp_path / "no" / "a.json")
    with pytest.raises(InputError, match="no OpenPose JSON"):
        read_poses(tmp_path)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    bad = replace(clip(), source={"name": object()})
    for name in ("a.json", "a.npz"):
        with pytest.raises(InputError, match="source"):
            write_poses(bad, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_field_is_ignored_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read_poses(save(tmp_path, document(standing(2)) | {"score": 1}))
    assert "unknown field 'score' is ignored. Did you mean 'scores'?" in caplog.text


# ---- info and check ----------------------------------------------------------------------------------------------


def test_description_is_plain_json_and_right() -> None:
    found = describe_poses(standing())
    json.dumps(found)
    assert found["frames"] == 12
    assert found["canvas"] == [320, 440]
    assert found["duration"] == pytest.approx(12 / 25)
    person = found["persons"][0]
    assert person["visible"] == {"body": 1, "feet": 0, "face": 0, "left_hand": 0, "right_hand": 0}
    assert person["bone_lengths"]["torso"] == pytest.approx(0.29 * 400, abs=0.01)


def test_a_plausible_figure_has_no_findings() -> None:
    assert check_poses(standing()) == []


def _with(change: Any) -> list[str]:
    poses = standing()
    points, scores = poses.keypoints.copy(), poses.scores.copy()
    change(points[:, 0], scores[:, 0])
    return check_poses(replace(poses, keypoints=points, scores=scores))


def test_odd_poses_are_found_and_named() -> None:
    def jump(points: Any, _: Any) -> None:
        points[5, 4] += 90

    def away(points: Any, _: Any) -> None:
        points[:, 4, 0] = -40

    def swapped(points: Any, _: Any) -> None:
        points[3:6, [2, 5, 8, 11]] = points[3:6, [5, 2, 11, 8]]

    def gone(_: Any, scores: Any) -> None:
        scores[3:5] = 0
        scores[:, 7] = 0

    def long(points: Any, _: Any) -> None:
        points[7, 10, 1] += 200

    def units(points: Any, _: Any) -> None:
        points /= 440

    for change, words in (
        (jump, "right_wrist jumps away and back in frame 5"),
        (away, "outside the canvas in 100% of the frames, most often right_wrist"),
        (swapped, "left and right are swapped, in frames 3-5"),
        (gone, "nobody in frames 3-4"),
        (gone, "never seen: left_wrist"),
        (long, "right_shin is more than 1.6 times its usual length in frame 7"),
        (units, "are the coordinates in px"),
    ):
        assert any(words in finding for finding in _with(change)), (words, _with(change))
    uneven = replace(standing(3), times=np.array([0, 0.04, 0.5]))
    assert any("times" in finding for finding in check_poses(uneven))


def test_an_invalid_file_is_an_error_and_no_finding(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="scores: missing"):
        check_poses(_npz(tmp_path / "x.npz", scores=None))


# ---- the legacy layout -------------------------------------------------------------------------------------------


def _legacy(path: Path, **arrays: Any) -> Path:
    rng = np.random.default_rng(3)
    frames = 4
    whole: dict[str, Any] = {
        "body": np.concatenate([rng.uniform(0, 99, (frames, 18, 2)), rng.random((frames, 18, 1))], 2).astype("f4"),
        "hands": np.concatenate([rng.uniform(0, 99, (frames, 2, 21, 2)), np.ones((frames, 2, 21, 1))], 3).astype("f4"),
        "face": np.zeros((frames, 68, 3), "f4"),
        "depth": rng.normal(0, 9, (frames, 18)).astype("f4"),
        "fps": np.float32(24),
        "size": np.array([100, 120], np.int32),
    }
    np.savez(path, **{name: array for name, array in (whole | arrays).items() if array is not None})
    return path


def test_the_legacy_layout_is_read_joint_by_joint(tmp_path: Path) -> None:
    path = _legacy(tmp_path / "a.npz")
    poses = read_poses(path)
    with np.load(path) as data:
        assert np.array_equal(poses.keypoints[:, 0, :18], data["body"][..., :2])
        assert np.array_equal(poses.scores[:, 0, :18], data["body"][..., 2])
        assert np.array_equal(poses.keypoints[:, 0, 92:113], data["hands"][:, 0, :, :2])
        assert np.array_equal(poses.keypoints[:, 0, 113:], data["hands"][:, 1, :, :2])
        assert poses.depth is not None
        assert np.allclose(poses.depth[:, 0, [8, 11]].mean(axis=1), 0, atol=1e-5)
        assert np.allclose(np.diff(poses.depth[:, 0, :18], axis=1), np.diff(data["depth"], axis=1), atol=1e-5)
        assert np.array_equal(poses.depth[:, 0, 100], poses.depth[:, 0, 7]), "the left hand lies where its wrist does"
    assert (poses.fps, poses.canvas) == (24, Canvas(100, 120))
    assert not poses.scores[:, 0, 24:92].any()
    assert poses.source["format"] == "legacy-openpose18"


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"body": np.zeros((4, 17, 3))}, "body: shape"),
        ({"body": np.full((4, 18, 3), np.nan)}, "body: NaN or infinite values in frame 0"),
        ({"hands": np.zeros((3, 2, 21, 3))}, "hands: shape"),
        ({"depth": np.zeros((4, 20))}, "depth: shape"),
        ({"size": None}, "size: missing"),
        ({"size": np.array([0, 5])}, "canvas: 0x5"),
        ({"fps": None}, "fps: missing"),
        ({"fps": np.float32(0)}, "fps: 0"),
        ({"fps": np.float32("nan")}, "fps: nan"),
        ({"body": np.full((4, 18, 3), 2.0)}, "scores: values outside"),
    ],
)
def test_a_wrong_legacy_file_is_refused_by_name(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_poses(_legacy(tmp_path / "a.npz", **arrays))


def test_shared_pose_files_are_read_and_the_broken_one_refused(shared: Path) -> None:
    for path in sorted((shared / "data").glob("*.pose.npz")):
        poses = read_poses(path)
        with np.load(path) as data:
            assert np.array_equal(
                poses.keypoints[:, 0, :18], np.where(data["body"][..., 2:] > 0, data["body"][..., :2], 0)
            )
            assert poses.canvas.size == tuple(data["size"])
            assert poses.fps == int(data["fps"])
            if "mp33" in data:
                assert np.array_equal(poses.keypoints[:, 0, 18], data["mp33"][:, 31, :2])
        assert is_pose_file(path)
    with pytest.raises(InputError, match=r"nan\.pose\.npz: body: NaN or infinite values in frame 5"):
        read_poses(shared / "data/bad/nan.pose.npz")
