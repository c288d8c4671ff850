"""Has it learned?  A checkpoint painted on held-out cases and measured against what it must beat, with intervals.

Rows are (a) to (f) of what counts as learning: (a) the moving region against baselines, (b) whose colours appear after
the reference was swapped, (c) where the figure stands, (d) this model against another, (e) what another character's
reference costs, (f) the picture codec's own ceiling and the puppet beside them.  Every number is a mean over characters
with its 95 % bootstrap interval; a row is `yes` or `no` only when the whole interval lies on one side of its target,
and `out of reach` where the truth itself misses it on these cases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from animx.engine import RenderJob
from animx.errors import AnimxError, UsageError
from animx.puppet.engine import prepare as puppet_of
from animx.retarget.chain import retarget
from animx_trainer import checkpointing, proof
from animx_trainer.config import TrainConfig
from animx_trainer.denoiser import Denoiser
from animx_trainer.encoders import find_encoders
from animx_trainer.export import check_config, trained_unet
from animx_trainer.held_out import SEED, Case, draw_case
from animx_trainer.sample import Sample
from animx_trainer.strips import paint
from animx_trainer.task import Diffusion

Pictures = NDArray[np.float64]
Told = Callable[[str, int, int], None]

TOGETHER = 8 * 64 * 64 * 8
"""Pixels of frames that are painted at once: eight clips of 8 frames at 64 px."""
EXACT_DB = 100.0
"""What counts for a picture without any error [dB]."""


@dataclass(frozen=True)
class Target:
    """A row: what is measured of a case, and from where on it counts."""

    row: str
    what: str
    unit: str
    limit: float
    at_least: bool = True

    def verdict(self, low: float | None, high: float | None, truth: float | None) -> str:
        """`yes`, `no`, `undecided` or `out of reach`, from the interval and what the truth itself scores."""
        if truth is not None and (truth < self.limit if self.at_least else truth > self.limit):
            return "out of reach"
        if low is None or high is None:
            return "undecided"
        if self.at_least:
            return "yes" if low >= self.limit else "no" if high < self.limit else "undecided"
        return "yes" if high <= self.limit else "no" if low > self.limit else "undecided"


TARGETS: dict[str, Target] = {
    "over_mean_colour": Target("a", "over a flat figure in the character's mean colour, true pose", "dB", 2),
    "over_repeat": Target("a", "over the reference repeated", "dB", 4),
    "colours_of_new": Target("b", "limb colours against those of the reference that was put in", "correlation", 0.8),
    "colours_of_old": Target("b", "limb colours against those of the reference that was taken out", "correlation",
                             0.2, at_least=False),
    "mask": Target("c", "figure against the true one in the driving pose", "IoU", 0.7),
    "mask_elsewhere": Target("c", "figure against the true one in another pose", "IoU", 0.4, at_least=False),
    "over_other_model": Target("d", "over the model it is compared with", "dB", 1),
    "cost_of_other_reference": Target("e", "lost with another character as the reference", "dB", 3),
}  # fmt: skip
NOT_MEASURED = ("d: error of bone lengths (it needs poses found in painted frames)",)


@dataclass(frozen=True)
class Model:
    """A checkpoint ready to paint."""

    config: TrainConfig
    task: Diffusion
    denoiser: Denoiser
    checkpoint: Path
    step: int
    """Training steps behind it."""

    def frames(self, samples: Sequence[Sample], steps: int) -> list[Pictures]:
        """What it paints for each sample, RGB [F, H, W, 3] in 0..1; the noise depends on the sample's key alone."""
        return [self._shown(latents) for latents in paint(self.task, self.denoiser, samples, steps, SEED)]

    def through_codec(self, sample: Sample) -> Pictures:
        """The sample's own frames behind encoder and decoder: the best this model could paint."""
        return self._shown(self.task.prepare([sample], 0).clean[0])

    def _shown(self, latents: Tensor) -> Pictures:
        return self.task.encoders.pictures(latents).permute(0, 2, 3, 1).double().cpu().numpy()


