"""What stands between pictures and the two ONNX nets of top-down pose: detector (YOLOX) and keypoints (SimCC).

Pictures are BGR uint8 [H, W, 3], as both nets were trained; boxes are x1, y1, x2, y2 in px.  Pure functions, no net.
Conventions follow the released Animate-X extraction (reference facts 9.1 to 9.3), with which rtmlib differs: it filters
boxes by another score, averages the two SimCC maxima, and takes the neck's score from the weaker shoulder.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from animx.pose.skeleton import JOINTS

Array = NDArray[np.floating[Any]]

COCO_POINTS = 133
"""Points of COCO-WholeBody: 17 body, 6 feet, 68 face, 2x21 hands."""

_BODY_FROM_COCO = (0, -1, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
_MEAN = np.array((123.675, 116.28, 103.53))
_SPREAD = np.array((58.395, 57.12, 57.375))
_GREY = 114


def letterbox(picture: NDArray[np.uint8], size: tuple[int, int]) -> tuple[NDArray[np.float32], float]:
    """The detector's input: the picture scaled into the top-left corner of grey (height, width); [3, h, w] 0..255.

    Also the scale factor by which boxes are divided to come back.
    """
    height, width = picture.shape[:2]
    ratio = min(size[0] / height, size[1] / width)
    small_size = max(1, int(width * ratio)), max(1, int(height * ratio))
    small = cv2.resize(picture, small_size, interpolation=cv2.INTER_LINEAR)
    padded = np.full((*size, 3), _GREY, np.uint8)
    padded[: small.shape[0], : small.shape[1]] = small
    return np.ascontiguousarray(padded.transpose(2, 0, 1), dtype=np.float32), ratio


def decode_yolox(raw: Array, size: tuple[int, int]) -> Array:
    """Head output [1, N, 5 + classes] to boxes as centre and size [px of the input]; N covers strides 8, 16, 32."""
    decoded = raw.copy()
    places, strides = [], []
    for stride in (8, 16, 32):
        rows, columns = np.mgrid[: size[0] // stride, : size[1] // stride]
        places.append(np.stack([columns, rows], -1).reshape(-1, 2))
        strides.append(np.full((rows.size, 1), stride))
    place, step = np.concatenate(places), np.concatenate(strides)
    decoded[..., :2] = (raw[..., :2] + place) * step
    decoded[..., 2:4] = np.exp(raw[..., 2:4]) * step
    return decoded


def person_boxes(
    decoded: Array, ratio: float, *, least: float = 0.1, overlap: float = 0.45, min_score: float = 0.3
) -> tuple[Array, Array]:
    """Boxes [P, 4] of class 0 in px of the picture and their scores [P], best first, after non-maximum suppression."""
    rows = decoded[0]
    scores = rows[:, 4] * rows[:, 5]
    keep = scores > least
    centre, half, scores = rows[keep, :2], rows[keep, 2:4] / 2, scores[keep]
    boxes = np.concatenate([centre - half, centre + half], 1) / ratio
    chosen = [i for i in suppress(boxes, scores, overlap) if scores[i] > min_score]
    return boxes[chosen], scores[chosen]


def suppress(boxes: Array, scores: Array, overlap: float) -> list[int]:
    """Non-maximum suppression: indices of the kept boxes, best first.  Areas count whole pixels (+1), as released."""
    order = list(np.argsort(-scores, kind="stable"))
    areas = np.prod(boxes[:, 2:] - boxes[:, :2] + 1, axis=1)
    kept: list[int] = []
    while order:
        best = int(order.pop(0))
        kept.append(best)
        rest = np.array(order, int)
        sides = np.minimum(boxes[best, 2:], boxes[rest, 2:]) - np.maximum(boxes[best, :2], boxes[rest, :2]) + 1
        shared = np.prod(np.maximum(0.0, sides), axis=1)
        order = list(rest[shared / (areas[best] + areas[rest] - shared) <= overlap])
    return kept


def crop(
    picture: NDArray[np.uint8], box: Array, size: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float64]]:
    """The keypoint net's input for a box: 1.25 times as large, brought to the aspect of `size` (width, height).

    Returns the normalised crop [3, h, w], and centre and size [px] of the region it shows.
    """
    width, height = size
    box = np.asarray(box, np.float64)
    centre = (box[:2] + box[2:]) / 2
    region = (box[2:] - box[:2]) * 1.25
    aspect = width / height
    if region[0] > region[1] * aspect:
        region = np.array([region[0], region[0] / aspect])
    else:
        region = np.array([region[1] * aspect, region[1]])
    target = np.array([[width / 2, height / 2], [width / 2, height / 2 - width / 2], [0.0, height / 2 - width / 2]])
    source = centre + (target - target[0]) * (region[0] / width)
    matrix = cv2.getAffineTransform(source.astype(np.float32), target.astype(np.float32))
    warped = cv2.warpAffine(picture, matrix, (width, height), flags=cv2.INTER_LINEAR)
    normal = (warped - _MEAN) / _SPREAD
    return np.ascontiguousarray(normal.transpose(2, 0, 1), dtype=np.float32), centre, region


def decode_simcc(
    x: Array, y: Array, size: tuple[int, int], centre: Array, region: Array
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """SimCC outputs [1, K, Wx], [1, K, Wy] to points [K, 2] px of the picture and scores [K].

    The score is the lesser of both maxima; a point whose score is not positive has place -1 in the crop, as released.
    """
    places = np.stack([x[0].argmax(-1), y[0].argmax(-1)], -1).astype(np.float64)
    scores = np.minimum(x[0].max(-1), y[0].max(-1)).astype(np.float32)
    places[scores <= 0] = -1
    split = np.array([x.shape[-1] / size[0], y.shape[-1] / size[1]])
    return places / split / size * region + centre - region / 2, scores


def openpose_from_coco(points: Array, scores: Array) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """133 COCO-WholeBody points [P, 133, 2] with scores [P, 133] as `openpose-134`.

    The neck is the middle of the shoulders; it has the weaker one's score when both are over 0.3, else 0.
    """
    keypoints = np.zeros((len(points), JOINTS, 2), np.float32)
    found = np.zeros((len(points), JOINTS), np.float32)
    for joint, source in enumerate(_BODY_FROM_COCO):
        if source >= 0:
            keypoints[:, joint], found[:, joint] = points[:, source], scores[:, source]
    weaker = np.minimum(scores[:, 5], scores[:, 6])
    keypoints[:, 1] = (points[:, 5] + points[:, 6]) / 2
    found[:, 1] = np.where(weaker > 0.3, weaker, 0)
    keypoints[:, 18:], found[:, 18:] = points[:, 17:], scores[:, 17:]
    return keypoints, np.clip(found, 0.0, 1.0)
