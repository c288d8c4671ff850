"""The reference's own pose: a detector asked several ways, held against the silhouette, never guessed in silence.

In: a picture [H, W, 3|4], its mask, a pose backend or None.  Out: `FigurePose`: the joints, where they come from and
what a user should know.  The detector looks at the whole picture, at a crop to the figure and at the figure on a plain
ground, each also mirrored; answers off the mask are dropped, the largest group that agrees wins.  It loses against the
silhouette when it leaves the limbs that stick out of the outline alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from animx.canvas import Canvas
from animx.errors import UsageError
from animx.pose.backend import PoseBackend
from animx.pose.sequence import PoseSequence
from animx.pose.skeleton import (
    JOINTS,
    L_ANKLE,
    L_ELBOW,
    L_EYE,
    L_HIP,
    L_KNEE,
    L_SHOULDER,
    L_WRIST,
    NOSE,
    R_ANKLE,
    R_ELBOW,
    R_EYE,
    R_HIP,
    R_KNEE,
    R_SHOULDER,
    R_WRIST,
    mirror_index,
)
from animx.puppet.mask import Mask
from animx.puppet.segment import Flags, disc
from animx.puppet.silhouette import Fit, fit_limbs

log = logging.getLogger(__name__)

Mode = Literal["auto", "fit", "none"]
Origin = Literal["detected", "fitted", "file", "none"]

SEEN = 0.5
"""From this score on a joint is one the detector is sure of."""
LEAST_SCORE = 0.3
"""Joints below this score are left out."""
LEAST_INSIDE = 0.85
"""Share of the sure joints that must lie on the mask."""
LEAST_MEAN = 0.6
"""Least mean score of the joints inside the picture."""
PLAIN_GROUND = 160
"""Grey level behind the figure in the views on a plain ground."""

NO_LIMBS = "no limbs found; the figure moves as a whole"

_LIMB_JOINTS = (2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13)
_CHAINS = {
    "right arm": (R_SHOULDER, R_ELBOW, R_WRIST),
    "left arm": (L_SHOULDER, L_ELBOW, L_WRIST),
    "right leg": (R_HIP, R_KNEE, R_ANKLE),
    "left leg": (L_HIP, L_KNEE, L_ANKLE),
}
_MIRROR = np.array(mirror_index())


@dataclass(frozen=True)
class FigurePose:
    """The reference's pose and how it was found."""

    pose: PoseSequence | None
    """One frame, one person on the picture's canvas; None = the figure moves as a whole."""
    origin: Origin
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Answer:
    keypoints: NDArray[np.float64]  # [K, 2] px of the picture
    scores: NDArray[np.float64]  # [K]
    depth: NDArray[np.float64] | None
    merit: float = 0.0
    turned: bool = False  # its sides were swapped


def find_pose(
    picture: NDArray[np.uint8],
    mask: Mask | NDArray[np.floating[Any]],
    backend: PoseBackend | None,
    *,
    mode: Mode = "auto",
) -> FigurePose:
    """Find the joints of the figure under `mask` (coverage 0..1 [H, W]) in an RGB or RGBA picture.

    `auto`: the detector's answer when it stands the checks, else the silhouette's, else none; `fit`: the silhouette
    alone; `none`: no joints.  Scores are the detector's means (0.6 for fitted joints).  Deterministic.
    """
    if mode not in ("auto", "fit", "none"):
        raise UsageError(f"--ref-pose {mode}: use auto, fit, none or a pose file")
    if mode == "none":
        return FigurePose(None, "none", ("no reference pose was asked for; the figure moves as a whole",))
    alpha = np.asarray(mask.alpha if isinstance(mask, Mask) else mask, np.float32)
    figure = alpha > 0.5
    fit = fit_limbs(alpha)
    detected: _Answer | None = None
    notes: tuple[str, ...] = ()
    if mode == "auto":
        detected, notes = _detect(picture, alpha, figure, backend)
    if detected is not None and fit is not None and (why := _contradiction(detected, fit, figure)) is not None:
        detected, notes = None, (f"the pose detector's answer was dropped: {why}",)
    if detected is not None:
        result = FigurePose(_sequence(detected, figure.shape, backend), "detected", notes)
    elif fit is not None:
        note = "the reference's pose was fitted to its silhouette" + _missing(fit.pose)
        result = FigurePose(fit.pose, "fitted", (*notes, note))
    else:
        result = FigurePose(None, "none", (*notes, NO_LIMBS))
    log.info("reference pose: %s%s", result.origin, "".join(f"; {note}" for note in result.notes))
    return result


