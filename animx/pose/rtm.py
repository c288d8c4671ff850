"""Pose by two ONNX nets: a YOLOX person detector and a SimCC keypoint net (DWPose, RTMPose, RTMW) on 133 points.

In: RGB frames.  Out: several persons in `openpose-134`.  The detector runs every `detect_every` frames and whenever a
person is lost; in between the boxes follow the keypoints.  Weights are ONNX files found in this order: `det=`/`pose=`,
`ANIMX_RTM_DET`/`ANIMX_RTM_POSE`, `~/.cache/animx/rtm`, rtmlib's own cache; its download runs only on `--backend rtm`.
"""

from __future__ import annotations

import importlib.util
import io
import logging
import os
import threading
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from animx.errors import MissingExtraError, UsageError, WeightsError, nearest
from animx.pose import rtm_glue as glue
from animx.pose.detection import MIN_JOINT_SCORE, MIN_SEEN_JOINTS, Detection, nobody

log = logging.getLogger(__name__)

FILE_NAMES = {
    "det": ("det.onnx", "yolox_l.onnx", "yolox_m.onnx"),
    "pose": ("pose.onnx", "dw-ll_ucoco_384.onnx", "rtmw.onnx"),
}
"""Names looked for in the cache folder."""

RTMLIB_FILES = {
    "balanced": {
        "det": "yolox_m_8xb8-300e_humanart-c2c7a14a.onnx",
        "pose": "rtmw-dw-x-l_simcc-cocktail14_270e-256x192_20231122.onnx",
    },
    "performance": {
        "det": "yolox_m_8xb8-300e_humanart-c2c7a14a.onnx",
        "pose": "rtmw-dw-x-l_simcc-cocktail14_270e-384x288_20231122.onnx",
    },
    "lightweight": {
        "det": "yolox_tiny_8xb8-300e_humanart-6f3252f9.onnx",
        "pose": "rtmw-dw-l-m_simcc-cocktail14_270e-256x192_20231122.onnx",
    },
}
"""The nets that rtmlib knows where to download, by its modes, as they are called in its cache."""

LOST_SCORE = 0.6
"""A followed person is looked for anew when its mean body score falls under this share of what it was when found."""

Provider = Literal["auto", "cuda", "cpu"]


