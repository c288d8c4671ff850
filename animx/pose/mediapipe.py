"""Pose without any download: mediapipe 0.10.21, whose models are inside its wheel.

In: RGB frames.  Out: one person in `openpose-134`: body and feet from the 33-point pose model, on request hands (2x21)
and face (468-point mesh reduced to iBUG 68) from the holistic graph; also the person segmentation net.
Only the graph bindings are imported: the package's own `__init__` would bring matplotlib and the tasks API (1 s).
The graphs' own smoothing is off: it lags, and we see the future (see `smooth.py`).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from animx.errors import MissingExtraError
from animx.pose.detection import Detection, nobody
from animx.pose.skeleton import FACE, JOINTS, LEFT_HAND, RIGHT_HAND

BODY_FROM_33 = (
    0, (11, 12), 12, 14, 16, 11, 13, 15, 24, 26, 28, 23, 25, 27, 5, 2, 8, 7,
    31, 31, 29, 32, 32, 30,
)  # fmt: skip
"""openpose-134 joints 0-23 from mediapipe's 33 points; neck = middle of the shoulders, one toe point fills two."""

FACE_FROM_468 = (
    162, 234, 93, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 323, 454, 389,
    71, 63, 105, 66, 107, 336, 296, 334, 293, 301,
    168, 197, 5, 4, 75, 97, 2, 326, 305,
    33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380,
    61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181, 78, 82, 13, 312, 308, 317, 14, 87,
)  # fmt: skip
"""iBUG 68 face points as vertices of the 468-point mesh."""

OUTSIDE_SCORE = 0.25
"""Highest score of a joint outside the picture: it is guessed, so it stays, but counts as not seen (under 0.3)."""

_MODULES = ("pose", "holistic", "face_mesh", "hands", "selfie_segmentation")
_NOISE = re.compile(rb"(INFO: Created TensorFlow|WARNING: All log messages before absl|[IW]\d{4} \d\d:\d\d:)")


class MediapipeBackend:
    """The `mediapipe` backend: one person, tracked from frame to frame.

    `hands` adds hands and face (the holistic graph, about half as fast); `confidence` is the least score of the person
    detector.  Safe to use from several threads (calls wait for each other).
    """

    name = "mediapipe"
    max_persons = 1

    def __init__(self, *, hands: bool = False, confidence: float = 0.5) -> None:
        if (missing := self.available()) is not None:
            raise MissingExtraError.saying(missing, "offline")
        self.version = version("mediapipe")
        self.hands = hands
        self.confidence = confidence
        self._graphs: dict[bool, _Graph] = {}
        self._lock = threading.Lock()

    @classmethod
    def available(cls) -> str | None:
        """None when mediapipe and its bundled models are installed, else the line that gets them."""
        line = "needs the 'offline' extra. Run: pip install -c constraints.txt 'animx[offline]'"
        root = _package_folder()
        if root is None:
            if sys.version_info >= (3, 13):
                return (
                    "pose backend 'mediapipe' has no wheel for this Python (3.11 and 3.12 have one). "
                    "Run: pip install -c constraints.txt 'animx[pose]'"
                )
            return f"pose backend 'mediapipe' {line}"
        try:
            installed = version("mediapipe")
        except PackageNotFoundError:
            installed = "of unknown version"
        for part in ("modules/pose_landmark/pose_landmark_full.tflite", "python/solutions/holistic.py"):
            if not (root / part).is_file():
                return f"pose backend 'mediapipe' (version {installed} has no bundled models) {line}"
        return None

    def detect(self, frame: NDArray[np.uint8], *, still: bool = False) -> Detection:
        """Find the most prominent person of an RGB frame [H, W, 3]; see `PoseBackend.detect`."""
        with self._lock:
            graph = self._graphs.get(still)
            if graph is None:
                graph = self._graphs[still] = self._open(still)
            found = graph.run(frame)
        if found.pose_landmarks is None:
            return nobody()
        height, width = frame.shape[:2]
        return _detection(found, width, height)

    def _open(self, still: bool) -> _Graph:
        solutions = _solutions()
        make = solutions.holistic.Holistic if self.hands else solutions.pose.Pose
        return _Graph(
            lambda: make(static_image_mode=still, smooth_landmarks=False, min_detection_confidence=self.confidence),
            "pose_landmarks",
        )

    def reset(self) -> None:
        """Forget the tracked person."""
        with self._lock:
            if False in self._graphs:
                self._graphs.pop(False).close()

    def close(self) -> None:
        """Close the graphs."""
        with self._lock:
            while self._graphs:
                self._graphs.popitem()[1].close()


def selfie_mask(picture: NDArray[np.uint8], *, landscape: bool = False) -> NDArray[np.float32]:
    """Where a person is in an RGB picture, as coverage 0..1 float32 [H, W]; `landscape` takes the net's wide variant.

    The net sees the picture as 256x256 (256x144), so outlines are soft.  Safe to call from several threads.
    """
    graph, lock = _selfie(landscape)
    with lock:
        mask = graph.run(picture).segmentation_mask
    return np.clip(np.array(mask, np.float32), 0.0, 1.0)


@cache
def _selfie(landscape: bool) -> tuple[_Graph, threading.Lock]:
    if (missing := MediapipeBackend.available()) is not None:
        raise MissingExtraError.saying(missing, "offline")
    make = _solutions().selfie_segmentation.SelfieSegmentation
    return _Graph(lambda: make(model_selection=int(landscape)), "segmentation_mask"), threading.Lock()


