"""Where the figure is: the mask of a reference picture.

In: a picture (RGB or RGBA), when known a mask or joints.  Out: `Mask`, coverage 0..1 with soft edges.
Order of trust: a given mask, the picture's own transparency, colour distance on a flat ground, a person net refined by
GrabCut, joints refined by GrabCut, GrabCut about the middle of the picture.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from animx.errors import InputError, NoFigureError
from animx.pose.sequence import PoseSequence
from animx.pose.skeleton import BODY, BONES, MID_HIP
from animx.puppet import matting, segment, surplus
from animx.puppet.matting import cut_out
from animx.puppet.segment import Flags, Map

log = logging.getLogger(__name__)

LEAST_SHARE = 0.03
"""A mask under this share of the picture is no figure."""
WORKING_SIDE = 400
"""Long side [px] at which the figure is told from the ground; the edge is then found at full size."""
LEAST_SIDE = 16
"""Pictures with a side below this [px] hold no figure."""


class HasPixels(Protocol):
    """A picture as `animx.image` reads it."""

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """RGBA [H, W, 4]."""


@dataclass(frozen=True)
class Mask:
    """A figure's coverage and how it was found."""

    alpha: Map  # [H, W] 0..1, soft in a band of a few pixels
    method: str
    """`file`, `alpha`, `flat ground`, `net + grabcut`, `joints + grabcut` or `grabcut`."""
    notes: tuple[str, ...] = ()
    """What a user should know: what was left out, what is doubtful."""

    @property
    def share(self) -> float:
        """Share of the picture that the figure covers."""
        return float(self.alpha.mean())


def find_mask(
    picture: HasPixels | NDArray[np.uint8],
    *,
    joints: PoseSequence | None = None,
    mask: NDArray[np.floating[Any]] | None = None,
    net: Callable[[NDArray[np.uint8]], Map | None] | None = None,
) -> Mask:
    """Find the figure in a picture (RGB or RGBA [H, W, 3|4]).

    `joints` (one frame, on the picture's canvas) are sure figure; `mask` (0..1 [H, W]) is taken as it is.  `net`
    answers where a person probably is (RGB -> 0..1 [H, W] or None); by default the one of the `offline` extra.
    Errors: `NoFigureError` when the figure covers under 3 % of the picture, `InputError` for a mask of another shape.
    """
    pixels = np.asarray(picture if isinstance(picture, np.ndarray) else picture.pixels)
    if pixels.ndim != 3 or pixels.shape[2] not in (3, 4) or pixels.dtype != np.uint8:
        raise InputError(f"a picture of shape {list(pixels.shape)} and type {pixels.dtype}: expected RGB or RGBA uint8")
    if mask is not None:
        return _checked(_given(mask, pixels.shape), "file", ())
    if min(pixels.shape[:2]) < LEAST_SIDE:
        raise NoFigureError(f"the picture is {pixels.shape[1]}x{pixels.shape[0]} px: too small to hold a figure")
    notes: tuple[str, ...] = ()
    if pixels.shape[2] == 4 and (pixels[..., 3] < 255).any():
        if (pixels[..., 3] < 128).mean() >= 0.02:
            return _checked(pixels[..., 3].astype(np.float32) / 255, "alpha", ())
        notes = ("the picture is hardly transparent: its alpha was not taken for the figure",)
    rgb = np.ascontiguousarray(pixels[..., :3])
    score, method, more = _find(rgb, _points(joints, pixels.shape), joints, net or _default_net)
    found = _checked(matting.soften(rgb, score), method, notes + more)
    log.info("figure: %s, %.0f %% of the picture", found.method, 100 * found.share)
    return found


def _find(
    rgb: NDArray[np.uint8],
    points: NDArray[np.float64],
    joints: PoseSequence | None,
    net: Callable[[NDArray[np.uint8]], Map | None],
) -> tuple[Map, str, tuple[str, ...]]:
    """Score [H, W] at full size, method, notes."""
    height, width = rgb.shape[:2]
    small = _shrunk(rgb, WORKING_SIDE)
    scale = np.array([small.shape[1] / width, small.shape[0] / height])
    ground = segment.ground_of(small)
    prior = _net_prior(small, rgb, net)
    share = 0.0 if prior is None else float((prior > 0.5).mean())
    if ground.is_flat:
        paper = _shrunk(rgb, 512)
        paper_ground = segment.ground_of(paper)
        hint = None if prior is None else cv2.resize(prior, (paper.shape[1], paper.shape[0])).astype(np.float32)
        score = segment.off_ground(paper, paper_ground, hint)
        if _paper_is_right(score > 0, hint, share, ground.flatness):
            region, notes = surplus.without_surplus(
                paper, score > 0, None, points * scale * paper.shape[1] / small.shape[1]
            )
            return _enlarged(_masked(score, region), width, height), "flat ground", notes
        if (score > 0).mean() < LEAST_SHARE and share < LEAST_SHARE and len(points) < 4:
            raise _too_small(float((score > 0).mean()), "what was found")
    notes = ()
    if prior is not None and share >= 0.5 * LEAST_SHARE:
        method = "net + grabcut"
        band = 0.12 if ground.is_flat else 0.06
    elif len(points) >= 4:
        method, band, prior = "joints + grabcut", 0.06, None
    elif prior is not None:
        raise NoFigureError(
            "no figure found in the picture. Give its outline with --mask FILE, or a picture with a transparent ground"
        )
    else:
        method, band = "grabcut", 0.06
        notes = (
            "the figure was guessed from colours about the middle: install the 'offline' extra or give --mask FILE",
        )
    sure = _bones(joints, small.shape, scale) if joints is not None else None
    start = prior if prior is not None else _rough_prior(small, sure)
    score = segment.grow(small, start, sure, band)
    region, more = surplus.without_surplus(small, score > 0, prior, points * scale)
    return _enlarged(_masked(score, region), width, height), method, notes + more


