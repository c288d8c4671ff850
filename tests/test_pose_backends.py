"""One contract for every pose backend, and what is particular to the two built-in ones."""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from drawn_figure import dance, draw

from animx.errors import MissingExtraError, UsageError, WeightsError
from animx.pose import backend as backends
from animx.pose import mediapipe
from animx.pose import rtm_glue as glue
from animx.pose.detection import Detection, PoseBackend, nobody
from animx.pose.mediapipe import MediapipeBackend, selfie_mask
from animx.pose.rtm import RtmBackend
from animx.pose.skeleton import JOINTS, TEMPLATE

needs_mediapipe = pytest.mark.skipif(MediapipeBackend.available() is not None, reason="the 'offline' extra is missing")
needs_onnx = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("onnx", "onnxruntime"))), reason="onnx or onnxruntime is missing"
)

DARK = np.zeros((120, 90, 3), np.uint8)


class FakeBackend:
    """Finds one person when the picture is not dark: a template body that fills it."""

    name, version, max_persons = "fake", "1", 1

    @classmethod
    def available(cls) -> str | None:
        return None

    def detect(self, frame: np.ndarray, *, still: bool = False) -> Detection:
        if frame.mean() < 50:
            return nobody()
        keypoints, scores = np.zeros((1, JOINTS, 2), np.float32), np.zeros((1, JOINTS), np.float32)
        for joint, (x, y) in TEMPLATE.items():
            keypoints[0, joint] = (0.5 + x) * frame.shape[1], (0.5 + y) * frame.shape[0]
            scores[0, joint] = 0.9
        return Detection(keypoints, scores)

    def reset(self) -> None: ...

    def close(self) -> None: ...


