"""The shipped examples are what `examples/make.py` draws, and the dancer in the clip is found where its joints are."""

from __future__ import annotations

import importlib.util
from itertools import islice
from pathlib import Path
from types import ModuleType

import av
import cv2
import numpy as np
import pytest

from animx.pose import skeleton as sk
from animx_trainer import synthetic


@pytest.fixture(scope="module")
def make(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("examples_make", root / "examples" / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_shipped_characters_are_the_drawn_ones(root: Path, make: ModuleType) -> None:
    folder = root / "examples" / "characters"
    assert {path.stem for path in folder.iterdir()} == set(make.CHARACTERS)
    for name in make.CHARACTERS:
        shipped = cv2.imread(str(folder / f"{name}.png"), cv2.IMREAD_COLOR)
        # One level: another processor may round the last bit of a float differently.
        assert np.abs(shipped[..., ::-1].astype(int) - make.picture(name)).max() <= 1, name


def test_the_shipped_clip_is_the_drawn_dance(root: Path, make: ModuleType) -> None:
    with av.open(str(root / "examples" / "dance.mp4")) as clip:
        video, audio = clip.streams.video[0], clip.streams.audio[0]
        assert (video.width, video.height, video.average_rate) == (*make.CANVAS.size, make.FPS)
        assert video.codec_context.name == "h264"
        assert audio.codec_context.name == "aac"
        assert abs(float(audio.duration * audio.time_base) - make.FRAMES / make.FPS) < 0.1
        decoded = [frame.to_ndarray(format="rgb24") for frame in clip.decode(video)]
    assert len(decoded) == make.FRAMES
    for shipped, drawn in zip(decoded, islice(make.frames(), 3), strict=False):
        error = np.abs(shipped.astype(int) - drawn)
        assert error.mean() < 3
        assert np.percentile(error, 99) < 16
    still = np.abs(decoded[30].astype(int) - decoded[0]).mean()
    assert still > 3, "frames differ by less than the codec's noise: the comparison above proves nothing"


def test_the_shipped_poses_are_the_true_ones(root: Path, make: ModuleType) -> None:
    from animx.pose.formats import read_poses

    shipped, drawn = read_poses(root / "examples" / "dance.pose.npz"), make.poses()
    np.testing.assert_allclose(shipped.keypoints, drawn.keypoints, atol=1e-3)
    np.testing.assert_array_equal(shipped.scores, drawn.scores)
    assert (shipped.canvas, shipped.fps, shipped.frames) == (make.CANVAS, make.FPS, make.FRAMES)


def test_the_figure_of_every_example_is_found(root: Path, make: ModuleType) -> None:
    pytest.importorskip("mediapipe", reason="needs the 'offline' extra")
    from animx.image import read_picture
    from animx.puppet.mask import find_mask

    for name, chosen in make.CHARACTERS.items():
        who = synthetic.character(*chosen)
        truth = synthetic.draw_character(who, synthetic.rest_pose(who, make.CANVAS), make.CANVAS)[1] > 0.5
        found = find_mask(read_picture(root / "examples" / "characters" / f"{name}.png")).alpha > 0.5
        assert (found & truth).sum() / (found | truth).sum() > 0.94, name


def test_the_examples_are_small(root: Path) -> None:
    assert (root / "examples" / "dance.mp4").stat().st_size < 600_000
    assert sum(path.stat().st_size for path in (root / "examples").rglob("*.png")) < 600_000


@pytest.mark.slow
def test_a_pose_detector_finds_the_dancer_in_every_frame(root: Path, make: ModuleType) -> None:
    mediapipe = pytest.importorskip("mediapipe", reason="needs the 'offline' extra")
    places = {
        sk.L_SHOULDER: 11, sk.R_SHOULDER: 12, sk.L_ELBOW: 13, sk.R_ELBOW: 14, sk.L_WRIST: 15, sk.R_WRIST: 16,
        sk.L_HIP: 23, sk.R_HIP: 24, sk.L_KNEE: 25, sk.R_KNEE: 26, sk.L_ANKLE: 27, sk.R_ANKLE: 28,
    }  # fmt: skip
    width, height = make.CANVAS.size
    truth = synthetic.true_poses(
        synthetic.character("human"), synthetic.dance("show"), make.CANVAS, make.FRAMES, fps=make.FPS
    )
    errors = []
    with (
        mediapipe.solutions.pose.Pose(model_complexity=1) as detector,
        av.open(str(root / "examples" / "dance.mp4")) as clip,
    ):
        for t, frame in enumerate(clip.decode(video=0)):
            found = detector.process(frame.to_ndarray(format="rgb24")).pose_landmarks
            assert found is not None, f"nobody found in frame {t}"
            at = np.array([(found.landmark[i].x * width, found.landmark[i].y * height) for i in places.values()])
            errors.append(np.linalg.norm(at - truth.keypoints[t, 0, list(places)], axis=1).mean() / height)
    assert len(errors) == make.FRAMES
    assert np.mean(errors) < 0.02
    assert np.max(errors) < 0.06