class RtmBackend:
    """The `rtm` backend: several persons, best detection first.  Safe to use from several threads."""

    name = "rtm"
    max_persons = 16

    def __init__(
        self,
        *,
        det: str | Path | None = None,
        pose: str | Path | None = None,
        mode: str | None = None,
        detect_every: int = 30,
        provider: Provider = "auto",
        hands: bool = True,
    ) -> None:
        if importlib.util.find_spec("onnxruntime") is None:
            raise MissingExtraError("pose backend 'rtm'", "pose")
        if detect_every < 1:
            raise UsageError(f"detect_every {detect_every}: use 1 or more frames")
        if mode is not None and mode not in RTMLIB_FILES:
            raise UsageError(f"mode '{mode}' is unknown.{nearest(mode, RTMLIB_FILES)}")
        del hands  # the net gives them anyway; extract_poses leaves them out
        given = {"det": det, "pose": pose}
        files = {part: _weights_file(part, option, mode) for part, option in given.items()}
        if None in files.values():
            files = {part: files[part] or _download(part, mode or "balanced") for part in files}
        self._detector = _Net(_is_file(files["det"], "det"), provider)
        self._pose = _Net(_is_file(files["pose"], "pose"), provider)
        self.detect_every = detect_every
        self.version = f"{self._detector.path.name} {self._pose.path.name} {self._pose.provider}"
        self._boxes: NDArray[np.float64] | None = None
        self._levels = np.zeros(0)  # [P] mean body score of each followed person when it was found
        self._since = 0
        self._lock = threading.Lock()

    @classmethod
    def available(cls) -> str | None:
        """None when onnxruntime and both ONNX files are here, else the line that gets them."""
        if importlib.util.find_spec("onnxruntime") is None:
            return "pose backend 'rtm' needs the 'pose' extra. Run: pip install -c constraints.txt 'animx[pose]'"
        for part in ("det", "pose"):
            try:
                if _weights_file(part, None) is None:
                    return _missing_line(part)
            except WeightsError as error:
                return str(error)
        return None

    def detect(self, frame: NDArray[np.uint8], *, still: bool = False) -> Detection:
        """Find the persons of an RGB frame [H, W, 3]; see `PoseBackend.detect`."""
        picture = np.ascontiguousarray(frame[..., ::-1])
        with self._lock:
            if still:
                return self._poses(picture, self._find(picture))
            if self._boxes is not None and self._since < self.detect_every:
                found = self._poses(picture, self._boxes)
                followed = _followed_boxes(found, LOST_SCORE * self._levels, picture)
                if followed is not None:
                    self._boxes = followed
                    self._since += 1
                    return found
            found = self._poses(picture, self._find(picture))
            self._levels = found.scores[:, :18].mean(1)
            self._boxes = _followed_boxes(found, 0 * self._levels, picture)
            self._since = 1
            return found

    def reset(self) -> None:
        """Forget the followed persons."""
        with self._lock:
            self._boxes = None

    def close(self) -> None:
        """Nothing is held but memory."""
        self.reset()

    def _find(self, picture: NDArray[np.uint8]) -> NDArray[np.float64]:
        """The detector's person boxes [P, 4], best first, at most `max_persons`."""
        size = self._detector.size or (640, 640)
        pixels, ratio = glue.letterbox(picture, size)
        raw = self._detector.run(pixels)[0]
        if raw.ndim == 3 and raw.shape[-1] == 5:  # boxes x1, y1, x2, y2, score: the file brings its own suppression
            boxes, scores = raw[0, :, :4] / ratio, raw[0, :, 4]
            kept = np.argsort(-scores, kind="stable")
            boxes = boxes[kept[scores[kept] > 0.3]]
        elif raw.ndim == 3 and raw.shape[-1] > 5:
            boxes, _ = glue.person_boxes(glue.decode_yolox(raw, size), ratio)
        else:
            raise WeightsError(f"{self._detector.path}: outputs of shape {raw.shape} are no YOLOX person boxes")
        return np.asarray(boxes[: self.max_persons], np.float64)

    def _poses(self, picture: NDArray[np.uint8], boxes: NDArray[np.float64]) -> Detection:
        if not len(boxes):
            return nobody()
        height, width = self._pose.size or (384, 288)
        points, scores = [], []
        for box in boxes:
            pixels, centre, region = glue.crop(picture, box, (width, height))
            outputs = self._pose.run(pixels)
            if len(outputs) < 2 or outputs[0].ndim != 3 or outputs[0].shape[1] != glue.COCO_POINTS:
                shapes = [list(one.shape) for one in outputs]
                raise WeightsError(f"{self._pose.path}: outputs {shapes}, expected SimCC of {glue.COCO_POINTS} points")
            place, score = glue.decode_simcc(outputs[0], outputs[1], (width, height), centre, region)
            points.append(place)
            scores.append(score)
        return Detection(*glue.openpose_from_coco(np.stack(points), np.stack(scores)))


class _Net:
    """One ONNX file in onnxruntime, on CUDA where that works."""

    def __init__(self, path: Path, provider: Provider) -> None:
        import onnxruntime

        self.path = path
        offered = onnxruntime.get_available_providers()
        wanted = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in offered]
        if provider == "cpu":
            wanted = ["CPUExecutionProvider"]
        elif provider == "cuda" and "CUDAExecutionProvider" not in wanted:
            raise UsageError("provider cuda: this onnxruntime has no CUDA. Run: pip install onnxruntime-gpu")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=wanted)
        except Exception as error:  # onnxruntime raises its own kinds for every damage a file can have
            raise WeightsError(f"{path}: not a usable ONNX file ({str(error).splitlines()[0]})") from error
        self.provider: str = self._session.get_providers()[0]
        if self.provider != wanted[0]:
            log.warning("%s runs on %s: %s could not be started", path.name, self.provider, wanted[0])
        first = self._session.get_inputs()[0]
        self._input = first.name
        shape = first.shape[2:] if len(first.shape) == 4 else []
        self.size: tuple[int, int] | None = None  # (height, width) when the file fixes it
        if len(shape) == 2 and all(isinstance(side, int) and side > 0 for side in shape):
            self.size = (shape[0], shape[1])

    def run(self, pixels: NDArray[np.float32]) -> list[NDArray[Any]]:
        """All outputs for one input [3, h, w]."""
        outputs: list[NDArray[Any]] = self._session.run(None, {self._input: pixels[None]})
        return outputs


