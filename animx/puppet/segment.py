"""Two ways to tell a figure from its ground: net + GrabCut for shaded pictures, colour distance for flat ones.

In: an RGB picture at working size (long side about 400-512 px).  Out: a score [h, w], positive on the figure.
GrabCut's own answer is one vote; the net's prior and the likelihood of its colour models are the others, so neither a
colour that also lives in the background nor a hole in the net's answer decides alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Rgb = NDArray[np.uint8]
Map = NDArray[np.float32]
Flags = NDArray[np.bool_]

FLAT_RIM = 8.0
"""A rim whose 80th percentile Lab distance to a smooth surface is below this is a flat ground (paper, studio)."""

_CLEAN = 0.6
"""A ground with less noise than this was drawn or rendered, not photographed."""


def disc(radius: int) -> NDArray[np.uint8]:
    """The round structuring element of `radius` [px]."""
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1)), np.uint8)


def largest_part(mask: Flags) -> Flags:
    """The largest connected part of `mask` (8 neighbours); an empty mask stays empty."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    return mask if count < 2 else np.asarray(labels == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA])))


def person_prior(rgb: Rgb, net: Callable[[Rgb], Map]) -> Map:
    """Mean answer of a person net over six views: whole, mirrored, crop to the figure (both ways), its two halves.

    Single answers err in different places (a wall taken in, an arm lost), and the crops show four times the detail.
    Returns 0..1 [h, w].
    """
    height, width = rgb.shape[:2]
    whole = net(rgb)
    mirrored = net(np.ascontiguousarray(rgb[:, ::-1]))[:, ::-1]
    total, weight = whole + mirrored, np.full((height, width), 2.0, np.float32)
    seen = np.maximum(whole, mirrored) > 0.5
    if seen.mean() < 0.005:
        return np.asarray(total / weight, np.float32)
    x0, y0, x1, y1 = _box(largest_part(seen), 0.15)
    part = int(0.62 * (y1 - y0))
    for top, bottom, flip in ((y0, y1, False), (y0, y1, True), (y0, y0 + part, False), (y1 - part, y1, False)):
        if min(bottom - top, x1 - x0) < 16:
            continue
        view = rgb[top:bottom, x0:x1]
        answer = net(np.ascontiguousarray(view[:, ::-1] if flip else view))
        feather = np.outer(
            _feather(bottom - top, top == 0, bottom == height), _feather(x1 - x0, x0 == 0, x1 == width)
        ).astype(np.float32)
        total[top:bottom, x0:x1] += (answer[:, ::-1] if flip else answer) * feather
        weight[top:bottom, x0:x1] += feather
    return np.asarray(total / weight, np.float32)