def _detect(
    picture: NDArray[np.uint8], alpha: NDArray[np.float32], figure: Flags, backend: PoseBackend | None
) -> tuple[_Answer | None, tuple[str, ...]]:
    if backend is None:
        return None, ("no pose backend: the silhouette alone was looked at",)
    answers: list[_Answer] = []
    refused = 0
    for answer in _ask(picture, alpha, figure, backend):
        checked = _checked(answer, figure)
        if checked is None:
            refused += 1
        else:
            answers.append(checked)
    if not answers:
        return None, (f"the pose detector's {refused} answers lie beside the figure or are unsure",) if refused else ()
    best, agreeing = _consensus(answers, figure)
    notes: tuple[str, ...] = ()
    if best.turned:
        notes = ("the detector took the figure for seen from behind: left and right were swapped, it faces the viewer",)
    if agreeing == 1 and len(answers) + refused > 2:
        notes = (*notes, "only one of the detector's looks at the figure counts: check the pose with --edit")
    return best, notes


def _ask(
    picture: NDArray[np.uint8], alpha: NDArray[np.float32], figure: Flags, backend: PoseBackend
) -> Iterator[_Answer]:
    """One answer per view of the picture in which somebody is found."""
    height, width = figure.shape
    rgb = _flat(picture)
    plain = (rgb * alpha[..., None] + PLAIN_GROUND * (1 - alpha[..., None])).astype(np.uint8)
    rows, columns = np.flatnonzero(figure.any(1)), np.flatnonzero(figure.any(0))
    if not len(rows):
        return
    dy, dx = round(0.08 * (rows[-1] - rows[0])), round(0.12 * (columns[-1] - columns[0]))
    box = (
        max(0, int(columns[0]) - dx), max(0, int(rows[0]) - dy),
        min(width, int(columns[-1]) + 1 + dx), min(height, int(rows[-1]) + 1 + dy),
    )  # fmt: skip
    for image, (x0, y0, x1, y1), side in ((rgb, (0, 0, width, height), 768), (rgb, box, 512), (plain, box, 512)):
        view = image[y0:y1, x0:x1]
        factor = side / max(view.shape[:2])
        size = max(1, round(view.shape[1] * factor)), max(1, round(view.shape[0] * factor))
        view = cv2.resize(view, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)
        scale = np.array([(x1 - x0) / size[0], (y1 - y0) / size[1]])
        for mirrored in (False, True):
            frame = np.ascontiguousarray(view[:, ::-1] if mirrored else view).astype(np.uint8, copy=False)
            found = backend.detect(frame, still=True)
            best: tuple[float, _Answer] | None = None
            for person in range(found.persons):
                points, scores = found.keypoints[person].astype(np.float64), found.scores[person].astype(np.float64)
                depth = None if found.depth is None else found.depth[person].astype(np.float64) * scale[0]
                if mirrored:
                    points = np.column_stack([size[0] - points[:, 0], points[:, 1]])[_MIRROR]
                    scores = scores[_MIRROR]
                    depth = None if depth is None else depth[_MIRROR]
                answer = _Answer(points * scale + (x0, y0), scores, depth)
                on_figure = float((_on(answer.keypoints, figure)[:18] * scores[:18]).sum())
                if best is None or on_figure > best[0]:
                    best = on_figure, answer
            if best is not None:
                yield best[1]


def _checked(answer: _Answer, figure: Flags) -> _Answer | None:
    """The answer with joints outside the picture left out and its sides put right, or None when it fails a check."""
    height, width = figure.shape
    points, scores = answer.keypoints, answer.scores.copy()
    inside = (points >= 0).all(1) & (points < (width, height)).all(1)
    scores[~inside | (scores < LEAST_SCORE)] = 0
    sure = np.flatnonzero(scores[:14] >= SEEN)
    if len(sure) < 5:
        return None
    reach = max(2, round(0.012 * max(figure.shape)))
    near = cv2.dilate(figure.astype(np.uint8), disc(reach)) > 0
    share = float(_on(points, near)[sure].mean())
    known = [joint for joint in _LIMB_JOINTS if inside[joint]]
    mean = float(answer.scores[known].mean()) if known else 0.0
    if share < LEAST_INSIDE or mean < LEAST_MEAN:
        return None
    checked = replace(answer, scores=scores, merit=share * mean)
    return _swapped(checked) if _seems_turned(checked) else checked


def _seems_turned(answer: _Answer) -> bool:
    """Whether the right shoulder lies to the right of the left one although a face is seen."""
    scores, x = answer.scores, answer.keypoints[:, 0]
    if min(scores[R_SHOULDER], scores[L_SHOULDER]) == 0 or max(scores[NOSE], scores[R_EYE], scores[L_EYE]) < SEEN:
        return False
    return bool(x[R_SHOULDER] > x[L_SHOULDER])


def _swapped(answer: _Answer) -> _Answer:
    return replace(
        answer,
        keypoints=answer.keypoints[_MIRROR],
        scores=answer.scores[_MIRROR],
        depth=None if answer.depth is None else answer.depth[_MIRROR],
        turned=True,
    )


