"""Pose pickles: read as plain data, never run; and the machine that reads them."""

from __future__ import annotations

import collections
import copyreg
import os
import pickle
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from animx.canvas import Canvas
from animx.errors import InputError
from animx.pose.draw import person_dictionary
from animx.pose.formats import read_poses
from animx.pose.sequence import PoseSequence
from animx.pose.skeleton import FACE, L_BIG_TOE, L_SMALL_TOE, LEFT_HAND, R_BIG_TOE, RIGHT_HAND
from animx.pose.unpickle import read_pickle

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def video(frames: int = 3) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    bodies = rng.random((frames, 18, 2))
    indices = np.tile(np.arange(18.0), (frames, 1))
    bodies[1, 4], indices[1, 4] = -1, -1
    indices[2, 7] = -1  # a score of exactly the limit keeps its place and is not drawn
    faces = rng.random((frames, 68, 2))
    faces[0] = -1
    return {"bodies": bodies, "body_indices": indices, "faces": faces, "hands": rng.random((frames, 2, 21, 2)),
            "size": (758, 512, 3), "fps": 24}  # fmt: skip


def person() -> dict[str, Any]:
    rng = np.random.default_rng(2)
    made = person_dictionary(rng.uniform(0, 500, (134, 2)), rng.uniform(0.4, 1, 134), Canvas(512, 768))
    return {"bodies": {"candidate": made["candidate"], "subset": made["subset"][None]}, "hands": made["hands"],
            "faces": made["faces"]}  # fmt: skip


def read(folder: Path, data: bytes, **options: Any) -> PoseSequence:
    path = folder / "x.pkl"
    path.write_bytes(data)
    return read_poses(path, **options)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_video_pickle_is_read_in_px(tmp_path: Path, protocol: int) -> None:
    poses = read(tmp_path, pickle.dumps(video(), protocol))
    assert (poses.canvas, poses.fps, poses.frames) == (Canvas(512, 758), 24, 3)
    assert np.allclose(poses.keypoints[0, 0, :18], video()["bodies"][0] * [512, 758], rtol=1e-6)
    assert np.allclose(poses.keypoints[:, 0, LEFT_HAND], video()["hands"][:, 0] * [512, 758], rtol=1e-6)
    assert np.allclose(poses.keypoints[:, 0, RIGHT_HAND], video()["hands"][:, 1] * [512, 758], rtol=1e-6)
    assert poses.scores[1, 0, 4] == 0
    assert poses.scores[2, 0, 7] == 0
    assert not poses.scores[0, 0, FACE.start : FACE.stop].any()
    assert poses.scores[1, 0, FACE.start : FACE.stop].all()
    assert poses.source["format"] == "pickle"
    assert len(poses.source["hash"]) == 64


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_person_dictionary_and_lists_of_them_are_read(tmp_path: Path, protocol: int) -> None:
    one = read(tmp_path, pickle.dumps(person(), protocol), canvas=Canvas(512, 768))
    assert one.frames == 1
    candidate = person()["bodies"]["candidate"] * [512, 768]
    assert np.allclose(one.keypoints[0, 0, :18], candidate[:18], rtol=1e-6)
    assert np.allclose(one.keypoints[0, 0, [L_BIG_TOE, L_SMALL_TOE]], candidate[[18, 18]], rtol=1e-6)
    assert np.allclose(one.keypoints[0, 0, R_BIG_TOE], candidate[19], rtol=1e-6)
    for many in (
        [person()] * 3,
        {0: person(), 1: person(), 2: person()},
        collections.OrderedDict(a=person(), b=person()),
    ):
        poses = read(tmp_path, pickle.dumps(many, protocol), canvas=Canvas(512, 768))
        assert poses.frames == len(many)
        assert np.array_equal(poses.keypoints[1], one.keypoints[0])