def open_model(config: TrainConfig, checkpoint: Path, device: torch.device) -> Model:
    """The model of a checkpoint with its averaged weights; `config` must be that of its run (else `UsageError`).

    On a CPU it paints in float32, whatever it was trained in: few CPUs are fast in bf16, many are several times slower.
    """
    check_config(config, checkpoint)
    if device.type == "cpu" and config.precision == "bf16":
        config = replace(config, precision="float32")
    encoders, _ = find_encoders(config.model.encoders, config.seed)
    if encoders.components is None:
        raise UsageError("model.encoders: this run has none, so nothing can be painted. Name a model folder")
    unet = trained_unet(config, checkpoint, encoders.prompt)
    task = Diffusion(config, config.unet(), encoders.to(device, torch.float32), device)
    step = checkpointing.read_state(checkpoint)["step"]
    return Model(config, task, Denoiser(unet).to(device).eval(), checkpoint, step)


def examine(
    model: Model, count: int, *, against: Model | None = None, on_progress: Told = lambda *_: None
) -> dict[str, Any]:
    """Paint `count` held-out cases (2 or more) and measure; returns rows, painters and each character as plain values.

    The model's own number of strip steps is used for both.  `against` must have clips of the same length and size.
    """
    data, steps = model.config.data, model.config.log.strip_steps
    if count < 2:
        raise UsageError(f"--proof {count}: intervals need at least two characters")
    if against is not None and (against.config.data.frames, against.config.data.size) != (data.frames, data.size):
        raise UsageError(
            f"{against.checkpoint}: its clips have {against.config.data.frames} frames of "
            f"{'x'.join(map(str, against.config.data.size))} px, not {data.frames} of {'x'.join(map(str, data.size))}"
        )
    found: list[dict[str, Any]] = []
    share = max(1, TOGETHER // (data.frames * data.size[0] * data.size[1]))
    on_progress("proof", 0, count)
    for first in range(0, count, share):
        cases = [draw_case(number, data) for number in range(first, min(first + share, count))]
        for row in _measured(model, against, cases, steps):
            found.append(row)
            on_progress("proof", len(found), count)
    return {
        "checkpoint": str(model.checkpoint),
        "step": model.step,
        "against": None if against is None else str(against.checkpoint),
        "characters": count,
        "frames": data.frames,
        "size": list(data.size),
        "sampling_steps": steps,
        "rows": [_row(name, found) for name in TARGETS if name in found[0]["scores"]],
        "painters": [_painter(name, found) for name in found[0]["painters"]],
        "families": _by_family(found),
        "not_measured": [*NOT_MEASURED, *([] if against else ["d: no other model is given"])],
        "per_character": found,
    }


def _measured(model: Model, against: Model | None, cases: list[Case], steps: int) -> Iterator[dict[str, Any]]:
    own = model.frames([case.clean for case in cases], steps)
    leaking = model.frames([case.leaking for case in cases], steps)
    swapped = model.frames([case.swapped for case in cases], steps)
    rival = against.frames([case.clean for case in cases], steps) if against else [None] * len(cases)
    for case, made, seen, new, other in zip(cases, own, leaking, swapped, rival, strict=True):
        pictures = {
            "model": made,
            "model, image encoder sees the answer": seen,
            "other model": other,
            "codec alone": model.through_codec(case.clean),
            "puppet": _puppet(case),
            "mean-colour figure": proof.mean_colour_figure(case.truth),
            "grey figure": proof.grey_figure(case.truth),
            "reference repeated": proof.repeated(case.truth),
        }
        painters = {name: _scores(shown, case) for name, shown in pictures.items() if name != "other model" or against}
        db = {name: scores["psnr"] for name, scores in painters.items()}
        colours = proof.reference_swap(new, case.other.labels, case.truth, case.other)
        scores = {
            "over_mean_colour": db["model"] - db["mean-colour figure"],
            "over_repeat": db["model"] - db["reference repeated"],
            "colours_of_new": colours["new"],
            "colours_of_old": colours["old"],
            "mask": painters["model"]["mask"],
            "mask_elsewhere": painters["model"]["mask_elsewhere"],
            "cost_of_other_reference": db["model"] - _decibels(new, case),
        }
        if against:
            scores["over_other_model"] = db["model"] - db["other model"]
        ideal = proof.reference_swap(case.other.frames, case.other.labels, case.truth, case.other)
        here = _scores(case.truth.frames, case)
        truth = {"colours_of_new": ideal["new"], "colours_of_old": ideal["old"], "mask": here["mask"],
                 "mask_elsewhere": here["mask_elsewhere"]}  # fmt: skip
        yield {"case": case.number, "family": case.family, "scores": _plain(scores), "truth": _plain(truth),
               "painters": {name: _plain(one) for name, one in painters.items()}}  # fmt: skip


def _scores(made: Pictures | None, case: Case) -> dict[str, float]:
    """PSNR in the moving region [dB] and where the figure is; NaN for a painter that gave up."""
    if made is None:
        return dict.fromkeys(("psnr", "mask", "mask_elsewhere"), float("nan"))
    place = proof.pose_swap(made, case.background, case.truth.coverage, case.elsewhere)
    return {"psnr": _decibels(made, case), "mask": place["wanted"], "mask_elsewhere": place["shuffled"]}


def _decibels(made: Pictures, case: Case) -> float:
    return min(proof.psnr(made, case.truth.frames, case.truth.moving), EXACT_DB)


def _puppet(case: Case) -> Pictures | None:
    """The same case by the puppet engine, given the true mask and pose of the reference; None where it finds none."""
    rgb = (case.truth.reference * 255 + 0.5).astype(np.uint8)
    picture = np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)])
    canvas = case.driving.canvas
    try:
        poses = retarget(case.driving, reference=case.reference_pose)
        mask = np.asarray(case.truth.reference_coverage, np.float32)
        stage = puppet_of(RenderJob(picture, canvas, poses, case.reference_pose, case.driving, mask))
        frames = np.stack([stage.frame(t)[..., :3] for t in range(poses.frames)])
        return np.asarray(frames / 255, np.float64)
    except AnimxError:
        return None