def _net_prior(
    small: NDArray[np.uint8], rgb: NDArray[np.uint8], net: Callable[[NDArray[np.uint8]], Map | None]
) -> Map | None:
    if net(small) is None:
        return None

    def answer(view: NDArray[np.uint8]) -> Map:
        found = net(view)
        assert found is not None  # it answered a moment ago
        return found

    prior = segment.person_prior(_shrunk(rgb, 768), answer)
    return cv2.resize(prior, (small.shape[1], small.shape[0]), interpolation=cv2.INTER_AREA).astype(np.float32)


def _default_net(rgb: NDArray[np.uint8]) -> Map | None:
    from animx.pose.backend import mask_hint

    return mask_hint(rgb)


def _paper_is_right(region: Flags, prior: Map | None, share: float, flatness: float) -> bool:
    """Whether the answer of the flat ground is to be believed, next to the net's."""
    area = float(region.mean())
    frame = np.concatenate([region[0], region[:, 0], region[:, -1]])
    if area < LEAST_SHARE or area > 0.9 or frame.mean() >= 0.10:
        return False
    if prior is None or share < LEAST_SHARE:
        return True
    covers = float((region & (prior > 0.5)).sum()) / max(1.0, float((prior > 0.5).sum()))
    return (covers >= 0.85 and (flatness < 4 or area < 1.6 * share)) or area > 2.5 * share


def _given(mask: NDArray[np.floating[Any]], shape: tuple[int, ...]) -> Map:
    alpha = np.asarray(mask, np.float32)
    if alpha.shape != shape[:2]:
        raise InputError(f"the mask is {list(alpha.shape)}, the picture {list(shape[:2])} [H, W]: they must be equal")
    if not np.isfinite(alpha).all() or alpha.min() < 0 or alpha.max() > 1:
        raise InputError("the mask holds values outside 0..1")
    return alpha


def _checked(alpha: Map, method: str, notes: tuple[str, ...]) -> Mask:
    share = float((alpha > 0.5).mean())
    if share < LEAST_SHARE:
        source = {"file": "the mask given", "alpha": "the picture's transparency"}.get(method, "what was found")
        raise _too_small(share, source)
    if share > 0.95:
        notes = (*notes, "the figure fills the whole picture: there is no background behind it")
    return Mask(alpha, method, notes)


def _too_small(share: float, source: str) -> NoFigureError:
    return NoFigureError(
        f"no figure: {source} covers {share:.1%} of the picture, at least {LEAST_SHARE:.0%} is needed."
        " Crop the picture or give --mask FILE"
    )


def _points(joints: PoseSequence | None, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Visible body joints [n, 2] inside the picture."""
    if joints is None:
        return np.zeros((0, 2))
    if (joints.canvas.height, joints.canvas.width) != shape[:2]:
        raise InputError(f"the joints lie on a canvas of {joints.canvas}, the picture is {shape[1]}x{shape[0]}")
    body = joints.keypoints[0, 0, BODY.start : BODY.stop].astype(np.float64)
    inside = (body >= 0).all(1) & (body < (shape[1], shape[0])).all(1)
    return np.asarray(body[(joints.scores[0, 0, BODY.start : BODY.stop] > 0) & inside])


def _bones(joints: PoseSequence, shape: tuple[int, ...], scale: NDArray[np.float64]) -> Flags:
    """Lines along the visible bones, 1.2 % of the long side wide."""
    canvas = np.zeros(shape[:2], np.uint8)
    body = {i: joints.keypoints[0, 0, i] * scale for i in BODY if joints.scores[0, 0, i] > 0}
    if 8 in body and 11 in body:
        body[MID_HIP] = (body[8] + body[11]) / 2
    for bone in BONES:
        if bone.parent in body and bone.child in body:
            start, end = ([int(v) for v in body[i]] for i in (bone.parent, bone.child))
            cv2.line(canvas, start, end, (1,), max(1, round(0.012 * max(shape[:2]))))
    return canvas > 0


def _rough_prior(small: NDArray[np.uint8], sure: Flags | None) -> Map:
    """Without a net: high near the bones, or an ellipse about the middle."""
    height, width = small.shape[:2]
    if sure is not None and sure.any():
        away = cv2.distanceTransform((~sure).astype(np.uint8), cv2.DIST_L2, 3)
        rows = np.flatnonzero(sure.any(1))
        reach = 0.09 * max(1, int(rows[-1] - rows[0]))
        return np.asarray(0.9 * np.exp(-0.6 * (away / reach) ** 2), np.float32)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    radius = np.hypot((x / width - 0.5) / 0.33, (y / height - 0.52) / 0.42)
    return np.asarray(np.clip(1.4 - 0.9 * radius, 0.0, 0.9), np.float32)


def _shrunk(rgb: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    factor = side / max(rgb.shape[:2])
    if factor >= 1:
        return rgb
    size = max(1, round(rgb.shape[1] * factor)), max(1, round(rgb.shape[0] * factor))
    return np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8)


def _masked(score: Map, region: Flags) -> Map:
    """The score with what was taken away or filled in since turned to a clear no or yes."""
    return np.where(region == (score > 0), score, np.where(region, 1.0, -1.0)).astype(np.float32)


def _enlarged(score: Map, width: int, height: int) -> Map:
    """The score at full size; clipped and smoothed by a working pixel first, so that the outline has no steps."""
    smooth = cv2.GaussianBlur(np.clip(score, -1.0, 1.0), (0, 0), 0.7)
    return cv2.resize(smooth, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.float32)


__all__ = ["LEAST_SHARE", "Mask", "cut_out", "find_mask"]