@pytest.mark.parametrize(
    "change",
    [
        {"bodies": list(video()["bodies"])},
        {"bodies": video()["bodies"].tolist()},
        {"bodies": np.asfortranarray(video()["bodies"])},
        {"bodies": video()["bodies"].astype(">f8")},
        {"bodies": video()["bodies"][:, ::-1].copy()[:, ::-1]},
        {"fps": np.int64(24), "size": np.array([758, 512, 3])},
        {"fps": np.float64(24.0), "size": [758, 512]},
        {"body_indices": video()["body_indices"].astype(np.int16)[:, None]},
        {"faces": video()["faces"][:, None]},
    ],
)
def test_spellings_of_the_same_data_are_equal(tmp_path: Path, change: dict[str, Any]) -> None:
    expected = read(tmp_path, pickle.dumps(video()))
    for protocol in (2, 4, 5):
        made = read(tmp_path, pickle.dumps(video() | change, protocol))
        assert np.array_equal(made.keypoints, expected.keypoints)
        assert np.array_equal(made.scores, expected.scores)
        assert (made.canvas, made.fps) == (expected.canvas, expected.fps)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_both_module_names_of_numpy_are_known(tmp_path: Path, protocol: int) -> None:
    data = pickle.dumps(video() | {"fps": np.int64(24)}, protocol)
    for old, new in (
        (b"numpy.core.multiarray", b"numpy._core.multiarray"),
        (b"numpy.core.numeric", b"numpy._core.numeric"),
    ):
        if protocol < 4:
            other = data.replace(old, new) if old in data else data.replace(new, old)
        else:  # a length byte stands before the name
            sized = [bytes([len(name)]) + name for name in (old, new)]
            other = data.replace(*sized) if sized[0] in data else data.replace(*sized[::-1])
            other = other[:2] + other[11:] if other[2:3] == b"\x95" else other  # the frame's length would be wrong
        assert np.array_equal(read(tmp_path, other).keypoints, read(tmp_path, data).keypoints)


def test_a_missing_canvas_is_assumed_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read(tmp_path, pickle.dumps(person())).canvas == Canvas(512, 768)
    assert "512x768 is assumed" in caplog.text


# ---- nothing is run ----------------------------------------------------------------------------------------------


