"""Whether a model has learned anything: metrics in the moving region, with the true masks of drawn characters.

Full-frame numbers flatter whoever copies the background, and a grey silhouette at the right place beats repeating the
reference.  So everything here is measured where the figure is or was, beside the baselines a model must beat: the
reference repeated, and the true silhouette in grey or in the figure's mean colour.

Pictures are float [T, H, W, 3] in 0..1, coverage [T, H, W] in 0..1, labels integers [T, H, W] (`dress.LABELS`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from animx.errors import InputError
from animx_trainer.dress import LABELS

Pictures = NDArray[np.floating[Any]]
Numbers = NDArray[np.float64]
LIMBS: tuple[str, ...] = LABELS[1:-1]
"""Parts whose colours are compared; ornaments are left out, few characters have any."""
MIN_PIXELS = 4
"""A part counts where it has at least this many pixels over a clip."""


@dataclass(frozen=True)
class Truth:
    """A drawn clip as a model should paint it."""

    frames: Pictures  # [T, H, W, 3]
    coverage: Pictures  # [T, H, W]
    labels: NDArray[np.integer[Any]]  # [T, H, W]
    reference: Pictures  # [H, W, 3]
    reference_coverage: Pictures  # [H, W]

    def __post_init__(self) -> None:
        shape = self.frames.shape
        for name, wanted in (("coverage", shape[:3]), ("labels", shape[:3]), ("reference", shape[1:]),
                             ("reference_coverage", shape[1:3])):  # fmt: skip
            found = getattr(self, name).shape
            if found != wanted:
                raise InputError(f"truth: {name} is {list(found)}, expected {list(wanted)}")

    @property
    def moving(self) -> Pictures:
        """Weight of each pixel [T, H, W]: covered by the figure now, or in the reference."""
        return np.maximum(self.coverage, self.reference_coverage[None])


def psnr(made: Pictures, truth: Pictures, weight: Pictures | None = None) -> float:
    """Decibels of the weighted mean squared error over all pixels and channels; infinite where nothing differs.

    `weight` [T, H, W]; all zero is an `InputError`, as is another shape.
    """
    if made.shape != truth.shape:
        raise InputError(f"pictures: {list(made.shape)} against {list(truth.shape)}")
    square = np.square(np.asarray(made, np.float64) - truth).mean(axis=-1)
    share = np.ones(square.shape) if weight is None else np.asarray(weight, np.float64)
    total = share.sum()
    if share.shape != square.shape or total <= 0:
        raise InputError("pictures: the weight covers no pixel, or has another shape")
    error = float((square * share).sum() / total)
    return float("inf") if error == 0 else float(-10 * np.log10(error))


def repeated(truth: Truth) -> Pictures:
    """Baseline: the reference in every frame."""
    return np.broadcast_to(truth.reference, truth.frames.shape)


def mean_colour_figure(truth: Truth) -> Pictures:
    """Baseline: the figure's mean colour in the reference, at the true silhouette, over the true background.

    The background is what the clip shows where the figure is not; where it always is, the mean colour.
    """
    weight = np.asarray(truth.reference_coverage, np.float64)
    if weight.sum() <= 0:
        raise InputError("truth: the reference shows no figure")
    return _flat_figure(truth, (truth.reference * weight[..., None]).sum((0, 1)) / weight.sum())


def grey_figure(truth: Truth) -> Pictures:
    """Baseline: a figure in middle grey, at the true silhouette, over the true background."""
    return _flat_figure(truth, np.full(3, 0.5))


def _flat_figure(truth: Truth, colour: Numbers) -> Pictures:
    behind = _background(truth, colour)
    cover = np.asarray(truth.coverage, np.float64)[..., None]
    found: Pictures = behind + cover * (colour - behind)
    return found


def _background(truth: Truth, colour: Numbers) -> Numbers:
    pictures = np.concatenate([truth.reference[None], truth.frames])
    free = np.concatenate([truth.reference_coverage[None], truth.coverage]) == 0
    count = free.sum(0)[..., None]
    mean = (pictures * free[..., None]).sum(0, dtype=np.float64) / np.maximum(count, 1)
    return np.where(count > 0, mean, colour)


def moving_scores(made: Pictures, truth: Truth) -> dict[str, float]:
    """PSNR [dB] in the moving region of `made` and of both baselines, and what `made` gains over each."""
    own = psnr(made, truth.frames, truth.moving)
    still = psnr(repeated(truth), truth.frames, truth.moving)
    flat = psnr(mean_colour_figure(truth), truth.frames, truth.moving)
    return {"psnr": own, "repeat": still, "mean_colour": flat, "over_repeat": own - still, "over_mean": own - flat}


def limb_colours(pictures: Pictures, labels: NDArray[np.integer[Any]]) -> dict[str, Numbers]:
    """Mean colour of each part that shows at least `MIN_PIXELS` pixels: name -> RGB."""
    found = {}
    for number, name in enumerate(LABELS):
        here = labels == number
        if name in LIMBS and int(here.sum()) >= MIN_PIXELS:
            found[name] = np.asarray(pictures[here].mean(axis=0), np.float64)
    return found


def colour_correlation(found: Mapping[str, Numbers], wanted: Mapping[str, Numbers]) -> float:
    """Pearson correlation of part colours, over the parts both have and three channels, each about its own mean.

    1 = every limb has its own colour, about 0 = unrelated; NaN with fewer than three common parts or no difference
    among them (a figure in one colour has no correlation with anything).
    """
    common = [name for name in LIMBS if name in found and name in wanted]
    if len(common) < 3:
        return float("nan")
    a, b = (np.array([colours[name] for name in common]) for colours in (found, wanted))
    a, b = a - a.mean(0), b - b.mean(0)
    scale = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float("nan") if scale < 1e-9 else float((a * b).sum() / scale)


def reference_swap(made: Pictures, labels: NDArray[np.integer[Any]], old: Truth, new: Truth) -> dict[str, float]:
    """After the reference of clip `old` was replaced by that of `new`: whose limb colours does `made` show?

    labels [T, H, W]: where the parts of `made` should be (those of the new character in the driving pose).
    """
    shown = limb_colours(made, labels)
    return {
        "new": colour_correlation(shown, limb_colours(new.frames, new.labels)),
        "old": colour_correlation(shown, limb_colours(old.frames, old.labels)),
    }


def found_mask(made: Pictures, background: Pictures, limit: float = 0.1) -> NDArray[np.bool_]:
    """Where `made` [T, H, W, 3] differs from the still `background` [H, W, 3] by more than `limit` (RMS)."""
    difference = np.sqrt(np.square(np.asarray(made, np.float64) - background).mean(axis=-1))
    return np.asarray(difference > limit)


def mask_iou(one: Pictures | NDArray[np.bool_], other: Pictures | NDArray[np.bool_]) -> float:
    """Intersection over union of two masks [T, H, W], the mean over frames; a frame without both counts 1.

    Numbers count as covered from one half.
    """
    if one.shape != other.shape:
        raise InputError(f"masks: {list(one.shape)} against {list(other.shape)}")
    a, b = (np.asarray(mask if mask.dtype == bool else mask >= 0.5, np.bool_) for mask in (one, other))
    both, either = (a & b).sum((1, 2)), (a | b).sum((1, 2))
    return float(np.where(either > 0, both / np.maximum(either, 1), 1.0).mean())


def pose_swap(made: Pictures, background: Pictures, wanted: Pictures, shuffled: Pictures) -> dict[str, float]:
    """After the driving pose was replaced: does the figure stand in the new pose, and not in some other?

    `wanted` and `shuffled` [T, H, W]: true coverage of the character in the pose that was asked for, and in another.
    """
    shape = found_mask(made, background)
    return {"wanted": mask_iou(shape, wanted >= 0.5), "shuffled": mask_iou(shape, shuffled >= 0.5)}


def paired(differences: Numbers, seed: int = 0, rounds: int = 2000) -> tuple[float, float, float]:
    """Mean of paired differences and its 95 % bootstrap interval (low, high); `differences` one a character."""
    values = np.asarray(differences, np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise InputError("paired differences: at least two characters are needed")
    rng = np.random.default_rng(seed)
    means = values[rng.integers(len(values), size=(rounds, len(values)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(values.mean()), float(low), float(high)