def tiny_nets(folder: Path, boxes: list[tuple[float, float, float, float, float]]) -> tuple[Path, Path]:
    """ONNX files of a 64x64 detector that sees `boxes` (x1 y1 x2 y2 score) in bright pictures, and a keypoint net."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rows = 8 * 8 + 4 * 4 + 2 * 2
    raw = np.zeros((1, rows, 6), np.float32)
    for row, (x1, y1, x2, y2, score) in enumerate(boxes):  # rows 0..7: cells (row, 0) of stride 8
        raw[0, row] = ((x1 + x2) / 16 - row, (y1 + y2) / 16, np.log((x2 - x1) / 8), np.log((y2 - y1) / 8), score, 1)
    bright = np.zeros((1, 1, 6), np.float32)
    bright[..., 4] = 1

    def save(name: str, nodes: list, inputs: tuple, outputs: list, constants: dict) -> Path:
        tensors = [numpy_helper.from_array(np.asarray(value, np.float32), key) for key, value in constants.items()]
        graph = helper.make_graph(
            nodes, name, [helper.make_tensor_value_info("x", TensorProto.FLOAT, inputs)],
            [helper.make_tensor_value_info(key, TensorProto.FLOAT, shape) for key, shape in outputs], tensors,
        )  # fmt: skip
        path = folder / f"{name}.onnx"
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
        model.ir_version = 8
        onnx.save(model, path)
        return path

    node = helper.make_node
    detector = save(
        "det",
        [
            node("ReduceMax", ["x"], ["top"], axes=[1, 2, 3], keepdims=0),  # [1]
            node("Sub", ["top", "grey"], ["over"]),
            node("Clip", ["over", "zero", "one"], ["light"]),  # 1 in a bright picture; padding is 114
            node("Mul", ["mask", "light"], ["gate"]),
            node("Add", ["gate", "rest"], ["factor"]),
            node("Mul", ["raw", "factor"], ["out"]),
        ],
        (1, 3, 64, 64),
        [("out", (1, rows, 6))],
        {"raw": raw, "grey": 120.0, "zero": 0.0, "one": 1.0, "mask": bright, "rest": 1 - bright},
    )
    x, y = np.full((1, 133, 144), -1, np.float32), np.full((1, 133, 192), -1, np.float32)
    for point in range(133):
        x[0, point, 30 + (point * 7) % 85], y[0, point, 25 + (point * 13) % 140] = 0.9, 0.8
    pose = save(
        "pose",
        [
            node("ReduceMean", ["x"], ["mean"], axes=[1, 2, 3], keepdims=0),
            node("Mul", ["mean", "nothing"], ["none"]),
            node("Add", ["none", "px"], ["simcc_x"]),
            node("Add", ["none", "py"], ["simcc_y"]),
        ],
        (1, 3, 96, 72),
        [("simcc_x", x.shape), ("simcc_y", y.shape)],
        {"nothing": 0.0, "px": x, "py": y},
    )
    return detector, pose


@pytest.fixture(scope="module")
def one_person_nets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return tiny_nets(tmp_path_factory.mktemp("nets"), [(12.0, 6.0, 40.0, 58.0, 0.9)])


@pytest.fixture(
    params=["fake", pytest.param("mediapipe", marks=needs_mediapipe), pytest.param("rtm", marks=needs_onnx)]
)
def make(request: pytest.FixtureRequest):
    """A maker of fresh backends of one kind."""
    if request.param == "fake":
        return FakeBackend
    if request.param == "mediapipe":
        return MediapipeBackend
    det, pose = request.getfixturevalue("one_person_nets")
    return lambda: RtmBackend(det=det, pose=pose)


@pytest.fixture(scope="module")
def clip() -> list[np.ndarray]:
    return [draw(joints) for joints in dance(4, 12.0)]


# ---- the contract ----


def test_a_backend_says_who_it_is(make):
    backend = make()
    assert isinstance(backend, PoseBackend)
    assert backend.name
    assert backend.version
    assert backend.max_persons >= 1


def test_a_person_is_found_with_finite_points_and_scores_in_range(make, clip):
    found = make().detect(clip[0])
    assert 1 <= found.persons <= make().max_persons
    assert found.keypoints.shape == (found.persons, JOINTS, 2)
    assert found.keypoints.dtype == found.scores.dtype == np.float32
    assert np.isfinite(found.keypoints).all()
    assert 0 <= found.scores.min() <= found.scores.max() <= 1
    assert (found.scores[0, :18] >= 0.3).sum() >= 12
    if found.depth is not None:
        assert found.depth.shape == found.scores.shape
        assert np.isfinite(found.depth).all()


def test_a_picture_without_a_person_gives_nobody(make):
    backend = make()
    assert backend.detect(DARK).persons == 0
    assert backend.detect(DARK, still=True).persons == 0


def test_a_still_look_does_not_disturb_the_clip(make, clip):
    plain, disturbed = make(), make()
    for frame, other in zip(clip, reversed(clip), strict=True):
        expected = plain.detect(frame)
        found = disturbed.detect(frame)
        disturbed.detect(np.ascontiguousarray(other[:, ::-1]), still=True)
        np.testing.assert_array_equal(found.keypoints, expected.keypoints)


def test_a_still_look_does_not_depend_on_the_clip(make, clip):
    alone, busy = make(), make()
    for frame in clip[:2]:
        busy.detect(frame)
    np.testing.assert_array_equal(
        busy.detect(clip[3], still=True).keypoints, alone.detect(clip[3], still=True).keypoints
    )


def test_after_a_reset_nothing_of_the_last_clip_is_left(make, clip):
    used, fresh = make(), make()
    for frame in clip[:3]:
        used.detect(frame)
    used.reset()
    np.testing.assert_array_equal(used.detect(clip[3]).keypoints, fresh.detect(clip[3]).keypoints)


def test_odd_sizes_and_strided_pictures_are_fine(make, clip):
    backend = make()
    odd = np.ascontiguousarray(clip[0][:575, :383])
    assert backend.detect(odd).persons == 1
    backend.reset()
    views = backend.detect(clip[0][:, ::-1]).keypoints
    backend.reset()
    np.testing.assert_array_equal(views, backend.detect(np.ascontiguousarray(clip[0][:, ::-1])).keypoints)
    backend.reset()
    backend.detect(np.zeros((1, 1, 3), np.uint8))
    backend.detect(np.zeros((3, 700, 3), np.uint8), still=True)


def test_closing_twice_is_harmless(make, clip):
    backend = make()
    backend.detect(clip[0])
    backend.close()
    backend.close()


def test_the_pose_of_a_picture_is_one_frame_of_one_person_or_none(make, clip):
    pose = backends.detect_still(clip[0], make())
    assert pose is not None
    assert (pose.frames, pose.persons, pose.canvas.size) == (1, 1, (384, 576))
    assert pose.source["backend"].startswith(make().name)
    assert backends.detect_still(DARK, make()) is None


# ---- the choice ----


def test_a_named_backend_is_logged(caplog, one_person_nets):
    with caplog.at_level(logging.INFO):
        backends.choose_backend("rtm", det=one_person_nets[0], pose=one_person_nets[1])
    assert "pose backend: rtm (det.onnx pose.onnx CPUExecutionProvider)" in caplog.text.replace("CUDA", "CPU")


def test_the_default_is_the_best_one_with_weights(monkeypatch, one_person_nets):
    monkeypatch.setenv("ANIMX_RTM_DET", str(one_person_nets[0]))
    monkeypatch.setenv("ANIMX_RTM_POSE", str(one_person_nets[1]))
    assert backends.choose_backend().name == "rtm"
    monkeypatch.setattr(RtmBackend, "available", classmethod(lambda cls: "no weights"))
    monkeypatch.setattr(MediapipeBackend, "available", classmethod(lambda cls: None))
    monkeypatch.setattr(MediapipeBackend, "__init__", lambda self, hands=False: setattr(self, "version", "x"))
    assert backends.choose_backend(hands=True).name == "mediapipe"


def test_nothing_usable_ends_with_the_line_that_gets_one(monkeypatch):
    for kind in (RtmBackend, MediapipeBackend):
        monkeypatch.setattr(kind, "available", classmethod(lambda cls: "missing"))
    with pytest.raises(MissingExtraError, match=r"pip install -c constraints\.txt 'animx\[(offline|pose)\]'$"):
        backends.choose_backend()


def test_an_unknown_name_or_option_names_the_nearest():
    with pytest.raises(UsageError, match="Did you mean 'mediapipe'"):
        backends.choose_backend("mediapip")
    with pytest.raises(UsageError, match=r"no option 'detect_evry'\. Did you mean 'detect_every'"):
        backends.choose_backend("rtm", detect_evry=3)


# ---- mediapipe ----


@needs_mediapipe
def test_mediapipe_finds_the_joints_of_a_drawn_dancer(clip):
    backend, truth = MediapipeBackend(), dance(4, 12.0)
    errors = []
    for frame, joints in zip(clip, truth, strict=True):
        found = backend.detect(frame)
        errors.append(np.linalg.norm(found.keypoints[0, 2:14] - joints[2:14], axis=-1) / 576)
    assert np.mean(errors) < 0.025  # 1.5 % is usual
    assert np.max(errors) < 0.08


@needs_mediapipe
def test_mediapipe_hands_and_face_sit_on_the_body(clip):
    found = MediapipeBackend(hands=True).detect(clip[0])
    points, scores = found.keypoints[0], found.scores[0]
    assert scores[24:92].all()  # the face is drawn frontally
    assert np.linalg.norm(points[24:92].mean(0) - points[0]) < 0.05 * 576
    assert points[24, 0] < points[40, 0]  # iBUG: jaw from the picture's left to its right
    for hand, wrist in ((92, 7), (113, 4)):
        if scores[hand]:
            assert np.linalg.norm(points[hand] - points[wrist]) < 0.08 * 576


@needs_mediapipe
def test_mediapipe_depth_grows_towards_the_viewer(clip):
    found = MediapipeBackend().detect(clip[0])
    depth = found.depth[0]
    assert depth[0] > (depth[16] + depth[17]) / 2  # the nose lies before the ears
    assert abs(depth[8] + depth[11]) / 2 < 0.02 * 576  # relative to mid-hip


@needs_mediapipe
def test_mediapipe_joints_outside_the_picture_are_kept_as_guesses(clip):
    cropped = np.ascontiguousarray(clip[0][:400])  # cut at the knees
    found = MediapipeBackend().detect(cropped)
    below = found.keypoints[0, :24, 1] > 410
    assert below[[10, 13]].all()
    assert (found.scores[0, :24][below] <= 0.25).all()
    assert (found.scores[0, :24][below] > 0).all()


@needs_mediapipe
def test_the_person_mask_covers_the_person(clip):
    mask = selfie_mask(clip[0])
    assert mask.shape == (576, 384)
    assert mask.dtype == np.float32
    assert 0 <= mask.min() <= mask.max() <= 1
    trunk = dance(4, 12.0)[0][[1, 8, 11]].mean(0).astype(int)
    assert mask[trunk[1], trunk[0]] > 0.9
    assert mask[:40].mean() < 0.1
    np.testing.assert_array_equal(backends.mask_hint(clip[0]), mask)


@needs_mediapipe
def test_threads_get_the_same_results_as_one_alone(clip):
    backend = MediapipeBackend()
    expected = backend.detect(clip[0], still=True).keypoints, selfie_mask(clip[0])
    wrong: list[str] = []

    def work() -> None:
        for _ in range(3):
            if not np.array_equal(backend.detect(clip[0], still=True).keypoints, expected[0]):
                wrong.append("pose")
            if not np.array_equal(selfie_mask(clip[0]), expected[1]):
                wrong.append("mask")

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


QUIET = """
import os, sys
sys.path.insert(0, {tests!r})
from drawn_figure import dance, draw
from animx.pose.mediapipe import MediapipeBackend, quiet_stderr, selfie_mask
frame = draw(dance(1)[0])
for hands in (False, True):
    backend = MediapipeBackend(hands=hands)
    backend.detect(frame); backend.detect(frame)