class Calls:
    """Pickles as a call of any function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.arguments


class Stateful:
    """Pickles as an object with a state."""

    def __init__(self) -> None:
        self.bodies = 1


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "attack",
    [
        Calls(os.system, "touch HACKED"),
        Calls(eval, "open('HACKED', 'w')"),
        Calls(exec, "open('HACKED', 'w')"),
        Calls(getattr, "x", "upper"),
        Calls(np.load, "HACKED"),
        Calls(np.zeros, 10**12),
        Calls(np.fromfile, "/dev/zero"),
        Calls(np.memmap, "HACKED"),
        Calls(__import__, "antigravity"),
        Calls(open, "HACKED", "w"),
        Calls(copyreg._reconstructor, dict, object, None),  # type: ignore[attr-defined]
        Calls(pickle.loads, pickle.dumps(1)),
        Stateful(),
        np.array([os.system, eval], object),
        np.array([{1: 2}, "x"], object),
        np.zeros(3, [("a", "f4")]),
        np.array(["text"]),
        np.datetime64("2020-01-01"),
        {1, 2, 3},
        complex(1, 2),
        slice(1, 2),
        range(5),
        os.system,
        dict,
    ],
    ids=lambda attack: getattr(attack, "function", attack).__class__.__name__,
)
def test_anything_but_plain_data_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attack: Any, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    for value in ({"bodies": attack}, video() | {"faces": attack}, [attack], attack):
        with pytest.raises(InputError, match=r"x\.pkl"):
            read(tmp_path, pickle.dumps(value, protocol))
    assert [path.name for path in tmp_path.iterdir()] == ["x.pkl"]


def test_the_harmful_name_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the name (posix|nt)\.system, which pose data does not need"):
        read(tmp_path, pickle.dumps({"bodies": Calls(os.system, "true")}))


_PROTO = b"\x80\x02"
_NDARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"


@pytest.mark.parametrize(
    "data",
    [
        _PROTO + b"K\x01r\xff\xff\xff\x7f.",  # a memo number that would reserve 16 GB
        _PROTO + b"K\x01r\xff\xff\xff\xff.",
        _PROTO + b"K\x01p999999999999\n.",
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",  # a text of 2**63 bytes
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",  # a frame of that length
        b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x7f.",
        _PROTO + b"\x8b\xff\xff\xff\x7f.",
        _PROTO + _NDARRAY + b"(K\x01(M\xff\xffM\xff\xffM\xff\xfftcnumpy\ndtype\n(U\x02f8K\x00K\x01tR\x89U\x01atb.",
        _PROTO + b"(" * 20_000 + b".",
        _PROTO + b"]" * 20_000 + b"a" * 19_999 + b".",
        _PROTO + b"cnumpy\nndarray\nK\x05\x85R.",
        _PROTO + b"cnumpy\nndarray\n}U\x01ab.",
        _PROTO + b"cnumpy\ndtype\n}b.",
        _PROTO + b"cnumpy\ndtype\nU\x05V9999\x85R.",
        _PROTO + b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\nK\x00\x85U\x01btR.",
        _PROTO + b"c_codecs\nencode\nU\x01aU\x03hex\x86R.",
        _PROTO + b"0.",
        _PROTO + b"R.",
        _PROTO + b"\x82\x01.",  # an extension number
        _PROTO + b"U\x01aQ.",  # a persistent id
        b"ios\nsystem\n(U\x04trueo.",
        b"(S'true'\nios\nsystem\n.",
        b"",
        b"\x80",
        b"\x80\x09.",
        b".",
        b"I1",
        b"hello",
    ],
)  # fmt: skip
def test_crafted_pickles_take_no_memory_and_no_time(tmp_path: Path, data: bytes) -> None:
    tracemalloc.start()
    start = time.perf_counter()
    try:
        with pytest.raises(InputError):
            read(tmp_path, data)
        assert tracemalloc.get_traced_memory()[1] < 60e6
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - start < 10


def test_shared_lists_cannot_explode(tmp_path: Path) -> None:
    value: Any = [0.5] * 10
    for _ in range(6):
        value = [value] * 30
    with pytest.raises(InputError, match=r"bodies: more than 20000000 numbers"):
        read(tmp_path, pickle.dumps({"bodies": value}))
    laugh: Any = ()
    for _ in range(60):
        laugh = (laugh, laugh)
    with pytest.raises(InputError):
        read(tmp_path, pickle.dumps({"bodies": laugh}))
    # The pickle itself refuses such a key: hashing it takes 2**60 steps.
    data = pickle.dumps(laugh, 2)[:-1]
    with pytest.raises(InputError, match="dictionary key of type tuple"):
        read_pickle(b"\x80\x02}" + data[2:] + b"K\x01s.", "x")


def test_a_list_that_holds_itself_is_refused(tmp_path: Path) -> None:
    value: list[Any] = [0.5]
    value.append(value)
    with pytest.raises(InputError, match="bodies"):
        read(tmp_path, pickle.dumps({"bodies": value}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bodies": np.zeros((3, 17, 2))}, r"bodies: shape \[3, 17, 2\]"),
        ({"bodies": np.full((3, 18, 2), np.nan)}, "bodies: NaN"),
        ({"bodies": None}, "bodies: missing"),
        ({"bodies": [[1, 2], [1]]}, "bodies: lists of unequal"),
        ({"bodies": "x"}, "bodies: not an array"),
        ({"bodies": np.full((3, 18, 2), 1e300)}, "keypoints: NaN or infinite"),
        ({"body_indices": np.zeros((2, 18))}, "body_indices: shape"),
        ({"hands": np.zeros((3, 2, 20, 2))}, "hands: shape"),
        ({"faces": np.zeros((2, 68, 2))}, "faces: shape"),
        ({"size": (0, 0, 3)}, "canvas: 0x0"),
        ({"size": 5}, "size: expected"),
        ({"fps": 0}, "fps: expected"),
        ({"fps": float("nan")}, "fps: NaN"),
    ],
)
def test_a_wrong_field_is_refused_by_name(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path, pickle.dumps(video() | change))


_EDITS = st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 4), st.binary(max_size=4)), min_size=1, max_size=4)
_VALID = [pickle.dumps(video(), protocol) for protocol in (0, 2, 4, 5)] + [pickle.dumps(person(), 4)]


@pytest.mark.filterwarnings("ignore:invalid escape:DeprecationWarning")  # of pickletools, on damaged text
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    which=st.integers(0, len(_VALID) - 1),
    edits=st.lists(
        st.tuples(st.integers(0, 1 << 20), st.integers(0, 4), st.binary(max_size=4)), min_size=1, max_size=4
    ),
    head=st.booleans(),
)
def test_any_mutation_gives_poses_or_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, which: int, edits: list[tuple[int, int, bytes]], head: bool
) -> None:
    data = _VALID[which]
    for at, length, new in edits:
        # Most bytes are array data; the first hundred hold the program.
        at %= 100 if head else len(data)
        data = data[:at] + new + data[at + length :]
    try:
        poses = read(tmp_path_factory.getbasetemp(), data)
    except InputError:
        return
    assert np.isfinite(poses.keypoints).all()


def test_the_released_loader_case_is_read(shared: Path, tmp_path: Path) -> None:
    fixture = np.load(shared / "reference/fixtures/loader.npz", allow_pickle=False)
    poses = read(tmp_path, pickle.dumps({"bodies": fixture["bodies"], "size": (90, 64, 3), "fps": 8}))
    seen = poses.scores[:, 0, :18] > 0
    expected = fixture["bodies"] * [64, 90]
    assert np.allclose(poses.keypoints[:, 0, :18][seen], expected[seen], rtol=1e-6)
    embedded = fixture["pose_embedding"].transpose(0, 2, 1)  # every second frame, normalised
    assert np.allclose((poses.keypoints[::2, 0, :18] / [64, 90])[:4][seen[::2][:4]], embedded[seen[::2][:4]], atol=1e-6)