def _plain(values: dict[str, float]) -> dict[str, float | None]:
    return {name: round(value, 5) if np.isfinite(value) else None for name, value in values.items()}


def _spread(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean, 95 % interval and number of the values that there are; `None` for what too few cannot tell."""
    real = np.array([value for value in values if value is not None], np.float64)
    if len(real) < 2:
        return {"mean": float(real[0]) if len(real) else None, "low": None, "high": None, "n": len(real)}
    mean, low, high = proof.paired(real)
    return {"mean": round(mean, 4), "low": round(low, 4), "high": round(high, 4), "n": len(real)}


def _row(name: str, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    target = TARGETS[name]
    spread = _spread([one["scores"][name] for one in found])
    truth = _spread([one["truth"].get(name) for one in found])["mean"]
    return {
        "row": target.row, "name": name, "what": target.what, "unit": target.unit, **spread,
        "target": f"{'>=' if target.at_least else '<='} {target.limit:g}",
        "truth": truth, "met": target.verdict(spread["low"], spread["high"], truth),
    }  # fmt: skip


def _painter(name: str, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    scores = {key: [one["painters"][name][key] for one in found] for key in ("psnr", "mask", "mask_elsewhere")}
    return {"painter": name, **{key: _spread(values) for key, values in scores.items()}}


def _by_family(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    families = sorted({one["family"] for one in found})
    return {
        family: _spread([one["scores"]["over_mean_colour"] for one in found if one["family"] == family])
        for family in families
    }


def lines_of(report: dict[str, Any]) -> list[str]:
    """The report for a person: rows with their verdict, then who paints how well."""

    def shown(spread: dict[str, Any]) -> str:
        if spread["mean"] is None:
            return f"{'-':>24}"
        between = "" if spread["low"] is None else f"{spread['low']:.2f} .. {spread['high']:.2f}"
        return f"{spread['mean']:>7.2f} {between:>16}"

    lines = [
        f"{report['characters']} held-out characters; mean, 95 % interval, target, reached (what the truth scores)"
    ]
    for row in report["rows"]:
        line = f"({row['row']}) {row['what']:<66} {shown(row)} {row['unit']:<11} {row['target']:<6} {row['met']}"
        line += "" if row["truth"] is None else f" ({row['truth']:.2f})"
        lines.append(line + (f"  n {row['n']}" if row["n"] < report["characters"] else ""))
    lines.append("(f) moving region [dB], and where the figure is [IoU]")
    lines += [f"    {one['painter']:<38} {shown(one['psnr'])}   {shown(one['mask'])}" for one in report["painters"]]
    return [*lines, *(f"not measured: {what}" for what in report["not_measured"])]