def _followed_boxes(
    found: Detection, least: NDArray[np.floating[Any]], picture: NDArray[np.uint8]
) -> NDArray[np.float64] | None:
    """Boxes for the next frame from this one's keypoints; None when a person is lost and must be looked for.

    Lost: fewer than five seen body joints, a mean body score under `least` [P], or out of the picture.
    """
    height, width = picture.shape[:2]
    boxes = []
    for points, scores, level in zip(found.keypoints, found.scores, least, strict=True):
        seen = scores >= MIN_JOINT_SCORE
        if seen[:18].sum() < MIN_SEEN_JOINTS or scores[:18].mean() < level:
            return None
        low, high = points[seen].min(0).astype(np.float64), points[seen].max(0).astype(np.float64)
        middle = (low + high) / 2
        if not (0 <= middle[0] <= width and 0 <= middle[1] <= height):
            return None
        margin = 0.05 * (high - low)
        boxes.append(np.concatenate([low - margin, high + margin]))
    if not boxes:
        return None
    result = np.stack(boxes)
    # two boxes that have drifted onto the same person
    return result if len(glue.suppress(result, np.arange(len(result), 0.0, -1), 0.8)) == len(result) else None


def _weights_file(part: str, option: str | Path | None, mode: str | None = None) -> Path | None:
    """The ONNX file for `part` ("det", "pose"), or None; a named one that is not there is a `WeightsError`.

    With `mode` only rtmlib's files of that mode count, apart from named ones.
    """
    variable = f"ANIMX_RTM_{part.upper()}"
    named = option or os.environ.get(variable)
    if named:
        return _is_file(Path(named).expanduser(), part if option else variable)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    candidates = [] if mode else [cache / "animx" / "rtm" / name for name in FILE_NAMES[part]]
    hub = Path(os.environ.get("TORCH_HOME") or cache / "rtmlib").expanduser() / "hub" / "checkpoints"
    candidates += [hub / files[part] for name, files in RTMLIB_FILES.items() if mode in (None, name)]
    return next((path for path in candidates if path.is_file()), None)


def _is_file(path: Path | None, what: str) -> Path:
    if path is None or not path.is_file():
        raise WeightsError(f"{what}: no ONNX file at {path}. Give the path of a YOLOX (det) and a DWPose (pose) file")
    return path


def _missing_line(part: str) -> str:
    return (
        f"pose backend 'rtm' has no weights ({part}). Put {FILE_NAMES[part][0]} into ~/.cache/animx/rtm or set "
        f"ANIMX_RTM_{part.upper()}, or name the backend with the network up: --backend rtm"
    )


def _download(part: str, mode: str) -> Path:
    """rtmlib's own download into rtmlib's cache, without its prints (stdout belongs to results)."""
    if importlib.util.find_spec("rtmlib") is None:
        raise MissingExtraError(f"the download of pose backend 'rtm' ({part})", "pose")
    from rtmlib import Wholebody
    from rtmlib.tools.file import download_checkpoint

    log.info("pose backend rtm: no local weights (%s), downloading the %s ones", part, mode)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            return Path(download_checkpoint(Wholebody.MODE[mode][part], progress=False))
    except Exception as error:  # network, disk and archive errors of every kind
        raise WeightsError(f"{_missing_line(part)} (the download failed: {error})") from error