class _Graph:
    """One mediapipe graph; its start-up chatter on file descriptor 2 is filtered."""

    def __init__(self, make: Any, awaited: str) -> None:
        self._make = make
        self._awaited = awaited
        self._chatty = True  # until the awaited output came once: by then every calculator has been opened
        self._solution: Any = None

    def run(self, frame: NDArray[np.uint8]) -> Any:
        """The graph's outputs for an RGB frame."""
        frame = np.ascontiguousarray(frame)
        if not self._chatty:
            return self._solution.process(frame)
        with quiet_stderr():
            if self._solution is None:
                # Made here: its threads go on opening calculators, and chatting, after the call returned.
                self._solution = self._make()
            found = self._solution.process(frame)
        self._chatty = getattr(found, self._awaited) is None
        return found

    def close(self) -> None:
        """Close the graph."""
        if self._solution is not None:
            self._solution.close()


def _detection(found: Any, width: int, height: int) -> Detection:
    points = _landmarks(found.pose_landmarks)  # [33, 4] x, y, z, visibility
    body = np.stack([points[list(i)].mean(0) if isinstance(i, tuple) else points[i] for i in BODY_FROM_33])
    body[1, 3] = min(points[11, 3], points[12, 3])
    whole = np.zeros((JOINTS, 4))
    whole[: len(body)] = body
    for hand, name, wrist in ((LEFT_HAND, "left", 15), (RIGHT_HAND, "right", 16)):
        marks = getattr(found, f"{name}_hand_landmarks", None)
        if marks is not None:
            whole[list(hand)] = _landmarks(marks)
            whole[list(hand), 2] += points[wrist, 2]  # its z is relative to the wrist
            whole[list(hand), 3] = 1.0
    mesh = getattr(found, "face_landmarks", None)
    if mesh is not None:
        vertices = _landmarks(mesh)
        whole[list(FACE)] = vertices[list(FACE_FROM_468)]
        whole[list(FACE), 2] += points[0, 2] - vertices[4, 2]  # 4: the tip of the nose
        whole[list(FACE), 3] = 1.0
    keypoints = (whole[:, :2] * (width, height)).astype(np.float32)
    beyond = np.maximum(np.maximum(-keypoints, keypoints - (width, height)).max(1), 0)  # px outside the picture
    scores = np.where(beyond > 0.01 * max(width, height), np.minimum(whole[:, 3], OUTSIDE_SCORE), whole[:, 3])
    scores = np.clip(scores, 0.0, 1.0).astype(np.float32)
    depth = np.where(scores > 0, -whole[:, 2] * width, 0.0).astype(np.float32)  # its z grows away from the viewer
    return Detection(keypoints[None], scores[None], depth[None])


def _landmarks(marks: Any) -> NDArray[np.float64]:
    return np.array([(mark.x, mark.y, mark.z, mark.visibility) for mark in marks.landmark], np.float64)


_import_lock = threading.RLock()


def _package_folder() -> Path | None:
    """Where mediapipe is installed; None when it is not."""
    with _import_lock:  # another thread may be in the middle of `_solutions`, with bare packages in `sys.modules`
        spec = importlib.util.find_spec("mediapipe")
        return None if spec is None or spec.origin is None else Path(spec.origin).parent


def _solutions() -> SimpleNamespace:
    """The graph classes; the first call imports them, in one thread."""
    with _import_lock:
        return _import_solutions()


@cache
def _import_solutions() -> SimpleNamespace:
    """Import the graph classes without the package's own `__init__`s (which import matplotlib, tasks, ...)."""
    root = _package_folder()
    if root is None:
        raise MissingExtraError("pose backend 'mediapipe'", "offline")
    before = {name for name in sys.modules if name.partition(".")[0] == "mediapipe"}
    for name in ("mediapipe", "mediapipe.python", "mediapipe.python.solutions"):
        if name not in before:
            bare = sys.modules[name] = ModuleType(name)
            bare.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
    try:
        found = {name: importlib.import_module(f"mediapipe.python.solutions.{name}") for name in _MODULES}
    finally:
        # Somebody else's later `import mediapipe` must get the real package; what registers native types only
        # once (the bindings and the protobuf modules) stays.
        for name in [name for name in sys.modules if name.partition(".")[0] == "mediapipe"]:
            if name not in before and not name.endswith("_pb2") and "._framework_bindings" not in name:
                del sys.modules[name]
    return SimpleNamespace(**found)


_stderr_lock = threading.Lock()
_stderr_users = 0
_stderr_saved = -1
_stderr_spool: Any = None


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """Hold back what native code writes to file descriptor 2; on leaving all but known start-up chatter is passed on.

    Nests and may be entered by several threads at once: the last one to leave restores the descriptor.
    """
    global _stderr_users, _stderr_saved, _stderr_spool
    with _stderr_lock:
        _stderr_users += 1
        if _stderr_users == 1:
            try:
                _stderr_saved = os.dup(2)
                _stderr_spool = tempfile.TemporaryFile()  # noqa: SIM115
                os.dup2(_stderr_spool.fileno(), 2)
            except OSError:  # no descriptor 2 or no temporary folder: nothing to hold back
                _stderr_spool = None
    try:
        yield
    finally:
        with _stderr_lock:
            _stderr_users -= 1
            if _stderr_users == 0 and _stderr_spool is not None:
                os.dup2(_stderr_saved, 2)
                os.close(_stderr_saved)
                _stderr_spool.seek(0)
                rest = [line for line in _stderr_spool.read().splitlines(keepends=True) if not _NOISE.match(line)]
                _stderr_spool.close()
                _stderr_spool = None
                for line in rest:
                    os.write(2, line)


__all__ = ["BODY_FROM_33", "FACE_FROM_468", "MediapipeBackend", "quiet_stderr", "selfie_mask"]