def grow(rgb: Rgb, prior: Map, sure: Flags | None = None, band: float = 0.06) -> Map:
    """Refine a prior 0..1 [h, w] by colour; returns a score in -4..4, positive on the figure.

    `sure` pixels are figure whatever their colour; `band` is how far beyond the prior's outline the figure may reach
    (share of the long side).  Deterministic: OpenCV's generator is set before use.
    """
    long_side = max(rgb.shape[:2])
    reach = cv2.dilate((prior > 0.5).astype(np.uint8), disc(max(1, round(band * long_side)))) > 0
    reach |= cv2.dilate((prior > 0.2).astype(np.uint8), disc(max(1, round(0.015 * long_side)))) > 0
    score = np.full(prior.shape, -4.0, np.float32)
    if not reach.any():
        return score
    margin = max(2, round(0.04 * long_side))
    rows, columns = np.flatnonzero(reach.any(1)), np.flatnonzero(reach.any(0))
    window = (
        slice(max(0, rows[0] - margin), rows[-1] + margin + 1),
        slice(max(0, columns[0] - margin), columns[-1] + margin + 1),
    )
    colour = np.ascontiguousarray(cv2.GaussianBlur(rgb, (0, 0), 0.6)[window])
    p, near = prior[window], reach[window]
    trimap = np.where(p > 0.5, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    trimap[~near | (p < 0.03)] = cv2.GC_BGD
    trimap[cv2.erode((p > 0.93).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0] = cv2.GC_FGD
    if sure is not None:
        trimap[sure[window]] = cv2.GC_FGD
    figure = (trimap == cv2.GC_FGD) | (trimap == cv2.GC_PR_FGD)
    # GrabCut needs samples of both, and takes minutes over a picture of one colour.
    if figure.sum() < 10 or (~figure).sum() < 10 or colour.std(axis=(0, 1)).max() < 3:
        score[window] = np.where(figure, 4.0, -4.0)
        return score
    ground_model, figure_model = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(0)
    cv2.grabCut(colour, trimap, None, ground_model, figure_model, 3, cv2.GC_INIT_WITH_MASK)  # type: ignore[call-overload]
    cut = (trimap == cv2.GC_FGD) | (trimap == cv2.GC_PR_FGD)
    pixels = colour.reshape(-1, 3).astype(np.float64)
    ratio = (_log_likelihood(figure_model, pixels) - _log_likelihood(ground_model, pixels)).reshape(p.shape)
    odds = np.clip(p, 0.02, 0.98)
    votes = np.log(odds / (1 - odds)) + 0.3 * np.clip(ratio, -3, 3) + np.where(cut, 3.0, -3.0)
    votes[~near] = -4.0
    votes = np.clip(votes, -4, 4).astype(np.float32)
    score[window] = cv2.ximgproc.guidedFilter(colour, votes, 4, 36.0)
    if sure is not None:
        score[sure] = 4.0
    return score


@dataclass(frozen=True)
class Ground:
    """How the rim of a picture looks: a smooth colour surface and how far everything lies from it."""

    distance: Map  # [h, w] Lab distance to the surface
    flatness: float
    """80th percentile of the rim's distance; below `FLAT_RIM` the ground is flat."""
    noise: float
    """Median distance on the rim: paper grain, compression."""

    @property
    def is_flat(self) -> bool:
        """Whether colour distance alone tells the figure from the ground."""
        return self.flatness < FLAT_RIM

    @property
    def threshold(self) -> float:
        """Distances above this are not ground."""
        return max(6.0, 3.0 * self.noise + 3.0)


def ground_of(rgb: Rgb) -> Ground:
    """Fit a quadratic colour surface (Lab) robustly to the rim of a picture."""
    height, width = rgb.shape[:2]
    lab = cv2.cvtColor(rgb.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    terms = quadratic(height, width)
    rim = np.ones((height, width), bool)
    edge = max(1, min(round(0.03 * max(height, width)), (min(height, width) - 1) // 2))
    rim[edge:-edge, edge:-edge] = False
    x, y = terms[rim], lab[rim].astype(np.float64)
    keep = np.ones(len(x), bool)
    error = np.zeros(len(x))
    fit = np.zeros((x.shape[1], 3))
    for _ in range(6):
        fit = np.linalg.lstsq(x[keep], y[keep], rcond=None)[0]
        error = np.linalg.norm(y - x @ fit, axis=1)
        keep = error <= max(2.5 * float(np.median(error)), 2.0)
    distance = np.linalg.norm(lab - terms @ fit, axis=2).astype(np.float32)
    return Ground(distance, float(np.percentile(error, 80)), float(np.median(error)))


def quadratic(height: int, width: int) -> NDArray[np.float64]:
    """The six terms of a quadratic surface over a picture, coordinates in -1..1: [height, width, 6]."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    x, y = 2 * (x + 0.5) / width - 1, 2 * (y + 0.5) / height - 1
    return np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)


def off_ground(rgb: Rgb, ground: Ground, prior: Map | None) -> Map:
    """The figure on a flat ground: what ink or colour encloses.  Score [h, w], positive on the figure.

    Lines are closed over gaps of a few pixels, the outside is flooded, the largest rest is the figure, drawn back to
    the ink's own edge.  Enclosed patches of ground colour are taken out unless the figure is an outline drawing
    (mostly ground colour itself) or `prior` claims them.
    """
    long_side = max(rgb.shape[:2])
    block = max(3, round(0.2 * long_side) | 1)
    ink = cv2.adaptiveThreshold(rgb.min(2), 255, cv2.ADAPTIVE_THRESH_GAUSSIAN_C, cv2.THRESH_BINARY, block, 8) == 0
    solid = ground.distance > ground.threshold
    wall = ((ink & (ground.distance > 0.5 * ground.threshold)) | solid).astype(np.uint8)
    square = np.ones((3, 3), np.uint8)
    wall = cv2.dilate(cv2.morphologyEx(wall, cv2.MORPH_CLOSE, square, iterations=2), square, iterations=2)
    region = largest_part(_walled_in(wall > 0))
    edge = 0.6 * ground.threshold
    outer = cv2.erode(np.pad(region, 1).astype(np.uint8), square, iterations=4)[1:-1, 1:-1] == 0
    outer &= np.pad(region, 1, mode="edge")[1:-1, 1:-1]
    passable = ~region | (outer & (ground.distance < edge))
    if ground.noise < _CLEAN:
        # Ink closed a bay that has the ground's very colour: open it, unless that would empty an outline drawing.
        bare = np.asarray(cv2.medianBlur(ground.distance, 3) < 2.8)
        bays = region & ~_walled_in(~(passable | bare))
        if bays.sum() < 0.25 * region.sum():
            passable |= bare
    region = largest_part(region & _walled_in(~passable))
    for patch in _ground_patches(region, ground, prior):
        region &= ~patch
    score = np.where(region, 1.0, -1.0) * np.minimum(1.0, 0.25 + ground.distance / max(edge, 1.0))
    return np.asarray(score, np.float32)


def _walled_in(wall: Flags) -> Flags:
    """What a flood from beyond the picture's border does not reach: the wall and all inside it."""
    ground = np.pad(1 - wall.astype(np.uint8), 1, constant_values=1)
    _, labels = cv2.connectedComponents(ground, connectivity=4)
    return np.asarray((labels != labels[0, 0])[1:-1, 1:-1])


def _ground_patches(region: Flags, ground: Ground, prior: Map | None) -> list[Flags]:
    """Enclosed patches of ground (between arm and body, between locks of hair), told from white cloth by the net."""
    long_side = max(region.shape)
    clean = ground.noise < _CLEAN
    limit = 2.8 if clean else max(1.5, 2.0 * ground.noise)
    paper = region & (cv2.medianBlur(ground.distance, 3) < limit)
    if prior is None or not region.any() or paper.sum() > 0.35 * region.sum():
        return []
    core = cv2.erode(paper.astype(np.uint8), disc(1 if clean else max(1, round(0.004 * long_side))))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(core, connectivity=4)
    patches = []
    for label in range(1, count):
        area = stats[label, cv2.CC_STAT_AREA]
        if area < (2e-5 if clean else 4e-4) * long_side * long_side:
            continue
        seed = labels == label
        if prior[seed].mean() > (0.8 if clean and area < 0.004 * region.sum() else 0.5):
            continue
        whole = cv2.dilate(seed.astype(np.uint8), disc(max(2, round(0.008 * long_side)))) > 0
        patches.append(whole & region & (ground.distance < 0.6 * ground.threshold))
    return patches


def _log_likelihood(model: NDArray[np.float64], pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log density of pixels [n, 3] under a GrabCut model: 5 weights, 5 means, 5 covariances."""
    values = model.ravel()
    total = np.full(len(pixels), -60.0)
    for k in range(5):
        if values[k] <= 0:
            continue
        covariance = values[20 + 9 * k : 29 + 9 * k].reshape(3, 3) + 4.0 * np.eye(3)
        offset = pixels - values[5 + 3 * k : 8 + 3 * k]
        form = ((offset @ np.linalg.inv(covariance)) * offset).sum(1)
        density = np.log(values[k]) - 0.5 * form - 0.5 * np.log(np.linalg.det(covariance))
        total = np.logaddexp(total, density)
    return total


def _box(mask: Flags, margin: float) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    dy, dx = int(margin * (rows[-1] - rows[0] + 1)), int(margin * (columns[-1] - columns[0] + 1))
    height, width = mask.shape
    return (
        max(0, int(columns[0]) - dx), max(0, int(rows[0]) - dy),
        min(width, int(columns[-1]) + 1 + dx), min(height, int(rows[-1]) + 1 + dy),
    )  # fmt: skip


def _feather(length: int, open_start: bool, open_end: bool) -> NDArray[np.float64]:
    """Weights that fade to 0 over 8 % at each end, except at an end that is the picture's own border."""
    ramp = np.arange(1, length + 1) / (0.08 * length)
    weight = np.ones(length)
    if not open_start:
        weight = np.minimum(weight, ramp)
    if not open_end:
        weight = np.minimum(weight, ramp[::-1])
    return weight