backend = MediapipeBackend()
backend.detect(frame, still=True); backend.reset(); backend.detect(frame)
selfie_mask(frame)
with quiet_stderr():
    os.write(2, b'W0000 00:00:1 chatter\\n')
    os.write(2, b'a real error\\n')
loaded = {{name.partition('.')[0] for name in sys.modules}}
print('matplotlib' in loaded, 'jax' in loaded, 'torch' in loaded)
import mediapipe
print(mediapipe.__version__)
"""


@needs_mediapipe
def test_one_thread_may_ask_for_mediapipe_while_another_imports_it(monkeypatch):
    real, answers = importlib.import_module, []

    def asking(name, *rest):
        asker = threading.Thread(target=lambda: answers.append(MediapipeBackend.available()))
        asker.start()
        asker.join(0.1)  # it may have to wait
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", asking)
    mediapipe._import_solutions.cache_clear()
    mediapipe._solutions()
    threading.Event().wait(0.1)
    assert set(answers) == {None}
    assert len(answers) == len(mediapipe._MODULES)


def test_a_backend_that_is_missing_says_its_whole_line(monkeypatch):
    for line in ("it (version 1 has no models) needs the 'offline' extra. Run: pip", "it has no wheel. Run: pip"):
        monkeypatch.setattr(MediapipeBackend, "available", classmethod(lambda cls, line=line: line))
        with pytest.raises(MissingExtraError) as refusal:
            MediapipeBackend()
        assert str(refusal.value) == line


def test_chatter_of_a_graphs_own_threads_is_held_back_too(capfd):
    class Solution:
        def __init__(self):
            self.opening = threading.Timer(0.05, os.write, (2, b"INFO: Created TensorFlow Lite delegate\n"))
            self.opening.start()

        def process(self, frame):
            self.opening.join()
            return SimpleNamespace(mask=frame)

    graph = mediapipe._Graph(Solution, "mask")
    threading.Event().wait(0.1)
    graph.run(DARK)
    assert capfd.readouterr().err == ""


@needs_mediapipe
def test_mediapipe_is_quiet_but_hides_no_error_and_loads_no_matplotlib():
    code = QUIET.format(tests=str(Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "a real error\n"
    assert done.stdout.split() == ["False", "False", "False", "0.10.21"]  # and the real package still imports


# ---- rtm ----


def test_the_glue_agrees_with_the_released_extraction(shared):
    fixture = np.load(shared / "reference" / "fixtures" / "dwpose_glue.npz")
    pixels, ratio = glue.letterbox(fixture["det/img"], (64, 64))
    np.testing.assert_array_equal(pixels, fixture["det/pre64"])
    np.testing.assert_array_equal(glue.decode_yolox(fixture["det/raw80"], (80, 80)), fixture["det/decoded80"])
    raw = np.zeros((1, 8400, 6), np.float32)
    raw[..., 2:4] = -3
    raw[0, fixture["det/raw640_rows"]] = fixture["det/raw640"]
    pixels, ratio = glue.letterbox(fixture["det/img"], (640, 640))
    assert pixels.sum(dtype=np.float64) == pytest.approx(float(fixture["det/net_input_sum"]), rel=1e-6)
    boxes, scores = glue.person_boxes(glue.decode_yolox(raw, (640, 640)), ratio)
    np.testing.assert_allclose(boxes, fixture["det/boxes"], rtol=1e-9)
    assert (np.diff(scores) < 0).all()
    for i, box in enumerate(fixture["pose/boxes"]):
        pixels, centre, region = glue.crop(fixture["det/img"], box, (72, 96))
        np.testing.assert_array_equal(pixels.transpose(1, 2, 0), fixture["pose/crops"][i])
        points, found = glue.decode_simcc(
            fixture["pose/simcc_x"][i], fixture["pose/simcc_y"][i], (72, 96), centre, region
        )
        np.testing.assert_allclose(points, fixture["pose/keypoints"][i], rtol=1e-12)
        np.testing.assert_array_equal(found, fixture["pose/scores"][i])


def test_coco_points_land_on_their_openpose_joints():
    points = np.stack([np.arange(133.0), 2 * np.arange(133.0)], -1)[None]
    keypoints, scores = glue.openpose_from_coco(points, np.full((1, 133), 0.7))
    assert list(keypoints[0, :18, 0]) == [0, 5.5, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3]
    assert list(keypoints[0, 18:, 0]) == list(range(17, 133))
    one_shoulder = np.full((1, 133), 0.7)
    one_shoulder[0, 5] = 0.2
    assert glue.openpose_from_coco(points, one_shoulder)[1][0, 1] == 0
    assert scores[0, 1] == np.float32(0.7)


@needs_onnx
def test_rtm_puts_the_crop_points_into_the_picture(one_person_nets):
    found = RtmBackend(det=one_person_nets[0], pose=one_person_nets[1]).detect(np.full((640, 320, 3), 200, np.uint8))
    ratio, box = 0.1, np.array([12.0, 6.0, 40.0, 58.0])  # the letterbox of 640 rows on 64
    _, centre, region = glue.crop(np.zeros((640, 320, 3), np.uint8), box / ratio, (72, 96))
    nose = np.array([30 / 144, 25 / 192]) * region + centre - region / 2
    np.testing.assert_allclose(found.keypoints[0, 0], nose, rtol=1e-5)
    assert found.scores[0, 0] == np.float32(0.8)


@needs_onnx
def test_rtm_finds_several_persons_best_first_and_suppresses_doubles(tmp_path):
    boxes = [
        (2.0, 4.0, 22.0, 60.0, 0.6),
        (36.0, 4.0, 60.0, 60.0, 0.9),
        (3.0, 4.0, 23.0, 60.0, 0.5),
        (1.0, 1.0, 9.0, 9.0, 0.2),
    ]
    det, pose = tiny_nets(tmp_path, boxes)
    found = RtmBackend(det=det, pose=pose).detect(np.full((64, 64, 3), 255, np.uint8))
    assert found.persons == 2
    assert found.keypoints[0, :, 0].mean() > 40 > 20 > found.keypoints[1, :, 0].mean()


@needs_onnx
def test_rtm_runs_its_detector_every_n_frames_and_when_a_person_is_lost(one_person_nets, monkeypatch):
    backend = RtmBackend(det=one_person_nets[0], pose=one_person_nets[1], detect_every=4)
    looked = []
    find = backend._find
    monkeypatch.setattr(backend, "_find", lambda picture: (looked.append(1), find(picture))[1])
    frame = np.full((96, 64, 3), 200, np.uint8)
    runs = []
    for _ in range(9):
        backend.detect(frame)
        runs.append(len(looked))
    assert runs == [1, 1, 1, 1, 2, 2, 2, 2, 3]
    pose = backend._pose.run
    monkeypatch.setattr(
        backend._pose, "run", lambda pixels: [0.3 * output for output in pose(pixels)]
    )  # all scores fall
    backend.detect(frame)
    assert len(looked) == 4


@needs_onnx
def test_rtm_weights_that_are_missing_or_damaged_are_named(tmp_path, one_person_nets):
    with pytest.raises(WeightsError, match=r"nothing\.onnx"):
        RtmBackend(det=tmp_path / "nothing.onnx", pose=one_person_nets[1])
    (tmp_path / "junk.onnx").write_bytes(b"no model")
    with pytest.raises(WeightsError, match=r"junk\.onnx: not a usable ONNX file"):
        RtmBackend(det=tmp_path / "junk.onnx", pose=one_person_nets[1])
    with pytest.raises(WeightsError, match="expected SimCC of 133 points"):
        RtmBackend(det=one_person_nets[0], pose=one_person_nets[0]).detect(np.full((64, 64, 3), 200, np.uint8))


@needs_onnx
def test_rtm_without_weights_says_where_they_go_and_a_failed_download_too(tmp_path, monkeypatch):
    for name in ("XDG_CACHE_HOME", "TORCH_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    for name in ("ANIMX_RTM_DET", "ANIMX_RTM_POSE"):
        monkeypatch.delenv(name, raising=False)
    assert "ANIMX_RTM_DET" in (RtmBackend.available() or "")
    rtmlib = pytest.importorskip("rtmlib.tools.file")

    def refuse(*_: object, **__: object) -> str:
        print("a print of the library")
        raise OSError("no network")

    monkeypatch.setattr(rtmlib, "download_checkpoint", refuse)
    with pytest.raises(WeightsError, match=r"ANIMX_RTM_DET.*no network"):
        backends.choose_backend("rtm")


@needs_onnx
def test_rtm_runs_on_what_rtmlib_downloads_and_leaves_stdout_alone(tmp_path, monkeypatch, one_person_nets, capfd):
    for name in ("XDG_CACHE_HOME", "TORCH_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    for name in ("ANIMX_RTM_DET", "ANIMX_RTM_POSE"):
        monkeypatch.delenv(name, raising=False)
    rtmlib = pytest.importorskip("rtmlib.tools.file")
    asked = []

    def fetch(url: str, **_: object) -> str:
        print("a print of the library")
        asked.append(url)
        return str(one_person_nets["rtmw" in url])

    monkeypatch.setattr(rtmlib, "download_checkpoint", fetch)
    backend = backends.choose_backend("rtm")
    assert backend.detect(np.full((64, 64, 3), 255, np.uint8)).persons == 1
    assert ["yolox" in asked[0], "rtmw" in asked[1]] == [True, True]
    assert capfd.readouterr().out == ""


@needs_onnx
def test_rtm_takes_weights_from_the_cache_folder(tmp_path, monkeypatch, one_person_nets):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "animx" / "rtm"
    folder.mkdir(parents=True)
    for path in one_person_nets:
        (folder / path.name).write_bytes(path.read_bytes())
    assert RtmBackend.available() is None
    assert backends.choose_backend().name == "rtm"
