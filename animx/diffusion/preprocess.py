"""From pictures and poses to the network's tensors, as the released loader does it (released facts 10, 11, 7.2).

Pictures are uint8 RGB [H, W, 3]; tensors are float32.  Everything is resized directly, aspect ignored: the caller
chooses a canvas of the reference's aspect.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from animx.canvas import Canvas
from animx.model.image_encoder import normalise
from animx.pose.sequence import PoseSequence
from animx.pose.skeleton import BODY

CLIP_SIZE = 224
MIN_SCORE = 0.3
"""A joint counts as visible above this score, as in the released pose extraction."""
JPEG_QUALITY = 95


def resized(picture: NDArray[np.uint8], canvas: Canvas) -> NDArray[np.uint8]:
    """Resize with Pillow's bilinear filter (anti-aliased when shrinking)."""
    if picture.shape[1::-1] == canvas.size:
        return picture
    return np.asarray(Image.fromarray(picture).resize(canvas.size, Image.Resampling.BILINEAR))


def picture_tensor(picture: NDArray[np.uint8], canvas: Canvas) -> Tensor:
    """RGB [H, W, 3] -> [3, h, w] in 0..1 on `canvas`."""
    return torch.from_numpy(resized(picture, canvas).copy()).permute(2, 0, 1).float() / 255


def clip_tensor(picture: NDArray[np.uint8], size: int = CLIP_SIZE) -> Tensor:
    """RGB [H, W, 3] -> [3, size, size], normalised for the image encoder; no crop."""
    return normalise(picture_tensor(picture, Canvas(size, size)))


def pose_picture(drawn: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A drawn pose as the network was trained on it: channels reversed and through a quality-95 JPEG."""
    encoded = cv2.imencode(".jpg", drawn, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
    # imwrite takes the drawing's channels for BGR; a reader that wants RGB therefore sees them reversed.
    return np.asarray(cv2.cvtColor(cv2.imdecode(encoded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB), np.uint8)


def keypoint_tensor(poses: PoseSequence, person: int = 0) -> Tensor:
    """Body keypoints [T, 2, 18] as shares of the canvas, -1 where the score is below 0.3; no scores, no recentring."""
    points = np.asarray(poses.keypoints[:, person, list(BODY)], np.float64) / poses.canvas.size
    seen = poses.scores[:, person, list(BODY)] >= MIN_SCORE
    points = np.where(seen[..., None], points, -1.0)
    return torch.from_numpy(points.astype(np.float32)).transpose(1, 2).contiguous()