def _consensus(answers: Sequence[_Answer], figure: Flags) -> tuple[_Answer, int]:
    """The weighted median of the group of answers that agree best, and the group's size."""
    size = _diagonal(figure)
    count = len(answers)
    apart = np.zeros((count, count))
    for i in range(count):
        for j in range(count):
            both = (answers[i].scores[:14] > 0) & (answers[j].scores[:14] > 0)
            gaps = np.linalg.norm(answers[i].keypoints[:14][both] - answers[j].keypoints[:14][both], axis=1)
            apart[i, j] = gaps.mean() / size if both.any() else 1.0
    merits = np.array([answer.merit for answer in answers])
    near = np.clip(1 - apart / 0.08, 0, 1)
    centre = int(np.argmax(near @ merits + 1e-3 * merits))
    group = [answers[i] for i in range(count) if apart[centre, i] < 0.06]
    weights = np.array([answer.merit for answer in group])
    keypoints, scores, depth = np.zeros((JOINTS, 2)), np.zeros(JOINTS), np.zeros(JOINTS)
    has_depth = all(answer.depth is not None for answer in group)
    for joint in range(JOINTS):
        own = np.array([answer.scores[joint] for answer in group]) > 0
        if own.sum() * 2 < len(group) or not own.any():
            continue
        points = np.array([answer.keypoints[joint] for answer in group])[own]
        keypoints[joint] = [_weighted_median(points[:, k], weights[own]) for k in (0, 1)]
        scores[joint] = np.mean([answer.scores[joint] for answer in group if answer.scores[joint] > 0])
        if has_depth:
            depth[joint] = np.median([a.depth[joint] for a in group if a.scores[joint] > 0 and a.depth is not None])
    turned = sum(answer.turned for answer in group) * 2 > len(group)
    return _Answer(keypoints, scores, depth if has_depth else None, float(weights.mean()), turned), len(group)


def _contradiction(answer: _Answer, fit: Fit, figure: Flags) -> str | None:
    """Why the silhouette disproves the detector: most limbs that stick out hold none of the detector's limbs."""
    if len(fit.limbs) < 2:
        return None
    reach = disc(max(2, round(0.01 * _diagonal(figure))))
    ignored = []
    for name, region in fit.limbs.items():
        kind = name.split()[1]  # an arm of either side will do: the figure may show its back
        near = cv2.dilate(region.astype(np.uint8), reach) > 0
        visits = [_on(_limb_samples(answer, chain), near).sum() for part, chain in _CHAINS.items() if kind in part]
        if max(visits) < 4:
            ignored.append(name)
    if len(ignored) * 2 < len(fit.limbs):
        return None
    return f"it has nothing in the {' and '.join(ignored)} that stick{'s' if len(ignored) == 1 else ''} out"


def _limb_samples(answer: _Answer, chain: tuple[int, int, int]) -> NDArray[np.float64]:
    """Points [n, 2] along a limb of the answer, with the hand or foot beyond its last joint."""
    points = [answer.keypoints[j] for j in chain if answer.scores[j] > 0]
    if len(points) == 3:
        points.append(points[2] + 0.25 * (points[2] - points[1]))
    samples = [a + t * (b - a) for a, b in pairwise(points) for t in np.linspace(0, 1, 9)]
    return np.array(samples).reshape(-1, 2)


def _sequence(answer: _Answer, shape: tuple[int, ...], backend: PoseBackend | None) -> PoseSequence:
    return PoseSequence(
        keypoints=answer.keypoints[None, None].astype(np.float32),
        scores=np.clip(answer.scores, 0, 1)[None, None].astype(np.float32),
        canvas=Canvas(shape[1], shape[0]),
        source={} if backend is None else {"backend": f"{backend.name} {backend.version}"},
        depth=None if answer.depth is None else answer.depth[None, None].astype(np.float32),
    )


def _missing(pose: PoseSequence) -> str:
    lost = [name for name, chain in _CHAINS.items() if not pose.scores[0, 0, list(chain)].any()]
    return f" (no {' and no '.join(lost)} found)" if lost else ""


def _flat(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """RGB; transparent pixels over a plain ground."""
    if picture.shape[2] == 3:
        return picture
    alpha = picture[..., 3:].astype(np.float32) / 255
    return np.asarray(picture[..., :3] * alpha + PLAIN_GROUND * (1 - alpha), np.float32).astype(np.uint8)


def _on(points: NDArray[np.float64], flags: Flags) -> NDArray[np.bool_]:
    """For points [n, 2] whether they lie on `flags`; outside the picture they do not."""
    height, width = flags.shape
    inside = (points >= 0).all(1) & (points < (width, height)).all(1)
    x, y = np.where(inside[:, None], points, 0).astype(int).T
    return np.asarray(flags[y, x] & inside)


def _diagonal(figure: Flags) -> float:
    rows, columns = np.flatnonzero(figure.any(1)), np.flatnonzero(figure.any(0))
    return float(np.hypot(rows[-1] - rows[0], columns[-1] - columns[0])) if len(rows) else 1.0


def _weighted_median(values: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    order = np.argsort(values, kind="stable")
    total = np.cumsum(weights[order])
    low = order[int(np.searchsorted(total, total[-1] / 2 - 1e-12))]
    high = order[min(len(order) - 1, int(np.searchsorted(total, total[-1] / 2 + 1e-12)))]
    return float((values[low] + values[high]) / 2)
